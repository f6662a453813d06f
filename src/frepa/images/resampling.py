"""To another voxel size: along each axis in turn, low-passed when shrinking, the affine kept right. 2D and 3D alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from frepa.errors import InputError
from frepa.images.geometry import ORDERS, resampling_weights
from frepa.images.scan import Header, Note, Scan, replace_scan

# Spacings closer than this, relatively, are the same
_SAME = 1e-3
#: What is said of a scan that cannot be brought to a spacing because its own is unknown.
UNKNOWN_SPACING = Note("kept at its own voxel size, which the file does not say")


def resampled_size(size: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """Extent at the wanted spacing: whole voxels that cover the same field of view as closely as can be."""
    return tuple(
        n if abs(have / want - 1) < _SAME else max(1, round(n * have / want))
        for n, have, want in zip(size, spacing, wanted)
    )


def resample(scan: Scan, spacing: float | Sequence[float], order: str = "bicubic") -> Scan:
    """A scan at another spacing.

    The field of view stays as it is, so the spacing reached differs from the one asked for by less than half a voxel
    over the whole extent; ``Scan.spacing`` and the affine say what was reached.

    Args:
        scan: its spacing must be known, or it comes back with a note.
        spacing: millimetres, one number or one per axis of ``S``.
        order: ``"bicubic"``, ``"bilinear"``, or ``"nearest"`` for labels. The first two are low-passed along axes that
            shrink, and never leave the range of the input.

    Returns:
        The values in the stored type, integers rounded.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    if scan.spacing is None:
        return replace_scan(scan, notes=(*scan.notes, UNKNOWN_SPACING))
    size = resampled_size(scan.size, scan.spacing, per_axis(spacing, len(scan.size)))
    if size == scan.size:
        return scan
    array = _resampled(scan.array, size, order)
    affine = None if scan.affine is None else resampled_affine(scan.affine, scan.size, size)
    reached = tuple(have * n / to for have, n, to in zip(scan.spacing, scan.size, size))
    return replace_scan(scan, array=array, affine=affine, spacing=reached)


def resampled_header(header: Header, spacing: float | Sequence[float]) -> Header:
    """What `resample` makes of a scan whose pixels were not read."""
    if header.spacing is None:
        return header
    size = resampled_size(header.size, header.spacing, per_axis(spacing, len(header.size)))
    affine = None if header.affine is None else resampled_affine(header.affine, header.size, size)
    reached = tuple(have * n / to for have, n, to in zip(header.spacing, header.size, size))
    return replace(header, size=size, affine=affine, spacing=reached)


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


def _resampled(array: np.ndarray, size: tuple[int, ...], order: str) -> np.ndarray:
    if order == "nearest":
        for axis, to in enumerate(size, start=1):
            n = array.shape[axis]
            if to != n:
                array = np.take(array, np.minimum(((np.arange(to) + 0.5) * n / to).astype(np.int64), n - 1), axis=axis)
        return array
    values = torch.from_numpy(np.array(array, np.float32))
    low, high = float(values.min()), float(values.max())
    for axis, to in enumerate(size, start=1):
        n = values.shape[axis]
        if to != n:
            weights = resampling_weights(n, to, order)
            values = torch.movedim(torch.tensordot(weights, values, dims=([1], [axis])), 0, axis)
    result = values.clamp_(low, high).contiguous().numpy()
    return np.rint(result).astype(array.dtype) if array.dtype.kind in "ui" else result
