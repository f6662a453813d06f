"""Measurements to findings: what is constant, twice there, a label map, or not in the units it seems to be in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from frepa.checks.findings import Finding, kind_of
from frepa.checks.items import LABEL_VALUES, Item, Records
from frepa.images.units import ASSUMED_HU, is_ct

_LEAST_SIDE = 16
# Hounsfield units that occur in patients, implants included
_HU_LOWEST, _HU_HIGHEST = -4100.0, 32767.0

Name = Callable[[int], str]


def single_findings(items: Iterable[Item]) -> Iterable[Finding]:
    """What can be said of a scan by itself."""
    for item in items:
        for kind, message in _of_one(item):
            yield Finding(kind, item.name, message, record=item.picture())


def _of_one(item: Item) -> Iterable[tuple[str, str]]:
    one, count = item.first, len(item.measured)
    blank = sum(slice_.constant for slice_ in item.measured)
    if item.constant:
        slices = f" in each of {count} slices" if item.of_slices else ""
        yield "constant", f"every value is {one.low:g}{slices}" if _same(item) else f"one value{slices}"
    elif item.is_labels:
        yield "looks like labels", _label_words(item)
    elif blank:
        yield "blank slice", f"{blank} of {count} slices hold one value each"
    elif not item.of_slices and one.percentiles[0] == one.percentiles[2]:
        yield "nearly constant", f"99 % of the values are {one.percentiles[1]:g}"
    if min(one.size[-2:]) < _LEAST_SIDE:
        yield "tiny", f"{_shown(one.size)} pixels"
    low, high = min(part.low for part in item.measured), max(part.high for part in item.measured)
    middle = one.percentiles[1] if count == 1 else float(np.median([part.percentiles[1] for part in item.measured]))
    if one.hu and (low < _HU_LOWEST or high >= _HU_HIGHEST or middle > 1000):
        yield "hu values", f"values from {low:g} to {high:g}, half of them above {middle:g}"
    said = [kind_of(note.kind) for note in item.notes]
    if is_ct(one.modality) and not one.hu and "ct without hu" not in said:
        yield "ct without hu", "the values are not Hounsfield units"
    yield from zip(said, item.notes)


def _same(item: Item) -> bool:
    return len({part.low for part in item.measured}) == 1


def _label_words(item: Item) -> str:
    shown = [part for part in item.measured if not part.constant]
    where = " in a slice" if item.of_slices else ""
    most = max((part.values for part in shown), default=0)
    if shown and all(1 < part.values <= LABEL_VALUES for part in shown):
        low, high = min(part.low for part in shown), max(part.high for part in shown)
        few = f"at most {most}" if item.of_slices else f"only {most}"
        return f"holds {few} different values{where}, from {low:g} to {high:g}"
    if item.label_folder:
        return f"lies in a folder named {item.label_folder}"
    flat = float(np.median([part.flat for part in shown]))
    return f"{flat:.0%} of neighbouring pixels off the background are equal, as in areas of labels"


def mixed_units(items: Iterable[Item]) -> Iterable[Finding]:
    """Scans without a modality of which some look like CT."""
    unknown = [item for item in items if not item.first.modality and not item.is_labels]
    assumed = sum(ASSUMED_HU in item.notes for item in unknown)
    signed = [item for item in unknown if not item.first.hu and min(part.low for part in item.measured) < -200]
    if assumed and signed:
        message = f"{assumed} are taken for Hounsfield units; {len(signed)} others hold values below -200 too, such as "
        message += ", ".join(item.name for item in signed[:3])
        yield Finding("hu mixed", file="(all)", message=message, other=signed[0].name)


def duplicates(
    records: Records,
    name: Name,
    labels: np.ndarray | None = None,
    splits: np.ndarray | None = None,
    leave_out: Iterable[int] = (),
) -> Iterable[Finding]:
    """Scans with the same pixels.

    Constant ones are told otherwise; ``leave_out`` names those of which copies are nothing special, as of label maps.
    """
    first: dict[bytes, int] = {}
    ignored = set(leave_out)
    for index, one in records.items():
        if one.constant or index in ignored:
            continue
        before = first.setdefault(one.digest, index)
        if before == index:
            continue
        split, other = ("", "") if splits is None else (splits[index], splits[before])
        told: list[tuple[str, str]] = []
        if split and other and split != other:
            told.append(("split duplicate", f"in {split}, and as {name(before)} in {other}"))
        if labels is not None and labels[index] != labels[before]:
            told.append(("label conflict", f"labelled {labels[index]!r}, and as {name(before)} {labels[before]!r}"))
        for kind, message in told or [("duplicate", f"the same pixels as {name(before)}")]:
            yield Finding(kind, name(index), message, name(before), index)


def shared_patients(name: Name, splits: np.ndarray | None, groups: np.ndarray | None) -> Iterable[Finding]:
    """Patients (or studies) with scans in more than one part of a split: one finding each."""
    if splits is None or groups is None:
        return
    seen: dict[int, tuple[int, str]] = {}
    told: set[int] = set()
    for index, (group, split) in enumerate(zip(groups.tolist(), splits.tolist())):
        if not split:
            continue
        before, part = seen.setdefault(group, (index, split))
        if part != split and group not in told:
            told.add(group)
            message = f"in {split}; the same patient's {name(before)} is in {part}"
            yield Finding("split patient", name(index), message, name(before), index)


def _shown(values: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    return " x ".join(f"{value:.{digits}g}" for value in values)
