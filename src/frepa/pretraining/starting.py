"""The encoder that a run begins with: random weights, or those of another encoder with its input adapted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from frepa.encoders.contract import Encoder
from frepa.encoders.files import load_encoder
from frepa.encoders.options import split_options
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError


def starting_encoder(
    spec: str | None,
    start: str | None,
    *,
    dims: int,
    guide: str,
    uses_guide: bool,
    tell: Callable[[str], None],
) -> Encoder:
    """The encoder of a run.

    Args:
        spec: architecture with its options; None takes that of ``start``.
        start: whose weights to begin with; None for random ones.
        dims: number of axes of the images.
        guide: what the guide channel holds, where ``spec`` does not say.
        uses_guide: False for an encoder without an input for the guide.
        tell: called with a sentence on what was taken over of ``start``.

    Raises:
        InputError: there is nothing to train in it; ``start`` is not there, has another number of axes, or fits in no
            tensor.
    """
    name, options = split_options(spec or "")
    own: dict[str, Any] = {"guide": guide, **({} if uses_guide else {"uses_guide": False})}
    if start is None:
        return _built(name, dims, {**own, **options})
    begun = load_encoder(start)
    if begun.dims != dims:
        raise InputError(
            f"--start-from {start}: this is an encoder of {begun.dims}D images, and the run's are {dims}D. Give --dims "
            f"{begun.dims}, or an encoder of {dims}D images."
        )
    if spec is None:
        config = {key: value for key, value in begun.config.items() if key not in ("name", "dims", "uses_guide")}
        name, options = begun.name, {**config, **own}
        # A trunk trained elsewhere without a guide gets an input for it, from nothing.
    encoder = _built(name, dims, {**own, **options})
    tell(f"Started from {start}: {take_over(encoder, begun, start)}.")
    return encoder


def _built(name: str, dims: int, options: dict[str, Any]) -> Encoder:
    encoder = build_encoder(name, dims=dims, **options)
    if not any(True for _ in encoder.parameters()):
        raise InputError(f"--encoder {name}: it has no weights that could be trained. Name another encoder.")
    return encoder


@torch.no_grad()
def take_over(encoder: Encoder, begun: Encoder, start: str) -> str:
    """Copy what fits of ``begun`` into ``encoder``; returns what was done in words.

    A first layer with other input channels is adapted: grey from colour is the sum over the colours (what a grey image
    repeated in all of them gave), colour from grey a third of it each, and a guide channel that was not there begins
    with weight 0.

    Raises:
        InputError: nothing fits.
    """
    old, new = begun.state_dict(), encoder.state_dict()
    kept, adapted, left = [], [], []
    for name, tensor in new.items():
        if name not in old:
            left.append(name)
        elif old[name].shape == tensor.shape and not _new_guide(tensor, encoder, begun):
            tensor.copy_(old[name])
            kept.append(name)
        elif (fitted := _adapted(old[name], tensor, encoder, begun)) is not None:
            tensor.copy_(fitted)
            adapted.append(name)
        else:
            left.append(name)
    weights = [name for name, parameter in encoder.named_parameters() if parameter.ndim > 1]
    if not any(name in kept for name in weights):
        raise InputError(
            f"--start-from {start}: not one tensor of {begun.title} fits {encoder.title}. Leave --encoder out to take "
            "its architecture, or give the same with another input only."
        )
    parts = [f"{len(kept)} of {len(new)} tensors as they are"]
    if adapted:
        what = []
        if encoder.image_channels != begun.image_channels:
            what.append(f"{begun.image_channels} image channels to {encoder.image_channels}")
        if encoder.uses_guide and not (begun.uses_guide and begun.guide != "none"):
            what.append("a guide channel from nothing")
        elif begun.uses_guide and not encoder.uses_guide:
            what.append("without its guide channel")
        parts.append(
            f"{len(adapted)} with its input adapted ({', '.join(what) or 'channels'}: {', '.join(adapted[:3])})"
        )
    if left:
        parts.append(f"{len(left)} at random ({', '.join(left[:3])}{', ...' if len(left) > 3 else ''})")
    unused = len(set(old) - set(new))
    if unused:
        parts.append(f"{unused} of its own left aside")
    return "; ".join(parts)


def _new_guide(weight: Tensor, encoder: Encoder, begun: Encoder) -> bool:
    """Whether this is a first layer whose input for the guide was there and never trained, and is used now."""
    inputs = encoder.image_channels + 1
    takes_both = encoder.uses_guide and begun.uses_guide and weight.ndim > 2 and weight.shape[1] == inputs
    return takes_both and encoder.guide != "none" and begun.guide == "none"


def _adapted(old: Tensor, new: Tensor, encoder: Encoder, begun: Encoder) -> Tensor | None:
    """A first layer's weight (out, in, *kernel) for other input channels; None where that is not what differs."""
    wants = encoder.image_channels + encoder.uses_guide
    had = begun.image_channels + begun.uses_guide
    if old.ndim < 3 or old.shape[0] != new.shape[0] or old.shape[2:] != new.shape[2:]:
        return None
    if old.shape[1] != had or new.shape[1] != wants:
        return None
    image = old[:, : begun.image_channels]
    if encoder.image_channels != begun.image_channels:
        image = image.sum(1, keepdim=True) / encoder.image_channels
        image = image.expand(-1, encoder.image_channels, *image.shape[2:])
    if not encoder.uses_guide:
        return image
    trained = begun.uses_guide and begun.guide != "none"
    guide = old[:, begun.image_channels :] if trained else torch.zeros_like(old[:, :1])
    return torch.cat([image, guide], dim=1)
