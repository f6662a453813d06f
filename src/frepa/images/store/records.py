"""A scan to the bytes and the journal line of its record, and a row of the index back to a scan."""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Any

import numpy as np

from frepa.images.anonymity import pseudonym
from frepa.images.intensity import bounds
from frepa.images.scan import HU, Scan
from frepa.images.store.frames import pack
from frepa.images.store.layout import (
    DTYPES,
    HAS_AFFINE,
    HAS_GROUP,
    HAS_PADDING,
    HAS_SPACING,
    IS_QUANTIZED,
    UNITS,
)

_HEX16 = re.compile("[0-9a-f]{16}")
_LEVELS = 65535


def pack_scan(scan: Scan, *, quantize: bool = False) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a record and what the index has to know of it, as plain JSON values.

    Args:
        scan: as its reader gave it.
        quantize: floats that are not whole numbers become whole Hounsfield units (CT), or 65,536 equal steps between
            their minimum and maximum (any other unit), which is stored as uint16 with slope and intercept.
    """
    low, high = bounds(scan)
    array, slope, intercept = _stored(scan, quantize)
    packed = pack(array)
    facts: dict[str, Any] = {
        "length": len(packed.data),
        "chunks": packed.chunks,
        "crc32": zlib.crc32(packed.data),
        "sha256": hashlib.sha256(packed.data).hexdigest()[:32],
        "size": list(array.shape[1:]),
        "channels": array.shape[0],
        "dtype": array.dtype.name,
        "unit": scan.unit if scan.unit in UNITS else UNITS[0],
        "id": anonymous_id(scan.id),
        "low": float(low),
        "high": float(high),
    }
    optional = {
        "group": None if scan.group is None else anonymous_id(scan.group),
        "modality": scan.modality,
        "padding": _padding(scan, slope, intercept),
        "spacing": None if scan.spacing is None else [float(step) for step in scan.spacing],
        "affine": None if scan.affine is None else np.asarray(scan.affine, np.float64)[:3].tolist(),
        "slope": slope,
        "intercept": intercept,
    }
    return packed.data, facts | {name: value for name, value in optional.items() if value is not None}


def anonymous_id(text: str) -> str:
    """``text`` where a source gave a pseudonym already, its own otherwise: 16 hexadecimal digits."""
    return text if _HEX16.fullmatch(text) else pseudonym(text)


def _stored(scan: Scan, quantize: bool) -> tuple[np.ndarray, float | None, float | None]:
    """The array in the smallest type that loses nothing, or quantized, then with slope and intercept."""
    array = narrowed(scan.array)
    if not quantize or array.dtype.kind != "f":
        return array, None, None
    low, high = float(array.min()), float(array.max())
    if scan.unit == HU and low >= -32768 and high <= 32767:
        return np.rint(array).astype(np.int16), None, None
    slope = np.float32((high - low) / _LEVELS)
    if not np.isfinite(slope) or slope == 0:
        return array, None, None
    steps = np.clip(np.rint((array.astype(np.float64) - low) / float(slope)), 0, _LEVELS)
    return steps.astype(np.uint16), float(slope), float(np.float32(low))


def narrowed(array: np.ndarray) -> np.ndarray:
    """The same values in 16 bits where that is possible: long integers, and floats that are all whole numbers.

    8- and 16-bit arrays stay as they are.
    """
    if array.dtype.kind in "ui" and array.dtype.itemsize <= 2:
        return array
    low, high = array.min(), array.max()
    for kind in (np.int16, np.uint16):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            smaller = array.astype(kind)
            return smaller if array.dtype.kind in "ui" or np.array_equal(smaller, array) else array
    return array


def _padding(scan: Scan, slope: float | None, intercept: float | None) -> float | None:
    if scan.padding is None or slope is None or intercept is None:
        return None if scan.padding is None else float(scan.padding)
    # The padding is recognised by being equal, so it has to take the same rounding as the pixels
    step = np.clip(np.rint((float(scan.padding) - intercept) / slope), 0, _LEVELS)
    return float(restored(np.uint16(step), slope, intercept))


def restored(stored: Any, slope: float, intercept: float) -> np.ndarray:
    """``slope * stored + intercept`` in float32."""
    return np.asarray(stored, np.float32) * np.float32(slope) + np.float32(intercept)


def fill_row(row: np.ndarray, facts: dict[str, Any], *, shard: int, offset: int, modality: int) -> None:
    """Write a journal line into a row of `frepa.images.store.layout.row_type`."""
    for name in ("length", "chunks", "crc32", "size", "channels", "low", "high"):
        row[name] = facts[name]
    row["shard"], row["offset"], row["modality"] = shard, offset, modality
    row["sha256"] = np.frombuffer(bytes.fromhex(facts["sha256"]), np.uint8)
    row["id"] = int(facts["id"], 16)
    row["group"] = int(facts.get("group", facts["id"]), 16)
    row["dtype"], row["unit"] = DTYPES.index(facts["dtype"]), UNITS.index(facts["unit"])
    has = 0
    for bit, name in (
        (HAS_GROUP, "group"),
        (HAS_SPACING, "spacing"),
        (HAS_AFFINE, "affine"),
        (HAS_PADDING, "padding"),
        (IS_QUANTIZED, "slope"),
    ):
        has |= bit if name in facts else 0
    row["has"] = has
    for name in ("spacing", "affine", "padding", "slope", "intercept"):
        if name in facts:
            row[name] = facts[name]


def described(row: np.ndarray, modalities: tuple[str, ...]) -> Scan:
    """The scan of a row without its pixels: zeros of its shape and type, which take no memory."""
    has = int(row["has"])
    shape = (int(row["channels"]), *(int(n) for n in row["size"]))
    kind = np.dtype(np.float32) if has & IS_QUANTIZED else np.dtype(DTYPES[row["dtype"]])
    affine = None
    if has & HAS_AFFINE:
        affine = np.eye(4)
        affine[:3] = row["affine"]
    return Scan(
        array=np.broadcast_to(np.zeros((), kind), shape),
        spacing=tuple(float(step) for step in row["spacing"]) if has & HAS_SPACING else None,
        affine=affine,
        modality=modalities[row["modality"]] if row["modality"] >= 0 else None,
        unit=UNITS[row["unit"]],
        id=f"{int(row['id']):016x}",
        group=f"{int(row['group']):016x}" if has & HAS_GROUP else None,
        padding=float(row["padding"]) if has & HAS_PADDING else None,
        limits=(float(row["low"]), float(row["high"])),
    )
