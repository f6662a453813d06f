"""A folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` opens: config.json and model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from torch import Tensor, nn

from frepa.encoders.contract import Encoder, per_axis
from frepa.encoders.timm_2d import TimmEncoder, last_map, late_norm
from frepa.errors import InputError
from frepa.exporting.contract import Asked, Exported, Outputs, Target, features, version
from frepa.files import write_json


def write(encoder: Encoder, folder: Path, asked: Asked) -> Exported:
    """Write the trunk and let timm open it.

    Raises:
        InputError: the encoder is no timm trunk, or has what timm's architecture has not.
    """
    encoder = check_timm(encoder, "timm")
    shape = asked.shape(encoder)
    write_folder(encoder, folder, shape)
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def run(x: Tensor) -> Outputs:
        x = encoder.input.scaled(x)  # what timm's transform does by the mean and std in config.json
        return {"dense": last_map(encoder, model, x), "forward_features": model.forward_features(x)}

    return Exported(
        run=run,
        shapes=(shape,),
        sizes=sizes_of(encoder, shape),
        opened_by=version(timm),
        opens='timm.create_model("local-dir:FOLDER", pretrained=True)',
        notes=notes_of(encoder, model),
    )


def expected(encoder: Encoder, x: Tensor) -> Outputs:
    """The map, and what the trunk's own ``forward_features`` gives."""
    trunk: Any = encoder.trunk
    return {**features(encoder, x), "forward_features": trunk.forward_features(encoder.input(x))}  # type: ignore[operator]


def check_timm(encoder: Encoder, to: str) -> TimmEncoder:
    """The encoder, where it is a timm trunk as timm builds it.

    Raises:
        InputError: it is not.
    """
    other = "Use --to onnx or --to torch, which take any encoder."
    takes = "networks of timm" if to == "timm" else "networks of timm and of transformers"
    if encoder.dims != 2:
        raise InputError(f"--to {to}: it holds 2D {takes}, and {encoder.name} is a {encoder.dims}D one. {other}")
    if not isinstance(encoder, TimmEncoder):
        raise InputError(f"--to {to}: it holds {takes}, and {encoder.name} is of another family. {other}")
    if "neck" in encoder.options:
        raise InputError(f"--to {to}: {encoder.name} has a neck behind its trunk, which timm does not know. {other}")
    if encoder.options.get("final_norm") is False:
        raise InputError(f"--to {to}: {encoder.name} has no final norm, and timm's network has one. {other}")
    return encoder


def write_folder(encoder: TimmEncoder, folder: Path, shape: tuple[int, ...]) -> None:
    """config.json and model.safetensors, as timm writes them."""
    channels = encoder.image_channels + encoder.uses_guide
    mean, std = encoder.options.get("mean"), encoder.options.get("std")
    own = dict(encoder.trunk.pretrained_cfg)
    for key in ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "test_input_size", "license",
                "origin_url", "paper_name", "paper_ids", "notes", "label_names", "label_descriptions"):  # fmt: skip
        own.pop(key, None)
    described = {
        **own,
        "tag": "frepa",
        "custom_load": False,
        "input_size": [channels, *shape],
        "fixed_input_size": encoder.input.size is not None,
        "mean": [*(mean or [0.0] * encoder.image_channels), *[0.0] * encoder.uses_guide],
        "std": [*(std or [1.0] * encoder.image_channels), *[1.0] * encoder.uses_guide],
        "crop_pct": 1.0,
        "num_classes": 0,
        "pool_size": None,
    }
    # What describes the weights that timm itself publishes for this architecture is not true of these
    encoder.trunk.pretrained_cfg = described
    arguments = {"in_chans": channels, **encoder.trunk_options}
    save_for_hf(encoder.trunk, str(folder), model_args=arguments, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["model_args"].pop("num_classes", None)  # said beside them, and transformers takes it from one place only
    write_json(folder / "config.json", config)


def sizes_of(encoder: TimmEncoder, shape: tuple[int, ...]) -> str:
    """Which sizes the network takes, in words."""
    if encoder.input.size is not None:
        return f"{' x '.join(map(str, shape))} pixels only"
    return f"any multiple of {max(per_axis(encoder.size_multiple, 2))} pixels per side"


def notes_of(encoder: TimmEncoder, model: Any) -> tuple[str, ...]:
    """What must be said of the network's outputs and its input."""
    notes = []
    prefix = getattr(model, "num_prefix_tokens", 0)
    if prefix:
        notes.append(f"forward_features gives tokens; the first {prefix} of them belong to no patch.")
    name, norm = late_norm(model)
    if norm is not None and not isinstance(norm, nn.Identity):
        notes.append(
            f"forward_features (last_hidden_state) is the map before the last norm: model.{name} "
            f"(model.timm_model.{name}) makes of it what frepa's heads read."
        )
    if encoder.uses_guide:
        notes.append(
            "Pictures have no guide channel: make the tensor of image and guide yourself (docs/exporting.md shows how)."
        )
    return tuple(notes)


TARGET = Target(write, expected)
