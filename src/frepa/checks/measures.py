"""What is measured of every scan: few numbers and a hash, so that tens of millions of them fit in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from frepa.images.intensity import exact_percentiles
from frepa.images.orientation import axis_codes, reorient
from frepa.images.scan import HU, Note, Scan

# A label map has few values; more are counted no further
_FEW = 64


@dataclass(frozen=True)
class Measured:
    """One scan.

    Attributes:
        digest: 16 bytes, equal where shape, type and values are, in canonical orientation.
        size, spacing: as of `Scan`; spacing () where unknown.
        orientation: of the stored axes, e.g. ``"SPL"``; "" where unknown or 2D.
        modality, hu, dtype: its modality, whether it is in HU, its stored type.
        low, high: smallest and largest value, padding left out.
        percentiles: 0.5, 50 and 99.5.
        values: number of distinct values where all are whole numbers, up to 64; 0 for more, and for others.
        flat: share of neighbouring pixels that are equal, where neither has the commonest value: near 1 for label maps,
            low for images; 0 for other floats and colour.
        slice_of_volume: it is a slice of a volume.
        notes: as of `Scan`.
    """

    digest: bytes
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    modality: str
    hu: bool
    dtype: str
    low: float
    high: float
    percentiles: tuple[float, float, float]
    values: int
    flat: float
    slice_of_volume: bool
    notes: tuple[Note, ...]

    @property
    def constant(self) -> bool:
        return self.low == self.high


def measure(scan: Scan) -> Measured:
    """Measure a scan whose axes are as stored (a source opened with ``canonical=False``)."""
    wanted = (0.0, 0.5, 50.0, 99.5, 100.0)
    least, low, middle, high, most = exact_percentiles(scan.array, wanted, ignore=scan.padding)
    volume = len(scan.size) == 3
    values, flat = _label_likeness(scan.array)
    return Measured(
        digest=content_hash(scan),
        size=scan.size,
        spacing=scan.spacing or (),
        orientation=axis_codes(scan.affine) if volume and scan.affine is not None else "",
        modality=scan.modality or "",
        hu=scan.unit == HU,
        dtype=_type_name(scan.array.dtype),
        low=least,
        high=most,
        percentiles=(low, middle, high),
        values=values,
        flat=flat,
        slice_of_volume=scan.whole is not None,
        notes=scan.notes,
    )


@lru_cache(maxsize=64)
def _type_name(kind: np.dtype) -> str:
    return str(kind)


def content_hash(scan: Scan) -> bytes:
    """16 bytes that are equal where type, shape and values are, whichever way the volume was stored."""
    array = np.ascontiguousarray(reorient(scan).array)
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    digest.update(array.data)
    return digest.digest()


def _label_likeness(array: np.ndarray) -> tuple[int, float]:
    """``values`` and ``flat`` of `Measured`."""
    if array.shape[0] != 1 or (array.dtype.kind == "f" and not (array == np.rint(array)).all()):
        return 0, 0.0
    low, high = int(array.min()), int(array.max())
    if high - low >= 2**16:
        return 0, 0.0
    counts = np.bincount(array.reshape(-1).astype(np.int64) - low)
    values = int(np.count_nonzero(counts))
    commonest = low + int(counts.argmax())
    other = array != commonest
    pairs = other[..., 1:] & other[..., :-1]
    total = int(pairs.sum())
    equal = int((pairs & (array[..., 1:] == array[..., :-1])).sum())
    return values if values <= _FEW else 0, equal / total if total else 0.0
