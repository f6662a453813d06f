"""Volumes as records: whole in 3D, one slice each in 2D; what both have in common whatever the file format is."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frepa.images.intensity import exact_percentiles
from frepa.images.orientation import plane_codes, reorient_array, reorient_header, through_plane, voxel_sizes
from frepa.images.scan import Header, Scan, UnreadableScan, replace_scan

#: Bytes of decoded volumes each process keeps while slices are read from them.
CACHE_BYTES = 2**29
_STATISTICS = 100_000  # entries of a few numbers each

_volumes: OrderedDict[Hashable, Scan] = OrderedDict()
_percentiles: OrderedDict[Hashable, tuple[float, ...]] = OrderedDict()


def file_key(path: Path, *more: Hashable) -> Hashable:
    """Changes when the file does."""
    status = os.stat(path)
    return (str(path), status.st_size, status.st_mtime_ns, *more)


def cached_volume(key: Hashable, load: Callable[[], Scan]) -> Scan:
    """``load()``, kept for the next slice of the same volume."""
    if key in _volumes:
        _volumes.move_to_end(key)
        return _volumes[key]
    scan = load()
    held = sum(kept.array.nbytes for kept in _volumes.values())
    while _volumes and held + scan.array.nbytes > CACHE_BYTES:
        _, dropped = _volumes.popitem(last=False)
        held -= dropped.array.nbytes
    if scan.array.nbytes <= CACHE_BYTES:
        _volumes[key] = scan
    return scan


@dataclass(frozen=True)
class VolumeStatistics:
    """`frepa.images.scan.Whole` of a volume that is read when its percentiles are asked for the first time."""

    key: Hashable
    load: Callable[[], Scan]

    def percentiles(self, percentiles: Sequence[float]) -> tuple[float, ...]:
        entry = (self.key, tuple(percentiles))
        if entry not in _percentiles:
            scan = self.load()
            _percentiles[entry] = exact_percentiles(scan.array, percentiles, ignore=scan.padding)
            if len(_percentiles) > _STATISTICS:
                _percentiles.popitem(last=False)
        return _percentiles[entry]


def record_header(whole: Header, dims: int) -> Header:
    """The header of a record from that of a volume: itself in 3D, a slice of it in 2D.

    ``whole.count`` is the number of volumes in the file.
    """
    if dims == 3:
        return whole
    axis = through_plane(whole.affine, whole.spacing)
    changes: dict[str, Any] = {"count": whole.count * whole.size[axis]}
    if whole.affine is not None:
        turned = reorient_header(whole, plane_codes(whole.affine, axis))
        changes |= {"size": turned.size[1:], "spacing": (turned.spacing or ())[1:], "affine": None}
    else:
        rest = [a for a in range(3) if a != axis]
        changes["size"] = tuple(whole.size[a] for a in rest)
        changes["spacing"] = None if whole.spacing is None else tuple(whole.spacing[a] for a in rest)
    return Header(**{**whole.__dict__, **changes})


def record(path: Path, row: int, dims: int, whole: Header, load: Callable[[int], Scan], key: Hashable = ()) -> Scan:
    """Record ``row`` of a file of volumes: the volume itself in 3D, a slice in 2D.

    Args:
        path: the file, for the caches.
        row: number of the record, slices of the first volume first.
        dims: 2 or 3.
        whole: header of the volumes, which all have one size.
        load: reads a volume by its number.
        key: what else tells volumes of this file apart, e.g. the member.
    """
    if dims == 3:
        check_volume(path, whole.size)
        return load(row)
    number, place = divmod(row, whole.size[through_plane(whole.affine, whole.spacing)])
    entry = file_key(path, key, number)

    def volume() -> Scan:
        return cached_volume(entry, lambda: load(number))

    return take_slice(volume(), place, VolumeStatistics(entry, volume))


def check_volume(path: Path, size: Sequence[int]) -> None:
    """Raise `UnreadableScan` where an axis has one voxel only."""
    if min(size) < 2:
        text = f"{shown(size)} voxels: a single slice, no volume; read it with dims 2"
        raise UnreadableScan(str(path), text, kind="other dims")


def take_slice(scan: Scan, row: int, statistics: VolumeStatistics | None) -> Scan:
    """Slice ``row`` of a volume along its through-plane axis, the usual way up, as a 2D `Scan` with its own memory.

    Its affine has the columns of its two axes, then the through-plane direction, then the origin.
    """
    axis = through_plane(scan.affine, scan.spacing)
    spacing, affine = scan.spacing, scan.affine
    if affine is not None:
        array, affine = reorient_array(scan.array, affine, plane_codes(affine, axis))
        spacing = voxel_sizes(affine)[1:]
        affine = affine.copy()
        affine[:3, 3] += row * affine[:3, 0]
        affine = affine[:, [1, 2, 0, 3]]
    else:
        array = np.moveaxis(scan.array, axis + 1, 1)
        spacing = None if spacing is None else tuple(spacing[a] for a in range(3) if a != axis)
    cut = np.array(array[:, row], order="C")
    return replace_scan(scan, array=cut, spacing=spacing, affine=affine, whole=statistics)


def shown(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size)


def rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """``slope * stored + intercept``.

    The stored type where nothing changes; where values stay whole the smaller of int16 and int32 that holds them;
    float32 otherwise.
    """
    if slope == 1 and intercept == 0:
        return stored
    if stored.dtype.kind in "ui" and stored.dtype.itemsize <= 4 and stored.size and _whole(slope) and _whole(intercept):
        ends = [int(end) * int(slope) + int(intercept) for end in (stored.min(), stored.max())]
        kind = np.min_scalar_type(min(*ends, -1) if max(ends) < -min(*ends, -1) else -max(ends) - 1)
        if kind.itemsize <= 4:
            values = stored.astype(np.int64) * int(slope) + int(intercept)
            return values.astype(np.int16 if kind.itemsize <= 2 else np.int32)
    # 16-bit integers are exact in float32, so only longer ones need the detour over float64
    if stored.dtype.itemsize <= 2:
        return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def _whole(number: float) -> bool:
    return float(number).is_integer() and abs(number) < 2**31


def claimed_bytes(size: Sequence[int], itemsize: int) -> int:
    return math.prod(int(n) for n in size) * itemsize
