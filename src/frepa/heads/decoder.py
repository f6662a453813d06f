"""Dense maps back to pixels: one light convolutional body for reconstruction and segmentation, in 2D and 3D.

One upsampling stage per factor 2 of the encoder's stride, a 3 x 3 convolution in each, no transformer (Frepa section
3.2).
On a ViT-B/16 map of a 512 x 512 image it has 1.2 M parameters, 1.3 % of the encoder's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepa.encoders.contract import per_axis
from frepa.errors import InputError

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_LINEAR_MODE = {2: "bilinear", 3: "trilinear"}
_MAX_WIDTH = 256
# Statistics are taken over at least this many channels: with fewer, the norm would wash out the image's brightness.
_CHANNELS_PER_NORM_GROUP = 8


class DenseHead(nn.Module):
    """Body shared by the heads that answer per pixel.

    A 1 x 1 projection, then per factor 2 of the stride a doubling of resolution and a 3 x 3 convolution, each with
    group norm and GELU; width halves as resolution doubles. A stride that is no power of two ends with a linear
    interpolation. Beside it, and added to it, one linear map turns every position straight into its own block of
    pixels: the convolutions alone have to relearn where inside a position a detail lies, stage by stage.

    Args:
        channels: channels of the dense map.
        stride: pixels per position of the dense map: one int, or one per axis.
        out_channels: channels of the answer.
        dims: 2 or 3.
        width: channels at full resolution; None is 16, or 8 for volumes that must be upsampled.
    """

    def __init__(
        self, channels: int, stride: int | tuple[int, ...], out_channels: int, dims: int, *, width: int | None = None
    ) -> None:
        super().__init__()
        self.dims = dims
        self.stride = per_axis(stride, dims)
        stages = [step.bit_length() - 1 for step in self.stride]
        count = max(stages)
        if width is None:
            width = 8 if dims == 3 and count else 16
        widths = [min(_MAX_WIDTH, width * 2**level) for level in range(count, -1, -1)]
        self.project = nn.Sequential(_CONV[dims](channels, widths[0], 1), _norm(widths[0]), nn.GELU())
        # An axis with fewer factors of two joins in the last stages, where the map is finest.
        factors = [tuple(2 if count - index <= steps else 1 for steps in stages) for index in range(count)]
        self.stages = nn.Sequential(
            *(_stage(dims, wide, narrow, factor) for wide, narrow, factor in zip(widths, widths[1:], factors))
        )
        if not count:
            self.stages.append(_refine(dims, widths[0]))
        self.interpolate = self.stride != tuple(2**steps for steps in stages)
        self.output = _CONV[dims](widths[-1], out_channels, 3, padding=1)
        self.direct = _CONV_TRANSPOSE[dims](channels, out_channels, kernel_size=self.stride, stride=self.stride)
        with torch.no_grad():  # from nothing, so that no grid of random blocks has to be unlearnt
            self.direct.weight.zero_()
            self.direct.bias.zero_()

    def forward(self, dense: Tensor, size: tuple[int, ...]) -> Tensor:
        """(B, channels, *s) to (B, out_channels, *size); ``size`` is the input's, before the encoder padded it.

        Values have no bounds (intensities that are meant to lie in [0, 1], or logits).
        """
        full = tuple(positions * step for positions, step in zip(dense.shape[2:], self.stride))
        if len(size) != self.dims or any(asked > there for asked, there in zip(size, full)):
            raise InputError(
                f"a dense map of {tuple(dense.shape[2:])} positions at stride {self.stride} covers {full} pixels, "
                f"and an output of {tuple(size)} is asked for."
            )
        x = self.stages(self.project(dense))
        if self.interpolate:
            x = F.interpolate(x, size=full, mode=_LINEAR_MODE[self.dims], align_corners=False)
        x = self.output(x) + self.direct(dense)
        return x[(..., *(slice(0, length) for length in size))]


class ReconstructionDecoder(DenseHead):
    """Dense map to image: ``decoder(dense, size) -> (B, out_channels, *size)``, compared with an image in [0, 1]."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // _CHANNELS_PER_NORM_GROUP), channels)


def _stage(dims: int, wide: int, narrow: int, factor: tuple[int, ...]) -> nn.Sequential:
    """Resolution times ``factor``, then a 3 x 3 convolution."""
    return nn.Sequential(_upsampling(dims, wide, narrow, factor), _norm(narrow), nn.GELU(), _refine(dims, narrow))


def _refine(dims: int, width: int) -> nn.Sequential:
    return nn.Sequential(_CONV[dims](width, width, 3, padding=1), _norm(width), nn.GELU())


def _upsampling(dims: int, wide: int, narrow: int, factor: tuple[int, ...]) -> nn.Module:
    """Transposed convolution whose kernel equals its stride: no overlap, hence none of the usual checkerboard.

    It starts as nearest-neighbour upsampling (one weight for all the pixels made from a position), so that no grid is
    there to be unlearnt either.
    """
    layer: Any = _CONV_TRANSPOSE[dims](wide, narrow, kernel_size=factor, stride=factor)
    with torch.no_grad():
        corner = layer.weight.flatten(2)[:, :, :1].view(wide, narrow, *(1,) * dims).clone()
        # The default scale counts the kernel's elements as inputs; here every output has ``wide`` inputs only.
        corner *= math.sqrt(narrow / wide * math.prod(factor))
        layer.weight.copy_(corner.expand_as(layer.weight))
    return layer
