"""Files that other projects published, read by the names of their tensors: ``medsam:FILE``, ``frepa:FILE``.

- ``medsam:FILE``: the image encoder of SAM or MedSAM (``medsam_vit_b.pth``); images in [0, 1] for MedSAM, and for SAM
  with its own mean and std (``sam:FILE``).
- ``frepa:FILE``: what the authors of Frepa published: ViT-B with a neck of 128 channels, SwinV2-B (torchvision's), and
  ConvNeXt-B, each with 3 image channels and a guide of dark ridges.

Checkpoints are read with ``weights_only=True``: tensors, and nothing that runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frepa.encoders.contract import Encoder
from frepa.encoders.foreign import read_state_dict
from frepa.encoders.registry import Scheme, build_encoder, register_scheme
from frepa.errors import InputError

#: The guide of the authors' code: scikit-image's Frangi filter with its defaults, dark ridges, scales 0.5, 1, 1.5.
AUTHORS_GUIDE = "frangi_dark"
SAM_SCALING = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def load_medsam(text: str, options: dict[str, Any]) -> Encoder:
    """``medsam:FILE``: SAM's image encoder, for images in [0, 1] as MedSAM scales them."""
    return sam_of(Path(text), _inside(read_state_dict(Path(text)), "image_encoder."), options)


def load_sam(text: str, options: dict[str, Any]) -> Encoder:
    """``sam:FILE``: the same with the mean and std of SAM."""
    return load_medsam(text, {**SAM_SCALING, **options})


def load_authors(text: str, options: dict[str, Any]) -> Encoder:
    """``frepa:FILE``: an encoder that the authors of Frepa published; its architecture follows from its tensors."""
    path = Path(text)
    state = _inside(read_state_dict(path), "encoder.")
    guided = {"guide": AUTHORS_GUIDE, **options}
    if "neck.0.weight" in state:
        return sam_of(path, state, {"epsilon": 1e-5, **guided})
    if "0.0.weight" in state:
        shape = _swin_shape(path, state)
        return _built(path, "swin_torchvision", {f"trunk.{key}": value for key, value in state.items()}, shape | guided)
    if "downsample_layers.0.0.weight" in state:
        return _load_convnext(path, state, guided)
    raise InputError(
        f"{path}: holds none of the encoders that Frepa's authors published (ViT with a neck, SwinV2, ConvNeXt); its "
        f"first tensor is {next(iter(state), 'missing')}. Other checkpoints are given as timm:NAME@FILE."
    )


