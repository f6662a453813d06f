"""Labelled sets for segmentation: from sources to cases with splits, classes checked against the files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frepa.datasets.annotations import Case, SegmentationSet
from frepa.datasets.labels import LabelMap, agreed_maps, label_map
from frepa.datasets.layouts.pairing import stem
from frepa.datasets.layouts.registry import Layout, Listing, find_layout
from frepa.datasets.reading import check_fit, read_header, read_mask, refuse_stack
from frepa.downstream.division import SHARES, check_rule, complete_split, fold_groups, numbered, split_groups
from frepa.errors import InputError
from frepa.images.scan import Skipped

# With more images than this share without a mask, the names are understood wrongly rather than masks missing.
_MOST_UNPAIRED = 0.5


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

    def part(self, split: str) -> list[LabelledCase]:
        """Cases of a split over all sets, set after set."""
        return [LabelledCase(c, item.name, self.labels[item.name]) for item in self.sets for c in item.part(split)]

    def folds(self, count: int, seed: int) -> list[SegmentationData]:
        """``count`` divisions of every set in which every group is tested once; an eighth of the others validates.

        Raises:
            InputError: a set has fewer groups than folds.
        """
        divided: list[list[SegmentationSet]] = [[] for _ in range(count)]
        for item in self.sets:
            groups = groups_of(item)
            try:
                tested = fold_groups(groups, np.ones((len(groups), 1), np.uint8), count, seed)
            except InputError as error:
                raise InputError(f"{item.name}: {error}") from None
            note = f"{count} folds by group, seed {seed}; an eighth of each fold's other groups is used for validation"
            for fold, sets in enumerate(divided):
                parts = complete_split(["test" if its == fold else "train" for its in tested], groups, seed)[0]
                cases = tuple(replace(case, split=part) for case, part in zip(item.cases, parts))
                sets.append(replace(item, cases=cases, split_note=note))
        return [replace(self, sets=tuple(sets)) for sets in divided]

    def without(self, unreadable: dict[int, Skipped]) -> SegmentationData:
        """The same: an image that cannot be read ends the run while the set is opened."""
        assert not unreadable
        return self

    def group_numbers(self) -> dict[tuple[str, str], int]:
        """A number for the group of every case, keyed by set and case."""
        keys = [(item.name, case.name) for item in self.sets for case in item.cases]
        groups = [f"{item.name}/{group}" for item in self.sets for group in groups_of(item)]
        return dict(zip(keys, numbered(groups)))


def groups_of(item: SegmentationSet) -> list[str]:
    """Patient of each case, the case's own name where none is known."""
    return [case.group or case.name for case in item.cases]


def open_sets(sources: Sequence[str], *, dims: int, split: str = "official", seed: int = 0) -> list[SegmentationSet]:
    """Find the cases of every source and give each its split.

    ``official`` keeps the layout's split. Where it has no test part its validation part becomes that; where it has no
    validation part an eighth of the training groups becomes that; where it has no split at all, or with ``random``,
    groups are divided 7:1:2 (Frepa section 4). No file is decoded.

    Raises:
        InputError: a source is not understood, has no cases, or too few groups to be split.
    """
    check_rule(split)
    if not sources:
        raise InputError("No source was given: name at least one folder with images and masks, or a manifest.")
    sets: list[SegmentationSet] = []
    for source in sources:
        chosen, path, listing = list_cases(source, dims)
        name = _free_name(stem(path) if path.is_file() else path.resolve().name, {item.name for item in sets})
        cases, note = _with_splits(name, _with_names(path, listing.cases), split, seed)
        sets.append(SegmentationSet(name, chosen.name, tuple(cases), listing.binary, note, tuple(listing.unpaired)))
    return sets


def list_cases(source: str, dims: int) -> tuple[Layout, Path, Listing]:
    """The layout, path and cases that a source means. No file is decoded.

    Raises:
        InputError: it is not understood, has no cases, or images of another number of axes.
    """
    chosen, path = find_layout(source)
    listing = chosen.read(path, dims)
    if len(listing.cases) <= len(listing.unpaired):
        _check_axes(path, chosen, dims)
    _check_found(path, chosen.name, len(listing.cases), listing.unpaired, dims)
    return chosen, path, listing


