"""Random augmentation of a batch on its device: flips, rotation, affine, histogram shift; the same code in 2D and 3D.

Flips, rotation and affine are composed into one matrix per image, so an image is resampled once or, where it was only
flipped, not at all. Every number is drawn on the host from the row's key, so a row's augmentation does not depend on
the batch it is in, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frepa.draws import Draws
from frepa.errors import InputError

Interpolation = Literal["auto", "linear", "cubic"]


@dataclass(frozen=True)
class Augmentation:
    """The paper's augmentations (Frepa 4.1 names them and gives no ranges: the ranges and probabilities are ours).

    ``flip``: probability of a flip along each axis. ``rotation``: probability of a rotation, by up to
    ``max_rotation`` degrees in each plane of axes. ``affine``: probability of scaling by a factor within ``1 +-
    max_scale`` and shearing by up to ``max_shear`` (pixels per pixel) per axis or plane, and shifting by up to
    ``max_shift`` of each axis's length. ``histogram``: probability of a monotone change of intensity through
    ``control_points`` points. ``interpolation``: "auto" is cubic in 2D and linear in 3D; cubic exists in 2D alone.

    Raises InputError for a probability outside [0, 1] or a range that would fold or empty the image.
    """

    flip: float = 0.5
    rotation: float = 0.5
    max_rotation: float = 15.0
    affine: float = 0.5
    max_scale: float = 0.1
    max_shear: float = 0.1
    max_shift: float = 0.05
    histogram: float = 0.5
    control_points: int = 10
    interpolation: Interpolation = "auto"

    def __post_init__(self) -> None:
        for name in ("flip", "rotation", "affine", "histogram"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"The probability {name} is {getattr(self, name)}; give a number from 0 to 1.")
        for name, limit in (("max_rotation", 180.0), ("max_scale", 0.9), ("max_shear", 0.9), ("max_shift", 1.0)):
            if not 0 <= getattr(self, name) <= limit:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 0 to {limit:g}.")
        if self.control_points < 3:
            raise InputError(f"control_points is {self.control_points}; give 3 or more (the two ends stay fixed).")
        if self.interpolation not in ("auto", "linear", "cubic"):
            raise InputError(f"interpolation is {self.interpolation!r}; give auto, linear or cubic.")

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """``x``: (B, C, *S) float in [0, 1]. Returns it augmented, same shape, dtype and range.

        ``x`` is never written to, and is itself returned where nothing is drawn. All channels of an image are treated
        alike. The intensity changes first, so what lies outside the image stays 0. Axes of length 1 take no part in
        rotation and affine.
        """
        return self._move(self._shift_histogram(x, draws), draws)

    def follow(self, mask: Tensor, draws: Draws) -> Tensor:
        """A mask (B, 1, *S), bool, moved as the images of the same draws are; False outside the image."""
        return self._move(mask.float(), draws) > 0.5

    def matrices(self, shape: Sequence[int], draws: Draws) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is drawn for the geometry of images of spatial ``shape``, each of n axes.

        Returns ``flips`` (B, n) bool; ``warps`` (B,) bool, the rows that draw a rotation or an affine; and ``matrices``
        (B, n, n + 1) float64 for :func:`resample`, flips included.
        """
        shape = tuple(shape)
        axes = [axis for axis, length in enumerate(shape) if length > 1]
        planes = list(combinations(axes, 2))

        def within(limit: float, kind: str, *where: int) -> np.ndarray:
            return limit * (2 * _uniform(draws, kind, *where) - 1)

        flips = np.stack([_uniform(draws, "flip", axis) < self.flip for axis in range(len(shape))], axis=1)
        turned = _uniform(draws, "rotation") < self.rotation
        bent = _uniform(draws, "affine") < self.affine
        forward = np.tile(np.eye(len(shape)), (len(flips), 1, 1))
        shift = np.zeros((len(flips), len(shape)))
        for i, j in planes:
            angle = np.radians(within(self.max_rotation, "angle", i, j)) * turned
            plane = np.tile(np.eye(len(shape)), (len(flips), 1, 1))
            plane[:, i, i] = plane[:, j, j] = np.cos(angle)
            plane[:, j, i] = np.sin(angle)
            plane[:, i, j] = -np.sin(angle)
            forward = forward @ plane
        affine = np.tile(np.eye(len(shape)), (len(flips), 1, 1))
        for axis in axes:
            affine[:, axis, axis] += within(self.max_scale, "scale", axis) * bent
            shift[:, axis] = within(self.max_shift, "shift", axis) * shape[axis] * bent
        for i, j in planes:
            affine[:, i, j] = within(self.max_shear, "shear", i, j) * bent
        # The content is flipped, then scaled and sheared, turned and shifted; sampling goes the other way.
        inverse = np.where(flips, -1.0, 1.0)[:, :, None] * np.linalg.inv(forward @ affine)
        offset = -inverse @ shift[:, :, None]
        return flips, turned | bent, np.concatenate([inverse, offset], axis=2)

    def _move(self, x: Tensor, draws: Draws) -> Tensor:
        flips, warps, matrices = self.matrices(x.shape[2:], draws)
        out = x
        rows = np.flatnonzero(warps)
        if len(rows):
            out = _replace(
                x, out, rows, lambda images: resample(images, matrices[rows], self.interpolation).clamp_(0, 1)
            )
        # Rows that are only flipped keep their exact values: one group for each of the few combinations of axes.
        for pattern in np.unique(flips, axis=0):
            axes = [int(axis) + 2 for axis in np.flatnonzero(pattern)]
            rows = np.flatnonzero((flips == pattern).all(1) & ~warps)
            if axes and len(rows):
                out = _replace(x, out, rows, partial(torch.flip, dims=axes))
        return out

    def _shift_histogram(self, x: Tensor, draws: Draws) -> Tensor:
        rows = np.flatnonzero(_uniform(draws, "histogram") < self.histogram)
        if not len(rows):
            return x
        points = np.tile(np.linspace(0.0, 1.0, self.control_points), (len(rows), 1))
        for k in range(1, self.control_points - 1):
            share = _uniform(draws, "control", k)[rows]
            points[:, k] = points[:, k - 1] + share * (points[:, k + 1] - points[:, k - 1])
        return _replace(x, x, rows, lambda images: map_intensity(images, points))