def _inside(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix without it; all of them where none has it. ``module.`` is left out before."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return found or state


def sam_of(path: Path, state: dict[str, Tensor], options: dict[str, Any]) -> Encoder:
    """An encoder whose shape is that of SAM's tensors."""
    needed = ("patch_embed.proj.weight", "neck.0.weight", "blocks.0.attn.qkv.weight")
    missing = next((key for key in needed if key not in state), None)
    if missing is not None:
        raise InputError(f"{path}: holds no image encoder of SAM's kind ({missing} is missing).")
    patch = state["patch_embed.proj.weight"]
    width, inputs, side = patch.shape[0], patch.shape[1], patch.shape[2]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    grid = state["pos_embed"].shape[1] if "pos_embed" in state else 64
    tables = [state.get(f"blocks.{block}.attn.rel_pos_h") for block in range(depth)]
    lengths = [0 if table is None else len(table) for table in tables]
    windowed = [length for length in lengths if length and length != 2 * grid - 1]
    window = (windowed[0] + 1) // 2 if windowed else 0
    first = tables[0]
    if first is None and width % 64:
        raise InputError(f"{path}: {width} channels a token, of which nothing says how many heads they are for.")
    if inputs not in (3, 4):
        raise InputError(f"{path}: takes {inputs} input channels, and 3 or 4 (with a guide) are expected.")
    shape: dict[str, Any] = {
        "image_size": grid * side,
        "patch_size": side,
        "width": width,
        "depth": depth,
        "heads": width // (64 if first is None else first.shape[1]),
        "hidden": len(state.get("blocks.0.mlp.lin1.weight", state.get("blocks.0.mlp.fc1.weight", patch))),
        "neck": len(state["neck.0.weight"]),
        "relative": first is not None,
        "window": window,
        "everywhere": [block for block, length in enumerate(lengths) if window and length == 2 * grid - 1],
        "uses_guide": inputs == 4,
    }
    renamed = {f"trunk.{key.replace('.mlp.lin', '.mlp.fc')}": value for key, value in state.items()}
    return _built(path, "sam", renamed, shape | options)


def _swin_shape(path: Path, state: dict[str, Tensor]) -> dict[str, Any]:
    """Options of the SwinV2 whose tensors these are: stages are the odd numbers of torchvision's sequence."""
    stages = sorted({int(key.split(".")[0]) for key in state})[1::2]
    depths = [1 + max(int(key.split(".")[1]) for key in state if key.startswith(f"{stage}.")) for stage in stages]
    heads = [len(state[f"{stage}.0.attn.logit_scale"]) for stage in stages]
    positions = state["1.0.attn.relative_position_index"].numel()
    inputs = state["0.0.weight"].shape[1]
    if inputs not in (3, 4):
        raise InputError(f"{path}: takes {inputs} input channels, and 3 or 4 (with a guide) are expected.")
    return {
        "width": len(state["0.0.weight"]),
        "patch_size": state["0.0.weight"].shape[2],
        "depths": depths,
        "heads": heads,
        "window": round(positions**0.25),
        "uses_guide": inputs == 4,
    }


def _load_convnext(path: Path, state: dict[str, Tensor], options: dict[str, Any]) -> Encoder:
    from timm.models.convnext import checkpoint_filter_fn

    width = len(state["downsample_layers.0.0.weight"])
    numbers = [tuple(map(int, key.split(".")[1:3])) for key in state if key.startswith("stages.")]
    depths = [1 + max(block for stage, block in numbers if stage == k) for k in range(4)]
    known: dict[tuple[Any, ...], str] = {
        ((3, 3, 9, 3), 96): "convnext_tiny", ((3, 3, 27, 3), 96): "convnext_small",
        ((3, 3, 27, 3), 128): "convnext_base", ((2, 2, 6, 2), 40): "convnext_atto",
        ((2, 2, 6, 2), 48): "convnext_femto", ((2, 2, 6, 2), 64): "convnext_pico",
    }  # fmt: skip
    name = known.get((tuple(depths), width))
    if name is None:
        raise InputError(f"{path}: a ConvNeXt of {depths} blocks and {width} channels is not known here.")
    inputs = state["downsample_layers.0.0.weight"].shape[1]
    options = {"uses_guide": inputs == 4, "final_norm": False, **options}
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(name, dims=2, **options)
    renamed = checkpoint_filter_fn(state, encoder.trunk)
    own = {f"trunk.{key}": value for key, value in renamed.items() if not key.startswith("head.")}
    return _filled(path, encoder, own)


def _built(path: Path, name: str, state: dict[str, Tensor], options: dict[str, Any]) -> Encoder:
    if not options.get("uses_guide", True):
        options = options | {"guide": "none"}
    with torch.random.fork_rng(devices=[]):
        return _filled(path, build_encoder(name, dims=2, **options), state)


def _filled(path: Path, encoder: Encoder, state: dict[str, Tensor]) -> Encoder:
    """The encoder with these weights; all of its own must be among them, and of the right shape."""
    own = encoder.state_dict()
    missing = sorted(set(own) - set(state))
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or wrong:
        what = f"{missing[0]} is missing" if missing else f"{wrong[0]} is of shape {tuple(state[wrong[0]].shape)}"
        raise InputError(f"{path}: does not fit the encoder {encoder.name} that its tensors speak of: {what}.")
    encoder.load_state_dict({key: state[key] for key in own})
    return encoder


def _absolute(rest: str) -> str:
    return str(Path(rest).resolve())


register_scheme("medsam", Scheme(load_medsam, absolute=_absolute, origin=lambda rest: "MedSAM"))
register_scheme("sam", Scheme(load_sam, absolute=_absolute, origin=lambda rest: "SAM"))
register_scheme("frepa", Scheme(load_authors, absolute=_absolute, origin=lambda rest: "Frepa (its authors)"))
