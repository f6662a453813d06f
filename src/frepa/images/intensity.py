"""Stored values to [0, 1]: percentiles, or Hounsfield windows for CT (section IV-A of the Frepa paper)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from frepa.errors import InputError, nearest
from frepa.images.scan import HU, Scan

#: Lower and upper bound in Hounsfield units.
WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-1000.0, 400.0),
    "abdomen": (-160.0, 240.0),
    "brain": (-30.0, 90.0),
    "bone": (-300.0, 1200.0),
}
ANY_WINDOW = "any"
PERCENTILES = (0.5, 99.5)
Window = str | tuple[float, float] | None


def check_window(window: Window) -> None:
    """Raise `InputError` unless ``window`` is one that `to_unit` knows."""
    if isinstance(window, str):
        if window not in (*WINDOWS, ANY_WINDOW):
            raise InputError(f"Unknown window {window!r}. {nearest(window, [*WINDOWS, ANY_WINDOW])}")
    elif window is not None and not (len(window) == 2 and window[0] < window[1]):
        raise InputError(f"The window {tuple(window)} must be two numbers, the lower first, e.g. (-160, 240).")


def to_unit(
    scan: Scan,
    *,
    window: Window = None,
    percentiles: tuple[float, float] = PERCENTILES,
    draw: float | None = None,
) -> np.ndarray:
    """Scale a scan to [0, 1], clipping what lies outside the bounds. See `bounds` for how these are chosen.

    Returns:
        float32 ``(C, *S)`` in [0, 1]; padding and NaN become 0, a constant image becomes zeros.
    """
    return scale(scan.array, bounds(scan, window=window, percentiles=percentiles, draw=draw), padding=scan.padding)


def bounds(
    scan: Scan,
    *,
    window: Window = None,
    percentiles: tuple[float, float] = PERCENTILES,
    draw: float | None = None,
) -> tuple[float, float]:
    """The stored values that become 0 and 1.

    Args:
        scan: the whole scan; percentiles are taken over all its pixels, and over its channels jointly, so that a
            colour image keeps its hue. For a slice they are those of its volume (``scan.whole``).
        window: None: percentiles. ``"lung"``, ``"abdomen"``, ``"brain"``, ``"bone"``: that Hounsfield window for a
            scan in HU, percentiles for any other. ``"any"``: the same with the window picked by ``draw``. Two numbers:
            these bounds for every scan.
        percentiles: lower and upper, in percent.
        draw: uniform number in [0, 1) that picks the window when ``window="any"``.
    """
    check_window(window)
    if isinstance(window, tuple | list):
        return float(window[0]), float(window[1])
    if isinstance(window, str) and scan.unit == HU:
        if window == ANY_WINDOW:
            if draw is None:
                raise ValueError("window='any' needs the uniform number `draw` to pick a window")
            window = list(WINDOWS)[min(int(draw * len(WINDOWS)), len(WINDOWS) - 1)]
        return WINDOWS[window]
    if scan.limits is not None and tuple(percentiles) == PERCENTILES:
        return scan.limits
    low, high = _scan_percentiles(scan, percentiles)
    if low == high:
        # Nearly all pixels are equal, as in a sparse map: what differs is the content, so take the full range
        low, high = _scan_percentiles(scan, (0.0, 100.0))
    return low, high


def _scan_percentiles(scan: Scan, percentiles: Sequence[float]) -> tuple[float, ...]:
    if scan.whole is not None:
        return scan.whole.percentiles(percentiles)
    return exact_percentiles(scan.array, percentiles, ignore=scan.padding)


def needs_pixels(scan: Scan, *, window: Window = None, percentiles: tuple[float, float] = PERCENTILES) -> bool:
    """Whether `bounds` has to look at ``scan.array``; False where unit, window or known limits settle the answer."""
    if isinstance(window, tuple | list) or (window is not None and scan.unit == HU):
        return False
    return scan.limits is None or tuple(percentiles) != PERCENTILES


def scale(array: np.ndarray, limits: tuple[float, float], *, padding: float | None = None) -> np.ndarray:
    """``(x - low) / (high - low)`` clipped to [0, 1], float32; zeros when ``low == high``; padding and NaN to 0."""
    low, high = limits
    if not high > low:
        return np.zeros(array.shape, np.float32)
    unit = np.subtract(array, np.float32(low), dtype=np.float32, casting="unsafe")
    np.multiply(unit, np.float32(1.0 / (high - low)), out=unit)
    if array.dtype.kind == "f" and np.isnan(unit.min()):
        np.nan_to_num(unit, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
    np.clip(unit, 0.0, 1.0, out=unit)
    if padding is not None:
        unit[array == padding] = 0.0
    return unit


# Below this many values, selecting among them is faster than counting them
_FEW = 2**12


def exact_percentiles(
    values: np.ndarray, percentiles: Sequence[float], *, ignore: float | None = None
) -> tuple[float, ...]:
    """``np.percentile(values, percentiles)`` (linear interpolation) without sorting.

    8- and 16-bit integers are counted, 32-bit floats counted by their upper 16 bits and only the bins of interest
    looked into, other types partitioned. NaN, infinities and the value ``ignore`` are left out; with nothing left
    every percentile is 0.
    """
    flat = values.reshape(-1)
    if flat.dtype.kind == "f":
        if not np.isfinite(flat.sum(dtype=np.float64)):
            flat = flat[np.isfinite(flat)]
        if ignore is not None:
            flat = flat[flat != ignore]
            ignore = None
    elif flat.dtype.itemsize > 2 and ignore is not None:
        flat = flat[flat != ignore]
        ignore = None
    if flat.size == 0:
        return (0.0,) * len(percentiles)
    if flat.dtype.kind in "ui" and flat.dtype.itemsize <= 2 and (flat.size >= _FEW or ignore is not None):
        return _by_counting(flat, percentiles, ignore)
    below, above, weight = _ranks(flat.size, tuple(percentiles))
    ordered = _order_statistics(flat, np.concatenate([below, above]))
    return _interpolated(ordered[: len(below)], ordered[len(below) :], weight)


@lru_cache(maxsize=64)  # scans of a source are often of one size
def _ranks(count: int, percentiles: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two ranks each percentile lies between, and how far it is from the lower one."""
    virtual = (count - 1) * (np.asarray(percentiles, np.float64) / 100.0)
    below = np.floor(virtual).astype(np.int64)
    return below, np.minimum(below + 1, count - 1), virtual - below


