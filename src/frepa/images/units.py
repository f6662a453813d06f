"""Which scans are in Hounsfield units. Never assumed in silence: every assumption is a note on the scan."""

from __future__ import annotations

import math

import numpy as np

from frepa.errors import InputError
from frepa.images.scan import ARBITRARY, HU, Note, Scan, replace_scan

ASSUMED_HU = Note("taken for Hounsfield units because of the values (air, soft tissue, whole numbers)", "hu assumed")
CT_NOT_HU = Note("said to be CT, but the values are not Hounsfield units; scaled by percentiles", "ct without hu")
# Hounsfield units of what nearly every CT shows: air and lung, soft tissue and water, everything that is a body
_AIR, _SOFT, _BODY = (-1100, -500), (-150, 300), (-1100, 4000)
_AIR_SHARE, _SOFT_SHARE, _INSIDE = 0.02, 0.002, 0.999
# Values of the scanner's padding, below air: one, or two where a table was cut out as well
_PADDINGS = 2
# Voxels looked at; a regular grid of them, so that the answer is always the same
_LOOKED_AT = 2**18


def looks_like_hu(array: np.ndarray) -> bool:
    """Whether values can hardly be anything but Hounsfield units.

    Whole numbers, at least 2 % of them between -1100 and -500 (air, lung), at least 0.2 % between -150 and 300 (soft
    tissue), 99.9 % between -1100 and 4000; below that at most two different values, the scanner's padding, which are
    not counted. MR, whose values start at 0, phase images, which go as far below 0 as above, and standardised values,
    which are small, never answer to this; a CT cut out inside the abdomen does not either.
    """
    if array.dtype.kind not in "if" or array.size == 0:
        return False
    values = _sample(array)
    if array.dtype.kind == "f" and not (values == np.rint(values)).all():
        return False
    is_inside = values >= _BODY[0]
    inside = values[is_inside]
    if inside.size == 0 or (inside.size < values.size and len(np.unique(values[~is_inside])) > _PADDINGS):
        return False

    def share(limits: tuple[int, int]) -> float:
        return float(((inside >= limits[0]) & (inside <= limits[1])).mean())

    return share(_AIR) >= _AIR_SHARE and share(_SOFT) >= _SOFT_SHARE and share(_BODY) >= _INSIDE


def can_be_hu(lowest: float) -> bool:
    """Whether values of a scan that is said to be CT are Hounsfield units: fat or air must be in it, below -30."""
    return lowest <= -30


def with_values_judged(scan: Scan) -> Scan:
    """A volume of a format that does not name its unit: HU, with a note, where the values say so."""
    if scan.unit == HU or not looks_like_hu(scan.array):
        return scan
    return replace_scan(scan, unit=HU, notes=(*scan.notes, ASSUMED_HU))


def declared(
    scan: Scan,
    *,
    modality: str | None = None,
    unit: str | None = None,
    slope: float | None = None,
    intercept: float | None = None,
) -> Scan:
    """A scan with what a manifest or the catalogue says of it, which counts for more than what was guessed.

    Args:
        scan: as the reader gave it.
        modality: replaces the scan's. CT (``"CT"``, ``"ct_lung"``) makes the unit HU if the values can be that, any
            other modality takes back what was assumed from the values alone.
        unit: ``"HU"`` or ``"arbitrary"``; final when given.
        slope, intercept: the values become ``slope * stored + intercept`` (1 and 0 where only one is given), as for
            16-bit PNG files of CT that hold HU + 32768.
    """
    changes: dict[str, object] = {}
    if slope is not None or intercept is not None:
        from frepa.images.volumes import rescaled

        factor, offset = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
        changes["array"] = rescaled(scan.array, factor, offset)
        if scan.padding is not None:
            changes["padding"] = factor * scan.padding + offset
        # The statistics are those of the stored values
        changes["whole"] = None if scan.whole is None else _Rescaled(scan.whole, factor, offset)
        scan = replace_scan(scan, **changes)
        changes = {}
    if modality:
        changes["modality"] = modality
    if unit is not None:
        changes["unit"] = unit
        changes["notes"] = tuple(note for note in scan.notes if note != ASSUMED_HU)
    elif modality and not is_ct(modality):
        if ASSUMED_HU in scan.notes:
            changes |= {"unit": ARBITRARY, "notes": tuple(note for note in scan.notes if note != ASSUMED_HU)}
    elif modality and scan.unit != HU and _is_radiological(scan):
        lowest = float(scan.array.min()) if scan.whole is None else scan.whole.percentiles((0.0,))[0]
        changes |= {"unit": HU} if can_be_hu(lowest) else {"notes": (*scan.notes, CT_NOT_HU)}
    elif modality and ASSUMED_HU in scan.notes:
        changes["notes"] = tuple(note for note in scan.notes if note != ASSUMED_HU)
    return replace_scan(scan, **changes) if changes else scan


def scale_value(column: str, text: str) -> str | float | None:
    """A cell of a manifest's column ``unit``, ``slope`` or ``intercept``; None where it is empty.

    Raises:
        InputError: an unknown unit, or no number.
    """
    text = (text or "").strip()
    if not text:
        return None
    if column == "unit":
        for unit in (HU, ARBITRARY):
            if text.lower() == unit.lower():
                return unit
        raise InputError(f"The manifest's column 'unit' holds {text!r}; expected {HU} (Hounsfield) or {ARBITRARY}.")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (column == "slope" and number == 0):
        raise InputError(f"The manifest's column {column!r} holds {text!r}; expected a number, e.g. 1 or -32768.")
    return number


def is_ct(modality: str | None) -> bool:
    """``CT``, ``ct``, ``ct_lung``, ``CT chest``; not ``OCT``."""
    return modality is not None and modality.lower().replace("-", "_").replace(" ", "_").split("_")[0] == "ct"


def _is_radiological(scan: Scan) -> bool:
    # An 8-bit picture of a CT has lost its units; so has colour
    return scan.array.shape[0] == 1 and scan.array.dtype.kind in "if"


class _Rescaled:
    def __init__(self, whole: object, slope: float, intercept: float) -> None:
        self._whole, self._slope, self._intercept = whole, slope, intercept

    def percentiles(self, percentiles: tuple[float, ...]) -> tuple[float, ...]:
        if self._slope < 0:
            percentiles = tuple(100.0 - p for p in percentiles)
        found = self._whole.percentiles(percentiles)  # type: ignore[attr-defined]
        return tuple(self._slope * value + self._intercept for value in found)


def _sample(array: np.ndarray) -> np.ndarray:
    step = max(1, round((array.size / _LOOKED_AT) ** (1 / max(1, array.ndim - 1))))
    return array[(slice(None), *(slice(None, None, step),) * (array.ndim - 1))].reshape(-1)
