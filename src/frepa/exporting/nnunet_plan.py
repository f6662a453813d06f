"""A checkpoint with its ``nnssl_adaptation_plan``, from which nnU-Net and nnDetection fine-tune a ResEnc.

The format is nnssl's (``AdaptationPlan``): which network it is, under which names its stem and stages lie, and what the
data it was pretrained on looked like. nnU-Net loads stem and stages; its decoder begins anew.
"""

from __future__ import annotations

import copy
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import frepa
from frepa.encoders.contract import Encoder
from frepa.encoders.files import find_weights, read_description
from frepa.encoders.nnunet_3d import ResEnc3d, resenc_options
from frepa.encoders.registry import find_scheme
from frepa.errors import InputError
from frepa.exporting.contract import Asked, Exported, Outputs, Target
from frepa.files import write_json

CHECKPOINT, PLAN = "checkpoint_final.pth", "adaptation_plan.json"
# Names that nnU-Net knows for whole networks; others are described layer by layer
_PRESETS = {"resenc_large": "ResEncL"}
_STAGES, _STEM = "encoder.stages", "encoder.stem"
_PROJECTION = ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0")
_RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def write(encoder: Encoder, folder: Path, asked: Asked) -> Exported:
    """Write checkpoint and plan, and load them into nnU-Net's network by the names in the plan.

    Raises:
        InputError: the encoder is no ResEnc.
    """
    if not isinstance(encoder, ResEnc3d):
        raise InputError(
            f"--to nnunet: nnU-Net fine-tunes its own networks, and {encoder.name} is none (resenc_large is its "
            "ResEnc-L). Use --to onnx or --to torch, which take any encoder."
        )
    shape = asked.shape(encoder)
    plan = adaptation_plan(encoder, shape, _spacing(asked.source))
    weights = {key: value.clone() for key, value in encoder.trunk.state_dict().items()}
    checkpoint = {
        "network_weights": weights,
        "nnssl_adaptation_plan": plan,
        "trainer_name": "frepa",
        "citations": [],
    }
    torch.save(checkpoint, folder / CHECKPOINT)
    write_json(folder / PLAN, {**plan, "trainer_name": "frepa"})
    network, package = _opened(encoder, folder / CHECKPOINT)

    def run(x: Tensor) -> Outputs:
        return {"embedding": network.encoder(x)[-1]}

    notes = [f"{CHECKPOINT} is a torch file, as nnU-Net demands it: tensors and plain values, read with weights_only."]
    if encoder.uses_guide:
        notes.append(
            "nnU-Net's cases need exactly two channels, the image (_0000) and its guide (_0001): with another number "
            "the pretrained stem does not fit."
        )
    return Exported(
        run=run,
        shapes=(shape,),
        sizes=f"any multiple of {encoder.size_multiple} voxels per side",
        opened_by=package,
        opens=f"nnUNetv2_preprocess_like_nnssl -d DATASET -n NAME -pc FOLDER/{CHECKPOINT} -am like_pretrained",
        notes=tuple(notes),
    )


def expected(encoder: Encoder, x: Tensor) -> Outputs:
    """The bottleneck: what of an encoder nnU-Net takes ends there."""
    return {"embedding": encoder(x).embedding}


def adaptation_plan(
    encoder: ResEnc3d, shape: tuple[int, ...], spacing: tuple[float, ...] | None = None
) -> dict[str, Any]:
    """The plan as nnssl writes it.

    shape: of the patches. spacing: mm per voxel that volumes were brought to in pretraining, or None for their own.
    """
    style = "noresample" if spacing is None else "onemmiso" if set(spacing) == {1.0} else "fixed"
    channels = encoder.image_channels + encoder.uses_guide
    preset = _PRESETS.get(encoder.name)
    options = None if preset else _described(encoder.name)
    configuration = {
        "data_identifier": f"frepa_{style}",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": style,
        "normalization_schemes": ["RescaleTo01Normalization"] * encoder.image_channels
        + ["NoNormalization"] * encoder.uses_guide,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": dict(_RESAMPLING),
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": {**_RESAMPLING, "order": 1},
        "spacing": None if spacing is None else list(spacing),
        "patch_size": list(shape),
    }
    return {
        "architecture_plans": {
            "arch_class_name": preset or "ResidualEncoderUNet",
            "arch_kwargs": options,
            "arch_kwargs_requiring_import": options
            and [key for key, value in options.items() if isinstance(value, str)],
        },
        "pretrain_plan": {
            "dataset_name": "frepa",
            "plans_name": "frepa",
            "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "experiment_planner_used": f"frepa {frepa.__version__}",
            "configurations": {style: configuration},
        },
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": list(shape),
        "key_to_encoder": _STAGES,
        "key_to_stem": _STEM,
        "keys_to_in_proj": list(_PROJECTION),
        "key_to_lpe": None,
    }


def _spacing(source: str) -> tuple[float, ...] | None:
    """Voxel size of the pretraining, where the encoder's file says one."""
    if find_scheme(source)[0] is not None:
        return None
    said = read_description(find_weights(source)).get("extra", {}).get("spacing")
    if isinstance(said, int | float):
        return (float(said),) * 3
    return tuple(map(float, said)) if isinstance(said, list) and len(said) == 3 else None


def _described(name: str) -> dict[str, Any]:
    """The network layer by layer, in plain values: classes by the names that they are imported by."""
    options = copy.deepcopy(resenc_options(name))
    stages = len(options["features_per_stage"])
    return {
        **{key: _plain(value) for key, value in options.items()},
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[step] * 3 for step in options["strides"]],
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "dropout_op": None,
        "dropout_op_kwargs": None,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, type):
        return f"{value.__module__}.{value.__name__}"
    return list(value) if isinstance(value, tuple) else value


def _opened(encoder: ResEnc3d, path: Path) -> tuple[Any, str]:
    """nnU-Net's network with stem and stages from the checkpoint, loaded as its fine-tuning does: all of a prefix."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    package = "dynamic-network-architectures"
    read = torch.load(path, weights_only=True)
    plan, weights = read["nnssl_adaptation_plan"], read["network_weights"]
    network = ResidualEncoderUNet(
        input_channels=plan["pretrain_num_input_channels"], num_classes=2, **resenc_options(encoder.name)
    )
    for key, place in (("key_to_encoder", network.key_to_encoder), ("key_to_stem", network.key_to_stem)):
        inside = {k.removeprefix(f"{plan[key]}."): v for k, v in weights.items() if k.startswith(f"{plan[key]}.")}
        part: nn.Module = network.get_submodule(place)
        part.load_state_dict(inside)
    return network.eval(), f"nnU-Net's {package} {installed(package)}"


TARGET = Target(write, expected, needs=("dynamic_network_architectures",), pip="frepa[nnunet]")
