"""Images with masks: which they are, and what the values in the masks mean."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frepa.datasets.annotations import FOV, Annotations
from frepa.datasets.labels import LabelMap, agreed_maps, label_map
from frepa.datasets.layouts.pairing import stem
from frepa.datasets.reading import check_fit, check_row, header_of, mask_of
from frepa.errors import InputError
from frepa.images.places import split_place
from frepa.images.scan import Skipped
from frepa.images.source import Source

Progress = Callable[[Iterable, int], Iterable]
_UNSAFE = re.compile(r"[^\w.() +-]")


@dataclass(frozen=True)
class Case:
    """One image with its mask.

    Attributes:
        name: unique within its set; the image's file name without folder and ending, as a rule.
        source, record: the image; axes as stored.
        mask: place of the mask (`frepa.images.places`).
        target: which of the source's masks it is.
        rule: how its values become classes, see `frepa.datasets.reading.RULES`; "" as they are.
        fov: place of the field of view, or None; pixels above half of its largest value are inside.
        group: cases of one group (a patient) never part; None means a group of its own.
        split: ``train``, ``val`` or ``test`` where the source says so, else None.
        fold: that it is tested in, where the source says so.
    """

    name: str
    source: Source
    record: int
    mask: Path
    target: str = ""
    rule: str = ""
    fov: Path | None = None
    group: str | None = None
    split: str | None = None
    fold: int | None = None

    @property
    def image(self) -> Path:
        """The image's place, for messages and as a key."""
        return Path(self.source.folder or "", self.source.name(self.record))


@dataclass(frozen=True)
class SegmentationSet:
    """The cases of one source.

    Attributes:
        name: shown in results; unique among the sets of a run.
        layout: how the source was read, in a word.
        cases: sorted by name; every one has a split once ``open_sets`` returns it.
        binary: the layout's masks are foreground and background whatever their values are.
        values: class name of each mask value, where the source says so.
        target: what the masks show, where the source says so.
        notes: sentences about the source: how images and masks were paired, what was odd.
        split_note: how the split was made, in words.
        own_folds: the fold each case is tested in where the source says so and it was not asked for others.
        unit: what a group is called: group, slice or block.
        shared: the test part shares patients or stacks with the others, being divided by slices or blocks.
        unpaired: images without a mask, by name.
        left_out: images that cannot be read, with the reason.
    """

    name: str
    layout: str
    cases: tuple[Case, ...]
    binary: bool = False
    values: tuple[tuple[int, str], ...] = ()
    target: str = ""
    notes: tuple[str, ...] = ()
    split_note: str = ""
    own_folds: tuple[int, ...] | None = None
    unit: str = "group"
    shared: bool = False
    unpaired: tuple[str, ...] = ()
    left_out: tuple[Skipped, ...] = ()

    def part(self, split: str) -> list[Case]:
        """Cases of ``train``, ``val`` or ``test``, in order."""
        return [case for case in self.cases if case.split == split]


class CheckedMasks(NamedTuple):
    """What the values in each set's masks mean, and the extent of every image by its place."""

    labels: dict[str, LabelMap]
    sizes: dict[Path, tuple[int, ...]]


def cases_of(known: Annotations, name: str) -> SegmentationSet:
    """Every image of a source that has a mask. No file is decoded.

    Raises:
        InputError: masks that are not there, two cases that cannot be told apart by name, or an unknown split.
    """
    source, target = known.source, str(known.facts.get("target") or "")
    masks, fovs, folds, splits = known.masks(), known.masks(FOV), known.folds, known.splits
    rows = [i for i, mask in enumerate(masks) if mask is not None]
    _check_there(source, [_place(source, masks[row] or "") for row in rows])
    names = _names(source, rows, known.names)
    codes = source.group_codes
    cases = []
    for row, called in zip(rows, names):
        group = known.groups[row] if known.has("group") else None if codes is None else str(codes[row])
        fov = fovs[row]
        cases.append(
            Case(
                called,
                source,
                row,
                _place(source, masks[row] or ""),
                target=target,
                rule=known.facts.get("rules", {}).get(target, ""),
                fov=None if fov is None else _place(source, fov),
                group=group,
                split=splits[row],
                fold=folds[row],
            )
        )
    return SegmentationSet(
        name,
        known.layout,
        tuple(sorted(cases, key=lambda case: case.name)),
        binary=bool(known.facts.get("binary")),
        values=tuple((int(value), text) for value, text in known.facts.get("values", {}).items()),
        target="" if target == "mask" else target,
        notes=(*known.facts.get("pairs", ()), *source.warnings),
        unpaired=tuple(source.name(i) for i, mask in enumerate(masks) if mask is None),
        left_out=tuple(source.skipped),
    )


