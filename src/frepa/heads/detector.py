"""Detection head: at every position of a grid, how likely each class is there and the box around it; no anchors.

One level, since the encoders give one map. The body is that of the other dense heads, so that every encoder is judged
with the same kind of head; boxes are answered as in FCOS (Tian et al. 2019) but as a shifted centre and a logarithmic
extent per axis, so that findings smaller than a cell of the grid, thin along one axis as nodules in thick slices are,
can be answered too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepa.encoders.contract import per_axis
from frepa.heads.decoder import DenseHead
from frepa.heads.standardise import Standardise

_WIDTH = 32
_COARSEST = 8
#: Probability of a finding anywhere before training (focal loss, Lin et al. 2017).
PRIOR = 0.01
# What a cell can answer: centres up to two cells away, extents from a twentieth to twenty times (exp(3)) the typical
# one. Bounds are approached smoothly: a hard one has no gradient beyond it, and a box that went there stays there.
_FARTHEST, _LARGEST = 2.0, 3.0
_REACH = 0.95
_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


class DetectionHead(nn.Module):
    """Dense map to scores and boxes on a grid.

    Args:
        channels: channels of the dense map.
        stride: pixels per position of the dense map: one int, or one per axis.
        classes: number of classes, without a background.
        dims: 2 or 3.
        step: pixels per cell of the grid, per axis; each a power of two times or a part of the stride
            (see :func:`grid_step`).
        extent: typical extent of a finding per axis, in pixels: what the head answers before it is trained.
        width: channels of the body at the grid's resolution.
        before: channels of what is standardised before blocks that train with the head make the dense map.
    """

    extent: Tensor
    _cell: Tensor

    def __init__(
        self,
        channels: int,
        stride: int | tuple[int, ...],
        classes: int,
        dims: int,
        *,
        step: Sequence[int],
        extent: Sequence[float],
        width: int = _WIDTH,
        before: int | None = None,
    ) -> None:
        super().__init__()
        self.before = None if before is None else Standardise(before)
        self.standardise = Standardise(channels)
        strides = per_axis(stride, dims)
        self.dims, self.classes, self.step = dims, classes, per_axis(tuple(step), dims)
        down = tuple(max(1, cell // own) for cell, own in zip(self.step, strides))
        up = tuple(max(1, own // cell) for cell, own in zip(self.step, strides))
        if any(own * fewer != cell * more for own, cell, fewer, more in zip(strides, self.step, down, up)):
            raise ValueError(f"a grid of {self.step} pixels cannot be made from a map of stride {strides}")
        self.down = down
        # A map that is finer than the grid is gathered cell by cell.
        self.gather = _CONV[dims](channels, max(width, channels), down, stride=down) if max(down) > 1 else nn.Identity()
        body = max(width, channels) if max(down) > 1 else channels
        self.body = DenseHead(body, up, classes + 2 * dims, dims, width=width)
        with torch.no_grad():
            bias = self.body.output.bias
            assert bias is not None
            bias.zero_()
            bias[:classes] = -math.log((1 - PRIOR) / PRIOR)
        self.register_buffer("extent", torch.as_tensor(extent, dtype=torch.float32))
        # On the device beforehand, so that no step waits for a copy; known from the description, so not saved.
        self.register_buffer("_cell", torch.as_tensor(self.step, dtype=torch.float32), persistent=False)

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Cells per axis over an image of ``size`` pixels."""
        return tuple(-(-n // cell) for n, cell in zip(size, self.step))

    def kernels(self) -> list[nn.Parameter]:
        """Weights that Muon moves: those of the convolutions.

        Not of the linear map beside them, which Muon would move alike in all its directions, of which few tell of a
        finding: boxes of nodules then had an IoU of 39 instead of 56 % (docs/results/detection.md).
        """
        body = self.body
        return [*body.project.parameters(), *body.stages.parameters(), *body.output.parameters()]

    def forward(self, dense: Tensor, size: tuple[int, ...]) -> Tensor:
        """(B, channels, *s) to (B, classes + 2 dims, *grid(size)), float32: logits of the classes, then the box.

        A box is the shift of its centre in cells, then the logarithm of its extent over the typical one, per axis, each
        before it is bounded.
        """
        dense = self.standardise(dense)
        missing = [-n % cell for n, cell in zip(dense.shape[2:], self.down)]
        if any(missing):
            dense = F.pad(dense, [n for after in reversed(missing) for n in (0, after)])
        return self.body(self.gather(dense), self.grid(size)).float()

    def centres(self, grid: Sequence[int], device: torch.device) -> Tensor:
        """Middle of every cell, (prod(grid), dims) float32, in pixels (pixel i covers i to i + 1)."""
        axes = [(torch.arange(n, device=device) + 0.5) * cell for n, cell in zip(grid, self.step)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)

    def corners(self, answers: Tensor) -> Tensor:
        """Boxes (B, 2 dims, *grid) as ``forward`` answers them, to corners (B, prod(grid), 2 dims) in pixels."""
        middles = self.centres(answers.shape[2:], answers.device)
        flat = answers.flatten(2).transpose(1, 2)
        middle = middles + _bounded(flat[..., : self.dims], _FARTHEST) * self._cell
        half = self.extent / 2 * _bounded(flat[..., self.dims :], _LARGEST).exp()
        return torch.cat([middle - half, middle + half], -1)

    def answers_for(self, corners: Tensor, middles: Tensor) -> Tensor:
        """What the cells with these middles would have to answer for boxes: the inverse of ``corners``.

        Args:
            corners: (..., 2 dims) in pixels, with an extent above 0.
            middles: (..., dims) in pixels.

        Returns:
            (..., 2 dims).
        """
        low, high = corners[..., : self.dims], corners[..., self.dims :]
        shift = ((low + high) / 2 - middles) / self._cell
        return torch.cat([_unbounded(shift, _FARTHEST), _unbounded(((high - low) / self.extent).log(), _LARGEST)], -1)


def _bounded(x: Tensor, limit: float) -> Tensor:
    """``x`` where it is small, and never beyond ``limit``."""
    return limit * torch.tanh(x / limit)


def _unbounded(y: Tensor, limit: float) -> Tensor:
    """The number :func:`_bounded` makes ``y`` of; of what is out of reach, or nearly, the nearest that is not."""
    return limit * torch.atanh((y / limit).clamp(-_REACH, _REACH))


def grid_step(stride: int | tuple[int, ...], extents: Sequence[float], dims: int) -> tuple[int, ...]:
    """Pixels per cell for findings whose smaller ones have these extents: at most half of one, and at most 8.

    Along every axis the encoder's stride, doubled or halved as often as it takes; a stride that cannot be halved any
    more stays.
    """
    steps = []
    for own, extent in zip(per_axis(stride, dims), extents):
        most = min(_COARSEST, max(1.0, extent / 2))
        while own > most and own % 2 == 0:
            own //= 2
        while own * 2 <= most:
            own *= 2
        steps.append(own)
    return tuple(steps)
