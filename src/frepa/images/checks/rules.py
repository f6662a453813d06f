"""Measurements to findings: what is constant, twice there, or unlike the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from frepa.images.checks.findings import Finding, kind_of
from frepa.images.checks.measures import Measured
from frepa.images.units import ASSUMED_HU, is_ct

# Below this many scans of a kind there is no telling which of them is odd
_ENOUGH = 10
# How far from the usual, as a factor, before anything is odd at all; and in robust standard deviations
_FACTORS = {"spacing": 2.0, "size": 3.0, "intensity": 8.0}
_DEVIATIONS = 6.0
_LEAST_SIDE = 16
_LABEL_VALUES = 16
# Measured: label maps of nine sets 1.0, images of fifteen 0.91 and less
_FLAT = 0.95
# Hounsfield units that occur in patients, implants included
_HU_LOWEST, _HU_HIGHEST = -4100.0, 32767.0

Records = Mapping[int, Measured]
Name = Callable[[int], str]
_Words = Callable[[np.ndarray, np.ndarray], str]


def single_findings(records: Records, name: Name) -> Iterable[Finding]:
    """What can be said of a scan by itself."""
    for index, one in records.items():
        for kind, message in _of_one(one):
            yield Finding(kind, name(index), message, record=index)


def _of_one(one: Measured) -> Iterable[tuple[str, str]]:
    if one.constant:
        yield "blank slice" if one.slice_of_volume else "constant", f"every value is {one.low:g}"
    elif not one.slice_of_volume:  # a slice may hold little; its volume is what counts
        if one.percentiles[0] == one.percentiles[2]:
            yield "nearly constant", f"99 % of the values are {one.percentiles[1]:g}"
        elif 1 < one.values <= _LABEL_VALUES:
            yield "looks like labels", f"holds only {one.values} different values, from {one.low:g} to {one.high:g}"
        elif one.flat > _FLAT:
            message = f"{one.flat:.0%} of neighbouring pixels off the background are equal, as in areas of labels"
            yield "looks like labels", message
    if min(one.size[-2:]) < _LEAST_SIDE:
        yield "tiny", f"{_shown(one.size)} pixels"
    if one.hu and (one.low < _HU_LOWEST or one.high >= _HU_HIGHEST or one.percentiles[1] > 1000):
        yield "hu values", f"values from {one.low:g} to {one.high:g}, half of them above {one.percentiles[1]:g}"
    said = [kind_of(note, "other") for note in one.notes]
    if is_ct(one.modality) and not one.hu and "ct without hu" not in said:
        yield "ct without hu", "the values are not Hounsfield units"
    yield from zip(said, one.notes)


def mixed_units(records: Records) -> Iterable[Finding]:
    """Scans without a modality of which some look like CT."""
    unknown = [one for one in records.values() if not one.modality]
    assumed = sum(ASSUMED_HU in one.notes for one in unknown)
    signed = sum(not one.hu and one.low < -200 for one in unknown)
    if assumed and signed:
        message = (
            f"{assumed} of {len(unknown)} are taken for Hounsfield units; {signed} others hold negative values too"
        )
        yield Finding("hu mixed", file="(all)", message=message)


def duplicates(
    records: Records, name: Name, labels: np.ndarray | None = None, splits: np.ndarray | None = None
) -> Iterable[Finding]:
    """Scans with the same pixels; constant ones are told otherwise."""
    first: dict[bytes, int] = {}
    for index, one in records.items():
        if one.constant:
            continue
        before = first.setdefault(one.digest, index)
        if before == index:
            continue
        split, other = ("", "") if splits is None else (splits[index], splits[before])
        if split and other and split != other:
            kind, message = "split duplicate", f"in {split}, and as {name(before)} in {other}"
        elif labels is not None and labels[index] != labels[before]:
            kind, message = "label conflict", f"labelled {labels[index]!r}, and as {name(before)} {labels[before]!r}"
        else:
            kind, message = "duplicate", f"the same pixels as {name(before)}"
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


def unlike_the_rest(records: Records, name: Name) -> Iterable[Finding]:
    """Outliers in voxel size, extent, range of values and orientation, among scans of one modality."""
    by_modality: dict[tuple[str, int, bool], list[int]] = {}
    for index, one in records.items():
        if not one.constant:
            by_modality.setdefault((one.modality, len(one.size), one.hu), []).append(index)
    for members in by_modality.values():
        if len(members) < _ENOUGH:
            continue
        measured = [records[index] for index in members]
        for kind, text, values in _compared(measured):
            for place in np.flatnonzero(_outlying(values, _FACTORS[kind])):
                usual = np.nanmedian(values, axis=0)
                message = text(values[place], usual)
                yield Finding(kind, name(members[place]), message, record=members[place])
        yield from _turned(measured, members, name)


def _compared(
    measured: Sequence[Measured],
) -> Iterable[tuple[str, Callable[[np.ndarray, np.ndarray], str], np.ndarray]]:
    axes = len(measured[0].size)
    # Sorted, so that volumes in another orientation are not odd for that alone
    spacing = np.array([sorted(one.spacing) if one.spacing else [np.nan] * axes for one in measured])
    yield "spacing", lambda here, usual: f"{_shown(here, 3)} mm, usually about {_shown(usual, 3)} mm", spacing
    size = np.array([sorted(one.size) for one in measured], np.float64)
    yield "size", lambda here, usual: f"{_shown(here)}, usually about {_shown(usual)} (sorted)", size
    if not measured[0].hu:
        # A slice's own range says nothing of its volume's
        spans = [[np.nan if one.slice_of_volume else one.percentiles[2] - one.percentiles[0]] for one in measured]
        yield (
            "intensity",
            lambda here, usual: f"values span {here[0]:.4g}, usually about {usual[0]:.4g}",
            np.array(spans),
        )


def _outlying(values: np.ndarray, factor: float) -> np.ndarray:
    """Rows in which a value is more than ``factor`` times larger or smaller than usual, and far beyond the spread."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(values > 0, values, np.nan))
    known = np.isfinite(logs)
    if known.sum(axis=0).min() < _ENOUGH:
        return np.zeros(len(values), bool)
    distance = np.abs(logs - np.nanmedian(logs, axis=0))
    spread = 1.4826 * np.nanmedian(distance, axis=0)
    limit = np.maximum(np.log(factor), _DEVIATIONS * spread)
    return np.asarray((np.where(known, distance, 0.0) > limit).any(axis=1))


def _turned(measured: Sequence[Measured], members: Sequence[int], name: Name) -> Iterable[Finding]:
    known = [one.orientation for one in measured if one.orientation]
    if len(known) < _ENOUGH:
        return
    codes, counts = np.unique(known, return_counts=True)
    usual = str(codes[counts.argmax()])
    if counts.max() < 0.8 * len(known):
        return
    for one, index in zip(measured, members):
        if one.orientation and one.orientation != usual:
            yield Finding("orientation", name(index), f"stored as {one.orientation}, usually {usual}", record=index)


def _shown(values: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    return " x ".join(f"{value:.{digits}g}" for value in values)
