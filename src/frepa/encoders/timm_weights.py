"""``timm:NAME@CHECKPOINT``: timm's trunks with weights trained elsewhere."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from frepa.encoders.contract import Encoder
from frepa.encoders.foreign import read_state_dict
from frepa.encoders.registry import Scheme, build_encoder, register_scheme
from frepa.encoders.timm_2d import TimmEncoder
from frepa.errors import InputError

# What training programs put before the names of a network inside their own.
_PREFIXES = ("module.", "_orig_mod.", "trunk.", "backbone.", "encoder.", "model.", "visual.trunk.")
# Input channels of a checkpoint's first layer: channels of the image, and whether a guide follows them.
_CHANNELS = {1: (1, False), 2: (1, True), 3: (3, False), 4: (3, True)}


def load_timm(name: str, checkpoint: Path | None, *, download: bool = False, **options: Any) -> TimmEncoder:
    """A timm architecture with weights trained elsewhere.

    A trunk with 1 or 3 input channels has no input for the guide, so the guide channel is dropped; its own mean and
    standard deviation are applied inside, to images in [0, 1]. A trunk with 2 or 4 was trained with a guide: say which
    with ``guide``; its images are not rescaled.

    Args:
        name: timm's name of the architecture, with or without its pretrained tag.
        checkpoint: local .safetensors or torch state dict (read with ``weights_only=True``, never unpickled).
        download: fetch timm's published weights over the network; only where asked.
        options: as for ``build_encoder``, and ``mean``, ``std`` where timm's own are not the right ones.

    Raises:
        InputError: no weights named, or they cannot be read, or do not fit the architecture.
    """
    if (checkpoint is None) == (not download):
        raise InputError(
            f"timm:{name} names an architecture, not weights. Give timm:{name}@CHECKPOINT for a local file, "
            f"timm:{name},download=true to fetch timm's weights, or random:timm:{name} for untrained ones."
        )
    where = f"checkpoint {checkpoint}" if checkpoint else f"timm's weights of {name}"
    with torch.random.fork_rng(devices=[]):
        encoder = _build(name, {**options, "guide": "none", "uses_guide": False})
        state = _download(name) if checkpoint is None else read_state_dict(checkpoint)
        state = _match(state, encoder.trunk)
        first = f"{encoder.trunk.pretrained_cfg.get('first_conv')}.weight"
        inputs = state[first].shape[1] if first in state else 3
        encoder = _build(name, _input_options(where, inputs, encoder.trunk, options))
    _load(where, state, encoder)
    return encoder


def _build(name: str, options: dict[str, Any]) -> TimmEncoder:
    encoder = build_encoder(f"timm:{name}", dims=2, **options)
    assert isinstance(encoder, TimmEncoder)
    return encoder


def _download(name: str) -> dict[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"timm's weights of {name} could not be fetched: {error}") from None


def _match(state: dict[str, Tensor], trunk: Any) -> dict[str, Tensor]:
    """Rename a state dict's keys to the trunk's, and resample its positions to the trunk's grid."""
    own = set(trunk.state_dict())
    state = _from_efficientnet(state)

    def inside(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    # The prefix under which most of the trunk is found; where the authors' own names hide it, the one all keys share.
    prefixes = [outer + inner for outer in ("", *_PREFIXES) for inner in ("", *_PREFIXES)]
    state = inside(max(prefixes, key=lambda prefix: (len(own & set(inside(prefix))), len(inside(prefix)), len(prefix))))
    # timm knows the formats that each architecture's own authors published.
    convert = getattr(importlib.import_module(type(trunk).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return state
    converted = convert(state, trunk)
    return converted if isinstance(converted, dict) else dict(converted)


def _from_efficientnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet's tensors under timm's names, from those of the packages efficientnet-pytorch and -lite-pytorch.

    Other states come back as they are. Blocks are numbered through there and by stages in timm: a stage begins where a
    block changes its channels. Norms are numbered from 0, or from 1 in blocks that do not widen.
    """
    if "_conv_stem.weight" not in state or "_blocks.0._project_conv.weight" not in state:
        return state
    places: list[tuple[int, int]] = []
    widths = {}
    for block in range(1 + max(int(key.split(".")[1]) for key in state if key.startswith("_blocks."))):
        widths[block] = len(state[f"_blocks.{block}._project_conv.weight"])
        same = block > 0 and widths[block] == widths[block - 1]
        stage, row = places[-1] if places else (-1, 0)
        places.append((stage, row + 1) if same else (stage + 1, 0))
    whole = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    wide = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
            "_project_conv": "conv_pwl", "_bn2": "bn3", "_se_reduce": "se.conv_reduce",
            "_se_expand": "se.conv_expand"}  # fmt: skip
    narrow = {**wide, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            block = int(parts[1])
            names = wide if f"_blocks.{block}._expand_conv.weight" in state else narrow
            stage, row = places[block]
            parts = ["blocks", str(stage), str(row), names.get(parts[2], parts[2]), *parts[3:]]
        else:
            parts[0] = whole.get(parts[0], parts[0])
        renamed[".".join(parts)] = value
    return renamed


def _input_options(where: str, inputs: int, trunk: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options that give the encoder the input channels and scaling of the checkpoint."""
    if inputs not in _CHANNELS:
        raise InputError(
            f"{where} takes {inputs} input channels; encoders here take 1 to 4 (grey or colour, and a guide)."
        )
    image_channels, uses_guide = _CHANNELS[inputs]
    guide = options.get("guide", "none")
    if uses_guide and guide == "none":
        raise InputError(f"{where} has {inputs} input channels, the last a guide: add ,guide=frangi or ,guide=hessian.")
    if not uses_guide and guide != "none":
        raise InputError(f"{where} was trained without a guide ({inputs} input channels): leave out guide={guide}.")
    scaling = {}
    if not uses_guide:
        cfg = trunk.pretrained_cfg
        for key in ("mean", "std"):
            values = cfg[key]
            scaling[key] = list(values) if len(values) == image_channels else [sum(values) / len(values)]
    return {**scaling, **options, "guide": guide, "image_channels": image_channels, "uses_guide": uses_guide}


def _load(where: str, state: dict[str, Tensor], encoder: TimmEncoder) -> None:
    trunk = encoder.trunk
    try:
        missing, unexpected = trunk.load_state_dict(state, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line] or [str(error)]
        raise InputError(f"{where} does not fit {encoder.name}: {lines[0]}") from None
    if missing:
        raise InputError(
            f"{where} does not fit {encoder.name}: it lacks {len(missing)} of {len(trunk.state_dict())} tensors, "
            f"the first {missing[0]!r}. It holds {len(state)}, the first {next(iter(state))!r}."
        )
    # A classifier or decoder that came with the trunk is left aside, but not a piece of the trunk itself.
    parts = {name for name, child in trunk.named_children() if any(True for _ in child.parameters())} - {"head"}
    surplus = [key for key in unexpected if key.split(".", 1)[0] in parts]
    if surplus:
        raise InputError(
            f"{where} does not fit {encoder.name}: it holds {len(surplus)} tensors more than the trunk, "
            f"the first {surplus[0]!r}. It was trained with another size of this architecture."
        )


def _load_scheme(rest: str, options: dict[str, Any]) -> Encoder:
    """``timm:NAME@CHECKPOINT``: a trunk trained elsewhere; ``timm:NAME,download=true`` fetches timm's own weights."""
    name, _, checkpoint = rest.partition("@")
    return load_timm(name, Path(checkpoint) if checkpoint else None, **options)


def _absolute(rest: str) -> str:
    name, at, checkpoint = rest.partition("@")
    return f"{name}{at}{Path(checkpoint).resolve()}" if at else rest


register_scheme("timm", Scheme(_load_scheme, _absolute))
