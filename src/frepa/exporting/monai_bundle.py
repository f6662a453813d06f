"""A MONAI bundle: MONAI's own network class in ``configs/inference.json``, weights as safetensors, metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monai
import safetensors
import torch
from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_METADATA
from torch import Tensor

import frepa
from frepa.encoders.contract import Encoder, per_axis
from frepa.encoders.monai_3d import MedNext3d, SwinUnetr3d, Vit3d
from frepa.errors import InputError
from frepa.exporting.contract import Asked, Exported, Outputs, Target, version
from frepa.files import write_json, write_tensors

CONFIG, METADATA, WEIGHTS = "configs/inference.json", "configs/metadata.json", "models/model.safetensors"
# The layer of MONAI's network that makes classes of the map, which an encoder has not. Of a ViT the tokens are given.
_OUTPUT_LAYER = {SwinUnetr3d: "out", MedNext3d: "out_0", Vit3d: None}
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_NETWORK = {Vit3d: "ViT", SwinUnetr3d: "SwinUNETR", MedNext3d: "MedNeXt"}


def write(encoder: Encoder, folder: Path, asked: Asked) -> Exported:
    """Write the bundle and let MONAI's parser build the network from it.

    Raises:
        InputError: the encoder is no network of MONAI.
    """
    if not isinstance(encoder, Vit3d | SwinUnetr3d | MedNext3d):
        raise InputError(
            f"--to monai: a bundle names a network of MONAI, and {encoder.name} is of another library (vit3d_..., "
            "swinunetr_... and mednext_... are MONAI's). Use --to onnx or --to torch, which take any encoder."
        )
    shape = asked.shape(encoder)
    for name in ("configs", "models"):
        (folder / name).mkdir()
    weights = {key: value.contiguous() for key, value in encoder.trunk.state_dict().items()}
    options = dict(encoder.trunk_options)
    if isinstance(encoder, Vit3d):
        # MONAI's ViT knows the positions of one size only
        options["img_size"] = list(shape)
        grid = [length // step for length, step in zip(shape, per_axis(encoder.stride, 3))]
        positions = encoder.positions(grid).flatten(2).transpose(1, 2)
        weights["patch_embedding.position_embeddings"] = positions.contiguous()
    write_tensors(folder / WEIGHTS, weights, {"format": "pt"}, sync=False)
    write_json(folder / CONFIG, _config(encoder, options))
    write_json(folder / METADATA, _metadata(encoder, shape))
    network = _opened(folder)

    def run(x: Tensor) -> Outputs:
        found = network(x)
        if isinstance(encoder, Vit3d):  # tokens, and those of every block
            steps = per_axis(encoder.stride, 3)
            found = found[0].transpose(1, 2).unflatten(2, [n // step for n, step in zip(x.shape[2:], steps)])
        return {"dense": found}

    tokens = isinstance(encoder, Vit3d)
    whole = " x ".join(map(str, shape))
    return Exported(
        run=run,
        shapes=(shape,),
        sizes=f"{whole} voxels only (--image-size chooses it)"
        if tokens
        else f"any multiple of {encoder.size_multiple} voxels per side, two of them at least",
        opened_by=version(monai),
        opens=f'parser = monai.bundle.ConfigParser(); parser.read_config("FOLDER/{CONFIG}"); '
        'parser["bundle_root"] = "FOLDER"; parser.get_parsed_content("network")',
        notes=("The network gives its tokens first, then those of every block.",) if tokens else (),
    )


def expected(encoder: Encoder, x: Tensor) -> Outputs:
    """The map: MONAI's networks give one."""
    return {"dense": encoder(x).dense}


def _config(encoder: Encoder, options: dict[str, Any]) -> dict[str, Any]:
    layer = _OUTPUT_LAYER[type(encoder)]  # type: ignore[index]
    cut = f"setattr(@network_def, '{layer}', torch.nn.Identity()), " if layer else ""
    # Which layers a ViT has that nothing calls (cross attention) differs between versions of MONAI
    how = "" if layer else ", strict=False"
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": f"monai.networks.nets.{_NETWORK[type(encoder)]}", **options},  # type: ignore[index]
        "weights": {
            "_target_": "safetensors.torch.load_file",
            "filename": f"$@bundle_root + '/{WEIGHTS}'",
        },
        "network": f"$({cut}@network_def.load_state_dict(@weights{how}), @network_def.eval().to(@device))[-1]",
        "inferer": {"_target_": "SimpleInferer"},
    }


def _metadata(encoder: Encoder, shape: tuple[int, ...]) -> dict[str, Any]:
    channels = {str(number): "image" for number in range(encoder.image_channels)}
    if encoder.uses_guide:
        channels[str(encoder.image_channels)] = f"{encoder.guide} guide of the clean image"
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "n/a",
        "num_channels": len(channels),
        "spatial_shape": list(shape),
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": channels,
    }
    dense = {
        "type": "image",
        "format": "raw",
        "num_channels": encoder.channels,
        "spatial_shape": [length // step for length, step in zip(shape, per_axis(encoder.stride, 3))],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {},
    }
    return {
        **DEFAULT_METADATA,
        "schema": _SCHEMA,
        "required_packages_version": {"safetensors": safetensors.__version__},
        "name": encoder.name,
        "task": "Features of an image, for heads of any kind",
        "description": f"Pretrained encoder {encoder.name}, exported by frepa {frepa.__version__}.",
        "authors": "not said",
        "copyright": "not said",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": dense}},
    }


def _opened(folder: Path) -> Any:
    parser = ConfigParser()
    parser.read_config(str(folder / CONFIG))
    parser.read_meta(str(folder / METADATA))
    parser["bundle_root"] = str(folder)
    parser["device"] = torch.device("cpu")
    return parser.get_parsed_content("network")


TARGET = Target(write, expected)