def check_sets(
    sets: Sequence[SegmentationSet],
    *,
    dims: int,
    threshold: float | None = None,
    workers: int = 2,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> SegmentationData:
    """Read every mask and every image's header once: sizes must agree, and the values decide the classes.

    Args:
        threshold: mask values above it are foreground; None looks at the values (see ``labels.label_map``).
        workers: threads.
        progress: wraps the iteration over cases, for a progress bar.

    Raises:
        InputError: a damaged file, a mask that does not fit its image, or values that are no classes.
    """
    sizes: dict[Path, tuple[int, ...]] = {}
    maps: dict[str, LabelMap] = {}

    def look(case: Case) -> tuple[Case, tuple[int, ...], set[float]]:
        header = read_header(case.image, dims)
        refuse_stack(case.image, header.count, dims)
        mask = read_mask(case.mask, dims)
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
            maps[item.name] = label_map(found, item.name, binary=item.binary, threshold=threshold)
        next(looks, None)  # lets a progress bar end
    return SegmentationData(tuple(sets), agreed_maps(maps), sizes)


def _values(mask: np.ndarray) -> set[float]:
    if mask.dtype == np.uint8:
        return {float(value) for value in np.flatnonzero(np.bincount(mask.ravel(), minlength=256))}
    return {float(value) for value in np.unique(mask)}


def _check_axes(path: Path, chosen: Layout, dims: int) -> None:
    """Raise InputError where the set is one of images with another number of axes than the encoder takes."""
    other = chosen.read(path, 5 - dims)
    if len(other.cases) > len(other.unpaired):
        kinds = {2: "2D images", 3: "volumes"}
        remedy = "Give a 2D encoder."
        if dims == 2:
            remedy = 'Put slices: before it, as in --encoder "slices:ENCODER", or give a 3D encoder.'
        raise InputError(f"{path}: holds {kinds[5 - dims]}, and the encoder takes {kinds[dims]}. {remedy}")


def _check_found(path: Path, layout: str, found: int, unpaired: Sequence[str], dims: int) -> None:
    if not found and not unpaired:
        raise InputError(f"{path}: read as a {layout} set, but no {dims}D images were found in it.")
    if len(unpaired) > _MOST_UNPAIRED * (found + len(unpaired)):
        shown = ", ".join(unpaired[:3])
        raise InputError(
            f"{path}: {len(unpaired)} of {found + len(unpaired)} images have no mask of a matching name "
            f"({shown}{', ...' if len(unpaired) > 3 else ''}). Give masks the names of their images, or write a "
            "manifest (CSV with the columns image and mask)."
        )


def _free_name(name: str, taken: set[str]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _with_names(path: Path, cases: Sequence[Case]) -> list[Case]:
    """Cases sorted by name, names made unique by their folders where they are not."""
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        root = path if path.is_dir() else path.parent
        full = []
        for case in cases:
            try:
                above = case.image.parent.relative_to(root).parts
            except ValueError:
                above = case.image.parent.parts[-1:]
            full.append("_".join([*above, case.name]))
        if len(set(full)) < len(full):
            twice = next(name for name in full if full.count(name) > 1)
            raise InputError(f"{path}: two cases are called {twice!r}. Names must differ.")
        cases = [replace(case, name=name) for case, name in zip(cases, full)]
    return sorted(cases, key=lambda case: case.name)


def _with_splits(name: str, cases: list[Case], rule: str, seed: int) -> tuple[list[Case], str]:
    groups = [case.group or case.name for case in cases]
    given = [case.split for case in cases]
    try:
        if rule == "random" or None in given:
            parts: list[str] = split_groups(groups, SHARES, seed)
            note = f"random, 7:1:2 by group, seed {seed}"
        else:
            parts, note = complete_split([part or "" for part in given], groups, seed)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return [replace(case, split=part) for case, part in zip(cases, parts)], note