def _interpolated(below: np.ndarray, above: np.ndarray, weight: np.ndarray) -> tuple[float, ...]:
    # Few numbers, and many small images: Python's doubles are faster than arrays of them
    ends = zip(below.astype(np.float64).tolist(), above.astype(np.float64).tolist(), weight.tolist())
    # From the nearer end, as NumPy does, so that the results are equal to the last bit
    return tuple(low + (high - low) * w if w < 0.5 else high - (high - low) * (1 - w) for low, high, w in ends)


def _by_counting(flat: np.ndarray, percentiles: Sequence[float], ignore: float | None) -> tuple[float, ...]:
    lowest = np.iinfo(flat.dtype).min
    if flat.dtype == np.uint8:
        counts = torch.bincount(_tensor(flat), minlength=256).numpy()  # three times as fast as NumPy's
    else:
        unsigned = flat.view(f"u{flat.dtype.itemsize}")
        counts = np.bincount(unsigned, minlength=2 ** (8 * flat.dtype.itemsize))
        if flat.dtype.kind == "i":
            counts = np.roll(counts, len(counts) // 2)
    if ignore is not None and float(ignore).is_integer() and 0 <= int(ignore) - lowest < len(counts):
        counts[int(ignore) - lowest] = 0
    cumulative = np.cumsum(counts)
    if cumulative[-1] == 0:
        return (0.0,) * len(percentiles)
    below, above, weight = _ranks(int(cumulative[-1]), tuple(percentiles))
    values = np.searchsorted(cumulative, np.concatenate([below, above]), side="right") + lowest
    return _interpolated(values[: len(below)], values[len(below) :], weight)


def _order_statistics(flat: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The values at the given ranks of the sorted array."""
    if flat.dtype != np.float32 or flat.size < 2**16:
        return np.partition(flat, np.unique(ranks))[ranks]
    # The bits of a float, as an integer, are ordered like the float once the sign is dealt with
    bits = flat.view(np.uint32)
    keys = (bits >> np.uint32(16)).astype(np.uint16)
    keys ^= np.where(keys & np.uint16(0x8000), np.uint16(0xFFFF), np.uint16(0x8000))
    cumulative = np.cumsum(np.bincount(keys, minlength=65536))
    bins = np.searchsorted(cumulative, ranks, side="right")
    result = np.empty(len(ranks), np.float32)
    for which in np.unique(bins):
        members = flat[keys == which]
        within = ranks[bins == which] - (cumulative[which - 1] if which else 0)
        result[bins == which] = np.partition(members, np.unique(within))[within]
    return result


def _tensor(flat: np.ndarray) -> torch.Tensor:
    # from_numpy warns about read-only memory, which is never written here
    return torch.from_numpy(flat if flat.flags.writeable else flat.copy())
