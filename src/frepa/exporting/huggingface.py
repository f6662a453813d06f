"""A folder for transformers' ``AutoModel`` and ``AutoImageProcessor``: no code in it, and no pickle.

A network of timm is written as timm writes it, which transformers opens as its TimmWrapper; what came from a Hugging
Face folder goes back as its own class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frepa.encoders.contract import Encoder
from frepa.encoders.hf import TokenEncoder, quietly
from frepa.encoders.timm_2d import TimmEncoder
from frepa.errors import InputError
from frepa.exporting.contract import Asked, Exported, Outputs, Target, version
from frepa.exporting.timm_folder import check_timm, notes_of, write_folder

_OPENS = (
    'transformers.AutoImageProcessor.from_pretrained("FOLDER") and transformers.AutoModel.from_pretrained("FOLDER")'
)


def write(encoder: Encoder, folder: Path, asked: Asked) -> Exported:
    """Write the folder and let transformers open it.

    Raises:
        InputError: the encoder is no network that transformers knows.
    """
    import transformers

    shape: tuple[int, ...]
    if isinstance(encoder, TokenEncoder):
        side = int(encoder.trunk.config.image_size)
        shape = (side, side)
        if asked.image_size not in (None, side):
            raise InputError(
                f"--image-size {asked.image_size}: the folder says how {encoder.name} takes pictures, {side} pixels "
                "per side. Leave the option out."
            )
        with quietly(transformers):
            notes = _write_own(encoder, folder)
    else:
        trunk = check_timm(encoder, "huggingface")
        shape = asked.shape(trunk)
        write_folder(trunk, folder, shape)
        notes = notes_of(trunk, trunk.trunk)
    with quietly(transformers):
        model: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
        processor: Any = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    # Pictures of 0 to 255 are brought to [0, 1] by the processor; these are there already
    how = {"do_rescale": False} if isinstance(encoder, TokenEncoder) else {}

    def run(x: Tensor) -> Outputs:
        pixels = processor(x, return_tensors="pt", **how)["pixel_values"]
        return {"last_hidden_state": model(pixel_values=pixels).last_hidden_state}

    return Exported(
        run=run,
        shapes=(shape,),
        sizes=f"its image processor brings pictures to {' x '.join(map(str, shape))} pixels",
        opened_by=version(transformers),
        opens=_OPENS,
        notes=notes,
    )


def expected(encoder: Encoder, x: Tensor) -> Outputs:
    """What the trunk itself gives, of our input."""
    trunk: Any = encoder.trunk
    x = encoder.input(x)  # type: ignore[operator]
    if isinstance(encoder, TimmEncoder):
        return {"last_hidden_state": trunk.forward_features(x)}
    return {"last_hidden_state": trunk(pixel_values=x).last_hidden_state}


def _write_own(encoder: TokenEncoder, folder: Path) -> tuple[str, ...]:
    """A model of transformers as transformers writes it, with the image processor of plain ViTs."""
    from transformers import ViTImageProcessor

    encoder.trunk.save_pretrained(folder)
    side = int(encoder.trunk.config.image_size)
    mean, std = encoder.options.get("mean"), encoder.options.get("std")
    ViTImageProcessor(
        size={"height": side, "width": side},
        do_normalize=mean is not None,
        image_mean=mean or [0.0] * encoder.image_channels,
        image_std=std or [1.0] * encoder.image_channels,
    ).save_pretrained(folder)
    with torch.no_grad():
        tokens = encoder.trunk(pixel_values=torch.zeros(1, encoder.image_channels, side, side)).last_hidden_state
    prefix = tokens.shape[1] - (side // int(encoder.stride)) ** 2  # type: ignore[arg-type]
    return (f"The first {prefix} tokens belong to no patch.",) if prefix else ()


TARGET = Target(write, expected, needs=("transformers",), pip="frepa[hf]")