def resample(x: Tensor, matrices: np.ndarray, interpolation: Interpolation = "auto") -> Tensor:
    """Each image resampled once through its own affine matrix; zeros outside the image.

    ``x``: (B, C, *S) float. ``matrices``: (B, n, n + 1) on the host, in pixels about the centre of the image: output
    pixel ``p`` takes the value at ``M (p - c) + m + c`` with ``M = matrices[:, :, :n]``, ``m = matrices[:, :, n]``
    and ``c = (S - 1) / 2``. ``interpolation``: "linear", "cubic" (2D alone; may overshoot the range) or "auto", cubic
    in 2D and linear in 3D. Returns (B, C, *S) in the dtype of ``x``, computed in float32.
    """
    shape = np.array(x.shape[2:], dtype=np.float64)
    n = len(shape)
    if interpolation == "cubic" and n != 2:
        raise InputError("Cubic interpolation of augmentation exists in 2D alone: give linear or auto for volumes.")
    cubic = n == 2 and interpolation != "linear"
    # To grid_sample's coordinates, in which the image spans [-1, 1] along each axis (pixel p at 2 (p - c) / length).
    scaled = np.concatenate([matrices[:, :, :n] * shape, 2 * matrices[:, :, n:]], axis=2) / shape[:, None]
    theta = torch.from_numpy(scaled.astype(np.float32)).to(x.device, non_blocking=True)
    # Sums and not affine_grid: that is a matrix product, in which TF32 or autocast would misplace pixels.
    where = []
    for i in reversed(range(n)):  # grid_sample wants the last axis first
        position = theta[:, i, n].view(-1, *[1] * n)
        for j, length in enumerate(x.shape[2:]):
            steps = (2 * torch.arange(length, device=x.device) + 1 - length) / length
            position = position + theta[:, i, j].view(-1, *[1] * n) * steps.view(-1, *[1] * (n - 1 - j))
        where.append(position)
    grid = torch.stack(where, dim=-1)
    # float32 in, so float32 throughout: autocast gives grid_sample the wider of its inputs' types.
    moved = F.grid_sample(x.float(), grid, mode="bicubic" if cubic else "bilinear", align_corners=False)
    return moved.to(x.dtype)


def map_intensity(x: Tensor, points: np.ndarray) -> Tensor:
    """Each image's intensities through its own piecewise-linear map, as MONAI's ``RandHistogramShift`` applies it.

    ``x``: (B, C, *S) float. ``points``: (B, K) on the host, ascending from 0 to 1: the values at K equal steps of the
    image's own range, taken over all its channels. The range stays as it is; a constant image is returned unchanged.
    """
    flat = x.flatten(1).float()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = high - low
    table = torch.from_numpy(points.astype(np.float32)).to(x.device, non_blocking=True)
    last = points.shape[1] - 1
    position = ((flat - low) * (last / torch.where(span > 0, span, 1.0))).clamp_(0, last)
    index = position.long().clamp_(max=last - 1)
    mapped = table.gather(1, index).lerp_(table.gather(1, index + 1), position.sub_(index))
    return mapped.mul_(span).add_(low).view(x.shape).to(x.dtype)


def _uniform(draws: Draws, kind: str, *where: int) -> np.ndarray:
    """One number in [0, 1) for each row: (B,) float64."""
    return np.array(draws.host_uniform(".".join(["augment", kind, *map(str, where)])))


def _replace(x: Tensor, out: Tensor, rows: np.ndarray, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``out`` with ``rows`` replaced by the change of those of ``x``; ``x`` itself is never written to."""
    if len(rows) == len(x):
        return change(x)
    index = torch.from_numpy(rows).to(x.device, non_blocking=True)
    out = x.clone() if out is x else out
    return out.index_copy_(0, index, change(x.index_select(0, index)))
