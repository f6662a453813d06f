"""Images to one size: resize with the aspect kept and zero padding, or crop at native resolution. 2D and 3D alike.

Also extent and affine at another voxel size; the field of view stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from frepa.errors import InputError

ORDERS = ("bicubic", "bilinear", "nearest")
# Spacings closer than this, relatively, are the same
_SAME = 1e-3


@dataclass(frozen=True)
class Placement:
    """Where a resized image lies in its padded frame: extent and first index per axis, in pixels."""

    inner: tuple[int, ...]
    offset: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(start, start + n) for start, n in zip(self.offset, self.inner))


def placement(shape: Sequence[int], size: Sequence[int]) -> Placement:
    """The largest extent with the proportions of ``shape`` that fits into ``size``, centred."""
    factor = min(to / n for n, to in zip(shape, size))
    inner = tuple(min(to, max(1, round(n * factor))) for n, to in zip(shape, size))
    return Placement(inner, tuple((to - n) // 2 for n, to in zip(inner, size)))


def resize_pad(
    array: np.ndarray, size: Sequence[int], order: str = "bicubic", *, proportions: Sequence[int] | None = None
) -> np.ndarray:
    """Resize with the aspect kept, centred on zeros.

    Args:
        array: ``(C, *S)``; float32 in [0, 1] for ``"bicubic"`` and ``"bilinear"``, any type for ``"nearest"``.
        size: extent per axis of the result.
        order: ``"bicubic"`` (Keys, a = -0.5), ``"bilinear"``, both low-passed when shrinking so that fine texture does
            not alias, or ``"nearest"`` for label maps.
        proportions: extent per axis whose aspect is kept, the array's own when None.

    Returns:
        ``(C, *size)``; float32 in [0, 1], or the input's type for ``"nearest"``.
    """
    size = tuple(size)
    place = placement(array.shape[1:] if proportions is None else proportions, size)
    inner = resize(array, place.inner, order)
    if place.inner == size:
        return inner
    framed = np.zeros((array.shape[0], *size), inner.dtype)
    framed[(slice(None), *place.slices)] = inner
    return framed


def resize(array: np.ndarray, size: Sequence[int], order: str = "bicubic") -> np.ndarray:
    """``(C, *S)`` to ``(C, *size)`` without keeping the aspect; types and range as in `resize_pad`."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    size = tuple(size)
    if tuple(array.shape[1:]) == size:
        return array
    if order == "nearest":
        for axis, to in enumerate(size, start=1):
            n = array.shape[axis]
            array = np.take(array, np.minimum(((np.arange(to) + 0.5) * n / to).astype(np.int64), n - 1), axis=axis)
        return array
    if not array.flags.writeable:
        array = array.copy()
    image = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    lead = image.shape[:-2]
    if tuple(image.shape[-2:]) != size[-2:]:
        # Separable: the last two axes here, any leading one by a small matrix
        planes = image.reshape(1, -1, *image.shape[-2:])
        image = _resampled(planes, size[-2:], order).reshape(*lead, *size[-2:])
    for axis, to in enumerate(size[:-2], start=1):
        if image.shape[axis] != to:
            weights = resampling_weights(image.shape[axis], to, order)
            image = torch.movedim(torch.tensordot(weights, image, dims=([1], [axis])), 0, axis)
    return image.clamp_(0.0, 1.0).contiguous().numpy()


def resampling_weights(n: int, to: int, order: str) -> torch.Tensor:
    """``(to, n)`` float32 resampling matrix of one axis: what the resampling does to unit impulses."""
    return _resampled(torch.eye(n)[None, None], (to, n), order)[0, 0]


def _resampled(planes: torch.Tensor, size: Sequence[int], order: str) -> torch.Tensor:
    """``(1, N, H, W)`` to ``(1, N, *size)``, antialiased."""
    if size[1] == 1 and size[0] > 1:
        # PyTorch (2.15 still) mixes up rows when the result is one pixel wide; one pixel high is right
        return _resampled(planes.mT, (1, size[0]), order).mT
    return functional.interpolate(planes.contiguous(), size, mode=order, antialias=True, align_corners=False)


def crop_at(array: np.ndarray, size: Sequence[int], where: Sequence[float]) -> np.ndarray:
    """Cut ``size`` out of ``(C, *S)`` at native resolution, centred on zeros along axes that are shorter.

    Args:
        array: any type.
        size: extent per axis of the result.
        where: per axis a number in [0, 1]: 0 the first possible position, 0.5 the centre; uniform numbers give
            uniform positions.

    Returns:
        ``(C, *size)`` of the input's type; a view where no padding was needed.
    """
    size = tuple(size)
    starts = crop_starts(array.shape[1:], size, where)
    cut = array[(slice(None), *(slice(start, start + to) for start, to in zip(starts, size)))]
    if cut.shape[1:] == size:
        return cut
    framed = np.zeros((array.shape[0], *size), array.dtype)
    offsets = [(to - n) // 2 for n, to in zip(cut.shape[1:], size)]
    framed[(slice(None), *(slice(start, start + n) for start, n in zip(offsets, cut.shape[1:])))] = cut
    return framed


def crop_starts(shape: Sequence[int], size: Sequence[int], where: Sequence[float]) -> list[int]:
    """First index per axis of what `crop_at` cuts out of an image of extent ``shape``; 0 along shorter axes."""
    spare = [n - to for n, to in zip(shape, size)]
    return [min(int(place * (room + 1)), room) if room > 0 else 0 for room, place in zip(spare, where)]


def resampled_size(size: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """Extent at the wanted spacing: whole voxels that cover the same field of view as closely as can be."""
    return tuple(
        n if abs(have / want - 1) < _SAME else max(1, round(n * have / want))
        for n, have, want in zip(size, spacing, wanted)
    )


def per_axis(spacing: float | Sequence[float], axes: int) -> tuple[float, ...]:
    """One number per axis, from one for all or the numbers themselves."""
    values = (float(spacing),) * axes if isinstance(spacing, int | float) else tuple(float(value) for value in spacing)
    if len(values) != axes or not all(0 < value < math.inf for value in values):
        raise InputError(f"The spacing {spacing} must be {axes} positive numbers in millimetres, or one for all axes.")
    return values


def resampled_affine(affine: np.ndarray, size: Sequence[int], to: Sequence[int]) -> np.ndarray:
    """The affine once ``size`` voxels have become ``to`` over the same field of view (2D: its first two columns)."""
    factors = np.array([n / m for n, m in zip(size, to)])
    axes = len(factors)
    changed = np.array(affine, np.float64)
    # The first voxel's centre moves, its outer edge stays
    changed[:3, 3] += changed[:3, :axes] @ ((factors - 1) / 2)
    changed[:3, :axes] *= factors
    return changed
