"""The one contract that every encoder keeps, whatever its origin and number of axes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from frepa.corruption.guide import hessian_guide, luminance, parse_guide
from frepa.encoders.embedding import PatchEmbedding, hidden
from frepa.encoders.options import join_options
from frepa.errors import InputError


class Features(NamedTuple):
    """What an encoder returns.

    ``dense`` (B, channels, *ceil(S / stride)): the finest map, for heads that answer per pixel.
    ``embedding`` (B, embedding_channels, *s): the map that is pooled for a label and compared between views.
    Both are floating point without bounds. In a plain trunk they are the same tensor; in a U-shaped trunk ``dense`` is
    the last feature map and ``embedding`` the bottleneck.
    """

    dense: Tensor
    embedding: Tensor


class StageShape(NamedTuple):
    """channels of a map, and input pixels per position, one number per axis."""

    channels: int
    stride: tuple[int, ...]


def quarters(depth: int) -> list[int]:
    """Blocks (0-based) after which a plain trunk of ``depth`` blocks is looked at: 1/4, 1/2, 3/4 of them, and all.

    Fewer where the trunk is shallower than four blocks.
    """
    return sorted({max(1, round(depth * part / 4)) - 1 for part in (1, 2, 3, 4)})


def per_axis(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    """One number per spatial axis: ``per_axis(16, 2)`` is ``(16, 16)``; a tuple is checked and returned."""
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims:
        raise InputError(f"expected one number or {dims} numbers (one per spatial axis), found {values}.")
    return values


class Encoder(nn.Module, ABC):
    """Images to feature maps: ``encoder(x (B, in_channels, *S)) -> Features``, S = (H, W) or (D, H, W).

    Input channels are the image channels in [0, 1], then one guide channel. Any size of at least one pixel is taken:
    the input is padded with zeros at the end of each axis to a multiple of ``size_multiple``, and the features cover
    the padded input, so that a head crops its output to the input's size.

    Attributes:
        name: registered name, or ``timm:NAME``.
        dims: number of spatial axes, 2 or 3.
        image_channels: image channels without the guide (3 in 2D and 1 in 3D unless asked otherwise).
        in_channels: always ``image_channels + 1``. A trunk that was trained elsewhere without a guide still takes the
            channel, and drops it, so that callers treat all encoders alike.
        channels: channels of ``Features.dense``.
        embedding_channels: channels of ``Features.embedding``.
        stride: input pixels per position of ``dense``, one int, or one per axis where the axes differ.
        size_multiple: the multiple the input is padded to, one int, or one per axis.
        guide: what the guide channel holds: a kind of ``frepa.corruption.guide.GUIDES``, polarity included, with its
            scales where they are not the usual ones ("frangi_dark:1-2-3"); "none" is zeros.
        intensity: what the image channels must be scaled to; "unit" is [0, 1].
        options: the keyword options it was built with, plain values only: they rebuild it (see ``files.py``).
        uses_guide: False where the trunk has no input for the guide channel, and it is dropped.
        takes_tokens: whether ``tokens`` can be asked for.
        patch_embedding: the layer that turns patches into vectors, or None where there is none to hide places in.
        stacks: volumes are stacks of any number of slices, each brought to one size: ``frozen_part`` sees them one by
            one, and blocks that relate them (``transform``) train with every head (Frepa section 3.3.2).
    """

    takes_tokens = False
    stacks = False

    def __init__(
        self,
        *,
        name: str,
        dims: int,
        image_channels: int,
        guide: str,
        channels: int,
        embedding_channels: int,
        stride: int | tuple[int, ...],
        size_multiple: int | tuple[int, ...],
        options: dict[str, Any],
        uses_guide: bool = True,
    ) -> None:
        super().__init__()
        check_guide(guide)
        self.name = name
        self.dims = dims
        self.image_channels = image_channels
        self.guide = guide if uses_guide else "none"
        self.uses_guide = uses_guide
        self.channels = channels
        self.embedding_channels = embedding_channels
        self.stride = stride
        self.size_multiple = size_multiple
        self.intensity = "unit"
        self.options = options if uses_guide else {**options, "uses_guide": False}
        self.recompute = False

    @property
    def in_channels(self) -> int:
        """Image channels plus the guide channel."""
        return self.image_channels + 1

    @property
    def config(self) -> dict[str, Any]:
        """What ``build_encoder(**config)`` needs to build this architecture again; plain JSON values."""
        return {
            "name": self.name,
            "dims": self.dims,
            "image_channels": self.image_channels,
            "guide": self.guide,
            **self.options,
        }

    @property
    def title(self) -> str:
        """The architecture in words, for results."""
        return self.name

    @property
    def untrained(self) -> str:
        """The specification of the same architecture at random initialisation, which is the floor."""
        known = {name: value for name, value in self.options.items() if value is not None}
        return join_options(f"random:{self.name}", {**known, "guide": self.guide})

    @property
    def patch_embedding(self) -> PatchEmbedding | None:
        """The layer that turns patches into vectors, or None."""
        return None

    def masked(self, x: Tensor, mask: Tensor, token: Tensor) -> Features:
        """Features of (B, in_channels, *S) with ``token`` in place of every patch that ``mask`` (B, 1, *S) touches.

        For encoders with a ``patch_embedding``, of whose channels the token has one each.
        """
        self.check_input(x)
        assert self.patch_embedding is not None
        with hidden(self.patch_embedding, self.padded(mask.to(x.dtype)), token):
            return self.extract(self.padded(x))

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Vectors (B, K, channels) of some patches of (B, in_channels, *S), which see each other alone.

        Args:
            keep: (B, K) int64, numbers of patches in row-major order over the padded input; None keeps all, and gives
                what ``dense`` holds.

        Raises:
            InputError: the architecture is no plain vision transformer.
        """
        raise InputError(
            f"encoder {self.name} cannot leave patches out: only plain vision transformers can (vit_..., vit3d_...)."
        )

    @abstractmethod
    def extract(self, x: Tensor) -> Features:
        """Features of an input (B, in_channels, *S) whose axes are already multiples of ``size_multiple``."""

    def forward(self, x: Tensor) -> Features:
        """Features of (B, in_channels, *S), any S. Raises InputError on a wrong number of axes or channels."""
        self.check_input(x)
        return self.extract(self.padded(x))

    @property
    def stage_shapes(self) -> tuple[StageShape, ...]:
        """Channels and stride of every map of ``stages``, in its order; the last is that of ``Features.dense``."""
        return (StageShape(self.channels, per_axis(self.stride, self.dims)),)

    def extract_stages(self, x: Tensor) -> list[Tensor]:
        """The maps of an input whose axes are already multiples of ``size_multiple``; see ``stages``."""
        return [self.extract(x).dense]

    def stages(self, x: Tensor) -> list[Tensor]:
        """Maps along the trunk for (B, in_channels, *S), in the order they are computed; the last is ``dense``.

        One per stage of a hierarchical trunk; at a quarter, half, three quarters and all of a plain trunk's depth; the
        bottleneck and every step up of a U-shaped one. A trunk that shows no more gives ``dense`` alone.
        """
        self.check_input(x)
        return self.extract_stages(self.padded(x))

    def padded(self, x: Tensor) -> Tensor:
        """(B, C, *S) with zeros at the end of each axis up to a multiple of ``size_multiple``."""
        return pad_to_multiple(x, per_axis(self.size_multiple, self.dims))

    def without_unused(self, x: Tensor) -> Tensor:
        """(B, in_channels, *S) without the guide channel where the trunk has no input for it."""
        return x if self.uses_guide else x[:, : self.image_channels]

    def check_input(self, x: Tensor) -> None:
        """Raise InputError unless ``x`` is (B, in_channels, *S) with this encoder's number of axes."""
        if x.ndim != self.dims + 2 or x.shape[1] != self.in_channels:
            raise InputError(
                f"encoder {self.name} takes a batch of {self.dims}D images with {self.in_channels} channels "
                f"({self.image_channels} of image and 1 of guide), found a tensor of shape {tuple(x.shape)}."
            )

    def prepare_input(self, image: Tensor, guide: Tensor | None = None) -> Tensor:
        """Put image and guide into the channels this encoder takes.

        Args:
            image: (B, 1 or 3, *S), values in [0, 1]. Grey is repeated to ``image_channels``; colour becomes its
                luminance where the encoder takes one channel.
            guide: (B, 1, *S) from ``make_guide`` of the clean image; not read when ``self.guide`` is "none".

        Returns:
            (B, in_channels, *S), dtype of ``image``.
        """
        found = image.shape[1]
        if found == self.image_channels:
            pass
        elif found == 1:
            image = image.expand(-1, self.image_channels, *image.shape[2:])
        elif found == 3 and self.image_channels == 1:
            image = luminance(image).unsqueeze(1).to(image.dtype)
        else:
            raise InputError(
                f"encoder {self.name} takes {self.image_channels}-channel images (or grey ones, which are repeated), "
                f"found {found} channels. Build the encoder with image_channels={found}."
            )
        if self.guide == "none":
            guide = image.new_zeros(()).expand(image.shape[0], 1, *image.shape[2:])
        elif guide is None:
            raise InputError(f"encoder {self.name} needs its {self.guide} guide channel, and none was given.")
        return torch.cat([image, guide.to(image.dtype)], dim=1)

    def make_guide(self, image: Tensor) -> Tensor:
        """The guide channel (B, 1, *S) of clean images (B, C, *S) in [0, 1], of the kind this encoder was trained with.

        Zeros where the kind is "none". A slice transfer filters every slice for itself, as its 2D encoder saw it.
        """
        return hessian_guide(image, kind=self.guide)

    @property
    def frozen_part(self) -> Encoder:
        """What a head on a frozen encoder leaves as it is: all of it, or of ``stacks`` the encoder of one slice."""
        return self

    def encode_frozen(self, x: Tensor) -> Features:
        """What ``frozen_part`` makes of (B, in_channels, *S); of ``stacks`` its maps, slice by slice."""
        return self(x)

    def transform(self, features: Tensor, mask: Tensor | None = None) -> Features:
        """What trains with every head makes of the frozen part's dense map: nothing, unless of ``stacks``.

        ``mask`` (B, D) bool is False at slices that pad a shorter stack.
        """
        return Features(features, features)

    def freeze(self) -> Encoder:
        """Evaluation mode, and no gradient for ``frozen_part``, which is nearly always all of it; returns itself.

        Parameters that still ask for a gradient afterwards belong into the head's optimizer.
        """
        return self.eval().requires_grad_(False)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory while training: recompute activations in the backward pass, block by block."""
        self.recompute = enable

    def run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """``block(*inputs)``, recomputed in the backward pass where checkpointing is on."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def check_guide(guide: str) -> None:
    """Raise InputError unless ``guide`` is a guide that ``hessian_guide`` makes."""
    parse_guide(guide)


def pad_to_multiple(x: Tensor, multiple: tuple[int, ...]) -> Tensor:
    """Zeros at the end of each spatial axis of (B, C, *S) up to the next multiple; no copy when there is none."""
    missing = [-size % step for size, step in zip(x.shape[2:], multiple)]
    if not any(missing):
        return x
    # F.pad counts from the last axis backwards, (before, after) each.
    return F.pad(x, [amount for after in reversed(missing) for amount in (0, after)])
