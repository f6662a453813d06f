"""Which part of a scan a sample sees: a crop of the scan brought to a spacing, read without reading the rest.

The grid a scan is brought to covers the same field of view (`frepa.images.geometry.resampled_size`): voxel ``i`` of
an axis of ``n`` voxels that becomes ``m`` lies at ``(i + 1/2) m / n - 1/2``. A voxel of the grid depends on a few
voxels of the scan around it and on no others: that is what `Crop.start` and `Crop.size` are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from frepa.errors import InputError
from frepa.images.geometry import crop_starts, resampled_affine, resampled_size
from frepa.images.sampling import uniform
from frepa.images.scan import HU, Scan

#: Voxels looked at one by one before the whole scan is: where 5 % of it are foreground, one search in 27 goes on.
TRIES = 64
#: Hounsfield units above which CT is foreground: half way between air and water.
FOREGROUND_HU = -500.0
#: In every other scan: share of the way from the value that becomes 0 to the one that becomes 1.
FOREGROUND_SHARE = 0.1
# Streams of `sampling.uniform`; the loader has its own below these
_DECISION_STREAM, _LAST_STREAM, _SEARCH_STREAM = 16, 17, 32


@dataclass(frozen=True)
class Crop:
    """A crop per axis of ``S``.

    grid: extent of the whole scan at the wanted spacing.
    first, inner: where the crop's content begins in that grid, and how far it reaches; less than the crop's own size
        where the grid is smaller, and then zeros are put evenly around it.
    start, size: the part of the scan, in its own voxels, that the content is computed from.
    """

    scan: tuple[int, ...]
    grid: tuple[int, ...]
    first: tuple[int, ...]
    inner: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]

    def resample(self, part: np.ndarray) -> np.ndarray:
        """``(C, *size)`` float32, what was read, to ``(C, *inner)``: cubic, low-passed where it shrinks, in [0, 1]."""
        values = torch.from_numpy(np.ascontiguousarray(part))
        for axis, (n, m) in enumerate(zip(self.scan, self.grid)):
            if n != m:
                weights = torch.from_numpy(
                    _weights(n, m, self.first[axis], self.inner[axis], self.start[axis], self.size[axis])
                )
                values = torch.movedim(torch.tensordot(weights, values, dims=([1], [axis + 1])), 0, axis + 1)
        return values.numpy() if self.scan == self.grid else values.clamp(0.0, 1.0).contiguous().numpy()

    def affine(self, affine: np.ndarray, frame: Sequence[int]) -> np.ndarray:
        """The affine of the crop in its zero-padded frame, from that of the scan."""
        moved = [first - (to - n) // 2 for first, n, to in zip(self.first, self.inner, frame)]
        return shifted_affine(resampled_affine(affine, self.scan, self.grid), moved)


def make_crop(scan: Sequence[int], grid: Sequence[int], frame: Sequence[int], first: Sequence[int]) -> Crop:
    """The crop of extent ``frame`` (less where ``grid`` is smaller) that begins at ``first`` of ``grid``."""
    inner = [min(m, to) for m, to in zip(grid, frame)]
    spans = [_span(n, m, s, length) for n, m, s, length in zip(scan, grid, first, inner)]
    starts, sizes = [low for low, _ in spans], [high - low for low, high in spans]
    return Crop(*(tuple(int(n) for n in values) for values in (scan, grid, first, inner, starts, sizes)))


def grid_of(scan: Scan, spacing: Sequence[float] | None) -> tuple[int, ...]:
    """Extent of a scan at a spacing; its own where None is asked for. Raises ValueError where its own is unknown."""
    if spacing is None:
        return scan.size
    if scan.spacing is None:
        raise ValueError("its voxel size is not known, so it cannot be brought to another; train without spacing")
    return resampled_size(scan.size, scan.spacing, spacing)


def crop_first(
    scan: Scan,
    grid: Sequence[int],
    frame: Sequence[int],
    where: Sequence[float],
    *,
    foreground: float,
    level: float,
    key: tuple[int, int],
    read: Callable[[Sequence[int], Sequence[int]], np.ndarray],
) -> list[int]:
    """Where a crop begins in the grid.

    Args:
        scan: of the scan's extent; its values are not looked at.
        where: per axis a uniform number, which places the crop where no foreground is asked for or there is none.
        foreground: share of the crops that are centred on a foreground voxel, each of the scan's as likely as another,
            and moved inwards as far as the scan's border asks for.
        level: stored values above it are foreground (in any channel), padding never is.
        key: seed and position, which decide everything drawn here.
        read: ``(start, size)`` to stored values ``(C, *size)`` of that part of the scan.
    """
    anywhere = crop_starts(grid, frame, where)
    if foreground <= 0 or all(m <= to for m, to in zip(grid, frame)):
        return anywhere
    seed, position = key
    if float(uniform(seed, position, _DECISION_STREAM)) >= foreground:
        return anywhere

    def found(start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        values = read(start, size)
        above = values > level if scan.padding is None else (values > level) & (values != scan.padding)
        return np.asarray(above.any(axis=0))

    one, voxel = (1,) * len(grid), None
    draws = uniform(seed, position, _SEARCH_STREAM + np.arange(TRIES * len(grid))).reshape(TRIES, len(grid))
    for tried in (draws * scan.size).astype(int).tolist():
        if found(tried, one).any():
            voxel = tried
            break
    else:
        members = np.flatnonzero(found((0,) * len(grid), scan.size))
        if members.size:
            chosen = members[int(float(uniform(seed, position, _LAST_STREAM)) * members.size)]
            voxel = [int(v) for v in np.unravel_index(chosen, scan.size)]
    if voxel is None:
        return anywhere
    # The grid's voxel that holds the centre of the scan's
    centre = [int((v + 0.5) * m / n) for v, m, n in zip(voxel, grid, scan.size)]
    return [min(max(c - to // 2, 0), max(m - to, 0)) for c, m, to in zip(centre, grid, frame)]


def foreground_level(scan: Scan, limits: tuple[float, float]) -> float:
    """Stored values above it are foreground: -500 HU in CT, else a tenth of the way between ``limits``.

    Args:
        limits: the values that become 0 and 1 when the scan is scaled, its 0.5th and 99.5th percentile by default.
    """
    if scan.unit == HU:
        return FOREGROUND_HU
    return limits[0] + FOREGROUND_SHARE * (limits[1] - limits[0])


def shifted_affine(affine: np.ndarray, by: Sequence[float]) -> np.ndarray:
    """The affine of an array that begins ``by`` voxels further on."""
    moved = np.array(affine, np.float64)
    moved[:3, 3] += moved[:3, : len(by)] @ np.asarray(by, np.float64)
    return moved


def check_foreground(foreground: float, mode: str) -> None:
    """Raise InputError unless ``foreground`` is a share that means something with ``mode``."""
    if not 0 <= foreground <= 1:
        raise InputError(f"foreground is {foreground}: expected the share of the crops, a number from 0 to 1.")
    if foreground > 0 and mode != "crop":
        raise InputError(f"foreground {foreground} says where crops lie, and images are fitted by {mode}: use crop.")


def _span(n: int, m: int, first: int, length: int) -> tuple[int, int]:
    """The voxels ``[low, high)`` of ``n`` that voxels ``first .. first + length - 1`` of ``m`` are computed from."""
    if n == m:
        return first, first + length
    scale = n / m
    reach = 2 * max(scale, 1.0)
    low = int(np.floor(scale * (first + 0.5) - reach))
    high = int(np.ceil(scale * (first + length - 0.5) + reach))
    return max(low, 0), min(high, n)


def _weights(n: int, m: int, first: int, length: int, start: int, size: int) -> np.ndarray:
    """Rows ``first ...`` and columns ``start ...`` of the matrix that resamples ``n`` values to ``m``, float32.

    Keys' cubic with a = -1/2, stretched by the factor of shrinking, cut off at the ends and made to sum to 1: the
    weights of `torch.nn.functional.interpolate` with ``mode="bicubic", antialias=True``, which gives whole axes only.
    """
    scale = n / m
    stretch = max(scale, 1.0)
    centre = scale * (np.arange(first, first + length) + 0.5)
    at = (np.arange(start, start + size)[None] + 0.5 - centre[:, None]) / stretch
    x = np.abs(at)
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
