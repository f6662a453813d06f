"""Labelled sets for segmentation: from sources to cases with splits, classes checked against the files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frepa.datasets.cases import Case, SegmentationSet, cases_of, check_masks
from frepa.datasets.catalogue.records import sample
from frepa.datasets.labels import LabelMap
from frepa.datasets.layouts.pairing import stem
from frepa.datasets.opening import open_annotated
from frepa.datasets.stacks import BY_PATIENT, Dividing
from frepa.downstream.division import check_rule, complete_split, divide, folds_of, given_folds, numbered
from frepa.errors import InputError
from frepa.images.hidden_names import Names
from frepa.images.scan import Skipped


class LabelledCase(NamedTuple):
    """A case, the set it is of, and what the values in its mask mean."""

    case: Case
    set_name: str
    labels: LabelMap


@dataclass(frozen=True)
class SegmentationData:
    """Sets with splits, what the values in each set's masks mean, and the extent of every image.

    A class means the same in all sets. ``sizes`` is keyed by the image's path.
    """

    sets: tuple[SegmentationSet, ...]
    labels: dict[str, LabelMap]
    sizes: dict[Path, tuple[int, ...]]
    left_out: tuple[Skipped, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return next(iter(self.labels.values())).classes

    @property
    def shared(self) -> bool:
        """The test part of a set shares patients or stacks with the other parts."""
        return any(item.shared for item in self.sets)

    def part(self, split: str) -> list[LabelledCase]:
        """Cases of a split over all sets, set after set."""
        return [LabelledCase(c, item.name, self.labels[item.name]) for item in self.sets for c in item.part(split)]

    def cases_of(self, name: str) -> Sequence[Case]:
        """Cases of a set."""
        return next(item.cases for item in self.sets if item.name == name)

    def folds(self, count: int, seed: int) -> list[SegmentationData]:
        """``count`` divisions of every set in which every group is tested once; an eighth of the others validates.

        A set's own folds where it has so many.

        Raises:
            InputError: a set has fewer groups than folds.
        """
        divided: list[list[SegmentationSet]] = [[] for _ in range(count)]
        for item in self.sets:
            groups = groups_of(item)
            try:
                ones = np.ones((len(groups), 1), np.uint8)
                tested, note, drawn = folds_of(item.own_folds, groups, ones, count, seed, item.unit)
            except InputError as error:
                raise InputError(f"{item.name}: {error}") from None
            for fold, sets in enumerate(divided):
                parts = complete_split(["test" if its == fold else "train" for its in tested], groups, seed)[0]
                cases = tuple(replace(case, split=part) for case, part in zip(item.cases, parts))
                shared = drawn and item.unit != "group"
                sets.append(replace(item, cases=cases, split_note=note, shared=shared))
        return [replace(self, sets=tuple(sets)) for sets in divided]

    def without(self, unreadable: dict[int, Skipped]) -> SegmentationData:
        """The same: an image that cannot be read ends the run while the set is opened."""
        assert not unreadable
        return self

    def about(self, item: SegmentationSet) -> Iterator[str]:
        """Sentences about one of the sets: what its masks mean, how they were paired, what has none."""
        yield f"{item.name}: {self.labels[item.name].describe()}."
        for sentence in item.notes:
            yield f"{item.name}: {sentence.rstrip('.')}."
        if item.unpaired:
            shown = sample(item.unpaired)
            yield f"{item.name}: {len(item.unpaired):,} images without a mask are left out: {shown}."

    def under(self, names: Names) -> SegmentationData:
        """The same with what stands for names of files; sets are called by their place in the order they were given."""
        if not names.hidden:
            return self
        sets = sets_under(self.sets, names)
        pairs = [(its, own) for after, item in zip(sets, self.sets) for its, own in zip(after.cases, item.cases)]
        called = {item.name: after.name for item, after in zip(self.sets, sets)}
        return SegmentationData(
            tuple(sets),
            {called[name]: labels for name, labels in self.labels.items()},
            {its.image: self.sizes[own.image] for its, own in pairs},
            tuple(map(names.skipped, self.left_out)),
        )

    def group_numbers(self) -> dict[tuple[str, str], int]:
        """A number for the group of every case, keyed by set and case."""
        keys = [(item.name, case.name) for item in self.sets for case in item.cases]
        groups = [f"{item.name}/{group}" for item in self.sets for group in groups_of(item)]
        return dict(zip(keys, numbered(groups)))


def sets_under(sets: Iterable[SegmentationSet], names: Names) -> list[SegmentationSet]:
    """Sets with what stands for names of files, called by their place in the order they were given."""
    if not names.hidden:
        return list(sets)
    found = []
    for number, item in enumerate(sets, start=1):
        sources = {id(case.source): case.source for case in item.cases}
        for source in sources.values():
            names.learn(source)
        hidden = {key: names.source(source) for key, source in sources.items()}
        cases = [
            replace(case, name=hidden[id(case.source)].name(case.record), source=hidden[id(case.source)])
            for case in item.cases
        ]
        found.append(
            replace(
                item,
                name=f"set-{number}",
                cases=tuple(cases),
                notes=tuple(map(names.said, item.notes)),
                split_note=names.said(item.split_note),
                unpaired=tuple(map(names.name, item.unpaired)),
                left_out=tuple(map(names.skipped, item.left_out)),
            )
        )
    return found


def groups_of(item: SegmentationSet) -> list[str]:
    """Patient of each case, the case's own name where none is known."""
    return [case.group or case.name for case in item.cases]