def _check_there(source: Source, places: Sequence[Path]) -> None:
    files = {split_place(str(place)).file for place in places if not source.holds_masks}
    absent = sorted(file for file in files if not os.path.exists(file))
    if absent:
        raise InputError(
            f"{source.location}: {len(absent):,} of {len(files):,} masks are not there, such as {absent[0]}. Paths are "
            f"relative to {source.folder}."
        )


def _place(source: Source, text: str) -> Path:
    return Path(os.path.join(source.folder or "", text))


def _names(source: Source, rows: Sequence[int], given: Sequence[str | None]) -> list[str]:
    """A name for each record, made unique by its folders, and then by its member, where it is not."""
    places = [split_place(source.name(row)) for row in rows]
    plain = [given[row] or _safe(stem(place.file) + _row(source.name(row))) for row, place in zip(rows, places)]
    if len(set(plain)) == len(plain):
        return plain
    above = [Path(place.file).parent.as_posix() for place in places]
    full = [_safe("_".join([*folder.strip("./").split("/"), name])) for folder, name in zip(above, plain)]
    full = [name.lstrip("_") for name in full]
    if len(set(full)) < len(full):
        full = [_safe(f"{place.member or ''}_{name}".lstrip("_")) for place, name in zip(places, full)]
    if len(set(full)) < len(full):
        twice = next(name for name in full if full.count(name) > 1)
        raise InputError(f"{source.location}: two cases are called {twice!r}. Names must differ.")
    return full


def _row(name: str) -> str:
    found = re.search(r"\[(\d+)\]$", name)
    return f"_{found[1]}" if found else ""


def _safe(name: str) -> str:
    return _UNSAFE.sub("_", name)


def check_masks(
    sets: Sequence[SegmentationSet],
    *,
    dims: int,
    threshold: float | None = None,
    workers: int = 2,
    progress: Progress = lambda items, total: items,
) -> CheckedMasks:
    """Read every mask and every image's header once: sizes must agree, and the values decide the classes.

    Args:
        sets: with their cases.
        dims: 2 or 3.
        threshold: mask values above it are foreground; None looks at the values (see ``labels.label_map``).
        workers: threads.
        progress: wraps the iteration over cases, for a progress bar.

    Raises:
        InputError: a damaged file, a mask that does not fit its image, or values that are no classes.
    """
    sizes: dict[Path, tuple[int, ...]] = {}
    maps: dict[str, LabelMap] = {}

    def look(case: Case) -> tuple[Case, tuple[int, ...], set[float]]:
        if not case.source.holds_masks:
            check_row(case.mask, dims)
        header, mask = header_of(case.source, case.record), mask_of(case, dims)
        check_fit(case.image, header, case.mask, mask, "mask")
        return case, tuple(header.size), _values(mask.array)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        total = sum(len(item.cases) for item in sets)
        looks = iter(progress(pool.map(look, [case for item in sets for case in item.cases]), total))
        for item in sets:
            found: set[float] = set()
            for _ in item.cases:
                case, size, values = next(looks)
                sizes[case.image] = size
                found |= values
            own = label_map(found, item.name, binary=item.binary, threshold=threshold)
            maps[item.name] = replace(own, names=_class_names(own, item))
        next(looks, None)  # lets a progress bar end
    return CheckedMasks(agreed_maps(maps), sizes)


def _values(mask: np.ndarray) -> set[float]:
    if mask.dtype == np.uint8:
        return {float(value) for value in np.flatnonzero(np.bincount(mask.ravel(), minlength=256))}
    return {float(value) for value in np.unique(mask)}


def _class_names(labels: LabelMap, item: SegmentationSet) -> tuple[str, ...]:
    """Name of every class; () where the source knows of none."""
    known = dict(item.values)
    if labels.threshold is not None:
        found = known.get(1) or item.target
        return ("background", found) if found else ()
    if not known:
        return ()
    return tuple(known.get(value, "background" if value == 0 else str(value)) for value in labels.values)