def open_sets(
    sources: Sequence[str],
    *,
    dims: int,
    seed: int = 0,
    how: Dividing = BY_PATIENT,
) -> list[SegmentationSet]:
    """Find the cases of every source and give each its split.

    ``official`` keeps the source's split. Where it has no test part its validation part becomes that; where it has no
    validation part an eighth of the training groups becomes that; where it has no split at all, or with ``random``,
    groups are divided 7:1:2 (Frepa section 4). No file is decoded.

    Args:
        sources: any SOURCE with masks.
        dims: 2 or 3.
        seed: another seed gives another division.
        how: the rule; of a set that is only tested on cases of no part are tested.

    Raises:
        InputError: a source is not understood, has no masks, or too few groups to be split.
    """
    check_rule(how.rule)
    if not sources:
        raise InputError("No source was given: name at least one folder with images and masks, or a manifest.")
    sets: list[SegmentationSet] = []
    for text in sources:
        known = open_annotated(text, dims, "mask", canonical=False, how=how)
        path = Path(text if Path(text).exists() else text.partition(":")[2] or text)
        name = stem(path) if path.is_file() else path.resolve().name
        found = cases_of(known, _free_name(name, {item.name for item in sets}))
        given = [case.split for case in found.cases]
        groups = groups_of(found)
        parts, note, drawn = divide(found.name, given, groups, how, seed, unit=known.unit)
        cases = tuple(replace(case, split=part) for case, part in zip(found.cases, parts))
        own = given_folds([case.fold for case in cases], how.rule)
        shared = drawn and known.unit != "group"
        sets.append(replace(found, cases=cases, split_note=note, own_folds=own, unit=known.unit, shared=shared))
    return sets


def check_sets(
    sets: Sequence[SegmentationSet],
    *,
    dims: int,
    threshold: float | None = None,
    workers: int = 2,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> SegmentationData:
    """Read every mask and every image's header once; see `frepa.datasets.cases.check_masks`."""
    checked = check_masks(sets, dims=dims, threshold=threshold, workers=workers, progress=progress)
    left_out = {skipped.path: skipped for item in sets for skipped in item.left_out}
    return SegmentationData(tuple(sets), checked.labels, checked.sizes, tuple(left_out.values()))


def _free_name(name: str, taken: set[str]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free
