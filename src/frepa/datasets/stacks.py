"""Sets of one patient or one stack: divided by slices, or by blocks of neighbouring slices, when that is asked for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from frepa.datasets.annotations import FOV, Annotations
from frepa.datasets.reading import check_fit, inside_of, read_header, read_mask, read_scan
from frepa.errors import InputError
from frepa.images.intensity import bounds
from frepa.images.orientation import reorient, reorient_header, through_plane
from frepa.images.places import split_place
from frepa.images.scan import Header, Scan, Skipped, UnreadableScan, replace_scan
from frepa.images.source import Source

#: Patients, or what is known of them, stay whole; every slice by itself; blocks of neighbouring slices.
UNITS = ("patients", "slices", "blocks")
#: Blocks of a patient or stack: with so many, 7:1:2 is 7, 1 and 2 of them.
BLOCKS = 10
#: What reports say of scores of such a division.
WORDS = {
    "slices": "Parts were divided by slices: neighbouring slices of one patient or stack, which look alike, are in "
    "several parts. Scores say nothing about other patients, and are higher than they would be there.",
    "blocks": f"Parts were divided by blocks of neighbouring slices, {BLOCKS} of each patient or stack, so that all "
    "parts come from the same patients. Scores say nothing about other patients.",
}
_ROW = re.compile(r"\[(\d+)\]$")


def check_unit(by: str) -> None:
    """Raise InputError unless ``by`` says what stays whole."""
    if by not in UNITS:
        raise InputError(f"--divide-by {by}: expected {', '.join(UNITS[:-1])} or {UNITS[-1]}.")


class Dividing(NamedTuple):
    """How images are to be divided into parts.

    Attributes:
        by: what stays whole in that, one of `UNITS`.
        rule: ``official`` keeps parts and folds that the source gives, ``random`` does not.
        folds: number of folds; None for one split.
        complete: parts that are missing are made; False where a set is only tested on.
    """

    by: str = "patients"
    rule: str = "official"
    folds: int | None = None
    complete: bool = True

    def given(self, known: Annotations, column: str) -> set[str]:
        """Parts (or folds) that the source gives and that stay, of images that have ``column``."""
        if self.complete and self.rule != "official":
            return set()
        has = known.labels if column == "label" else known.table[column].to_pylist()
        found = {part for part, cell in zip(known.folds if self.folds else known.splits, has) if cell is not None}
        return set() if None in found else {str(part) for part in found}

    def nothing_left(self, given: set[str]) -> bool:
        """Whether all parts are the source's own, so that nothing is divided."""
        return not self.complete or (len(given) == self.folds if self.folds else given == {"train", "val", "test"})


#: Patients stay whole, and so do parts and folds that the source gives.
BY_PATIENT = Dividing()


def in_parts(known: Annotations, how: Dividing, column: str, *, stacks: bool) -> Annotations:
    """The same images in smaller groups: every slice one of its own, or every block of neighbouring slices.

    Of volumes for 3D encoders the blocks become records, cut across the axis of their slices. Slices of a stack get
    the slices of its mask. Parts that the source gives stay, and with them its patients in the validation and test
    part.

    Args:
        known: images and what is known of them.
        how: how they are to be divided.
        column: what the images that are divided have: label, mask or boxes.
        stacks: files hold many slices under one annotation, which a 2D encoder takes one by one.

    Raises:
        InputError: volumes by slices; boxes of volumes; a mask of another grid than its stack; or
            the source gives every part, so that nothing would be divided.
    """
    by, source = how.by, known.source
    given = how.given(known, column)
    stays = how.nothing_left(given)
    if stays and not stacks and (how.complete or source.dims == 2):
        raise InputError(f"--divide-by {by}: nothing is divided by it: {_why_not(source, how)}")
    if source.dims == 3:
        return _in_blocks(known, by)
    names = [known.source.name(i) for i in range(len(known.source))]
    if known.has("boxes") and not known.facts.get("each") and any(map(_ROW.search, names)):
        raise InputError(
            f"{known.source.location}: holds stacks, and boxes do not say which of their slices they are in. Save the "
            "slices as images of their own."
        )
    table = with_rows(known)
    units = _units(known)
    groups = units if stays else names if by == "slices" else _blocks(units)
    if {"train"} < given and not how.folds:
        groups = [group if part == "train" else unit for group, unit, part in zip(groups, units, known.splits)]
    table = _replaced(table, "group", groups)
    if not stays:
        table = _called_by(table, by)
    known.source.annotations = table
    known.source.group_codes = None
    return Annotations(known.source, table)


def _why_not(source: Source, how: Dividing) -> str:
    if not how.complete:
        return f"{source.location} is only tested on, and holds no stack whose slices it would open. Leave it out."
    own = f"{how.folds} folds" if how.folds else "training, validation and test part"
    return (
        f"{source.location} has its own {own}, and they stay. Leave it out, or add --split random to divide the set "
        "anew."
    )


def _units(known: Annotations) -> list[str]:
    """What is cut into blocks: the patient where one is known, else the file, else all images together."""
    source, codes = known.source, known.source.group_codes
    groups = known.groups
    stacked = len({source.file(i) for i in range(len(source))}) < len(source)
    return [
        groups[i] or (str(codes[i]) if codes is not None else source.file(i) if stacked else source.location)
        for i in range(len(source))
    ]


def _blocks(units: Sequence[str]) -> list[str]:
    """Unit and block of every record: records of a unit, in their order, in `BLOCKS` parts as equal as can be."""
    sizes: dict[str, int] = {}
    for unit in units:
        sizes[unit] = sizes.get(unit, 0) + 1
    seen = dict.fromkeys(sizes, 0)
    blocks = []
    for unit in units:
        blocks.append(f"{unit}, block {seen[unit] * min(BLOCKS, sizes[unit]) // sizes[unit]}")
        seen[unit] += 1
    return blocks


def with_rows(known: Annotations) -> pa.Table:
    """The table in which slice 7 of a stack has slice 7 of the stack's mask, not all of it.

    Raises:
        InputError: a mask of another grid than its stack.
    """
    table, source = known.table, known.source
    rows = [_ROW.search(source.name(i)) for i in range(len(source))]
    for column in table.column_names:
        if not _is_mask(column) or source.holds_masks:
            continue
        cells: list[Any] = table[column].to_pylist()
        pairs: set[tuple[str, str]] = set()
        for i, (cell, row) in enumerate(zip(cells, rows)):
            if cell is not None and row is not None and _ROW.search(cell) is None:
                pairs.add((source.file(i), cell))
                cells[i] = f"{cell}{'' if '#' in cell else '#'}[{row[1]}]"
        for file, mask in pairs:
            _check_stack(*(Path(os.path.join(source.folder or "", text)) for text in (file, mask)))
        table = _replaced(table, column, cells)
    return table


def _check_stack(image: Path, mask: Path) -> None:
    """Raise InputError where two stacks are no slices of the same volume; where both are volumes, that is to say."""
    try:
        headers = read_header(image, 3), read_header(mask, 3)
    except InputError:  # pages without a place in space
        counts = read_header(image, 2).count, read_header(mask, 2).count
        if counts[0] != counts[1]:
            raise InputError(f"{image} holds {counts[0]} slices, and its mask {mask} {counts[1]}.") from None
        return
    check_fit(image, headers[0], mask, headers[1], "mask")


def _in_blocks(known: Annotations, by: str) -> Annotations:
    if by == "slices":
        raise InputError("--divide-by slices: a 3D encoder sees volumes, not slices. Use --divide-by blocks.")
    if known.has("boxes"):
        raise InputError("--divide-by blocks: boxes of volumes cannot be divided. Divide by patients.")
    source = VolumeBlocks(known)
    return Annotations(source, source.annotations)


class VolumeBlocks(Source):
    """Blocks of volumes as records, axes canonical: `BLOCKS` of each, across the axis that its slices lie along.

    Values are scaled as of the whole volume.

    Args:
        known: the volumes and what is known of them.
    """

    holds_masks = True
    annotations: pa.Table

    def __init__(self, known: Annotations) -> None:
        super().__init__()
        parent = known.source
        self._parent, self._known = parent, known
        self.dims, self.location, self.folder = parent.dims, parent.location, parent.folder
        self.skipped, self.notes, self.warnings = list(parent.skipped), parent.notes, parent.warnings
        self.modalities = parent.modalities
        places: list[tuple[int, int, int, int]] = []  # volume, axis, first slice, slices
        for volume in range(len(parent)):
            try:
                header = reorient_header(parent.header(volume))
            except UnreadableScan as error:
                self.skipped.append(Skipped(parent.name(volume), error.reason, error.kind))
                continue
            axis = through_plane(header.affine, header.spacing)
            ends = np.linspace(0, header.size[axis], min(BLOCKS, header.size[axis]) + 1).astype(int)
            places += [(volume, axis, int(a), int(b - a)) for a, b in pairwise(ends)]
        self._places = places
        volumes = np.array([place[0] for place in places], np.int64)
        if parent.modality_codes is not None:
            self.modality_codes = parent.modality_codes[volumes]
        self.labels = None if parent.labels is None else parent.labels[volumes]
        groups = [self._called(i) for i in range(len(places))]
        table = known.table.take(pa.array(volumes))
        for column in table.column_names:
            if _is_mask(column):
                cells = table[column].to_pylist()
                table = _replaced(table, column, [cell and self.name(i) for i, cell in enumerate(cells)])
        self.annotations = _called_by(_replaced(_replaced(table, "group", groups), "case", groups), "blocks")
        self._whole = lru_cache(maxsize=2)(self._read_whole)
        self._mask = lru_cache(maxsize=2)(self._read_mask_whole)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        volume, _, first, count = self._places[index]
        return f"{self._parent.name(volume)} ({first}-{first + count - 1})"

    def _called(self, index: int) -> str:
        volume, _, first, _ = self._places[index]
        file = Path(split_place(self._parent.name(volume)).file).name
        return f"{self._known.names[volume] or file.partition('.')[0]}-{volume}_{first:04d}"

    def header(self, index: int) -> Header:
        volume, axis, first, count = self._places[index]
        header = reorient_header(self._parent.header(volume))
        size = tuple(count if i == axis else n for i, n in enumerate(header.size))
        return Header(**{**header.__dict__, "size": size, "affine": _moved(header.affine, axis, first)})

    def read(self, index: int) -> Scan:
        volume, axis, first, count = self._places[index]
        return _cut(self._whole(volume), axis, first, count)

    def read_mask(self, index: int, target: str) -> Scan | None:
        """The block of the volume's mask."""
        volume, axis, first, count = self._places[index]
        mask = self._mask(volume, target)
        return None if mask is None else _cut(mask, axis, first, count)

    def _read_whole(self, volume: int) -> Scan:
        scan = reorient(self._parent.read(volume))
        return replace_scan(scan, limits=bounds(scan))

    def _read_mask_whole(self, volume: int, target: str) -> Scan | None:
        place = self._known.masks(target)[volume]
        if place is None:
            return None
        own = self._parent.read_mask(volume, target)
        if own is not None:
            return reorient(own)
        path = Path(os.path.join(self._parent.folder or "", place))
        header = reorient_header(self._parent.header(volume))
        if target != FOV:
            mask = read_mask(path, 3)
        else:
            found = read_scan(path, 3)
            mask = replace_scan(found, array=inside_of(found.array)[None].astype(np.uint8))
        check_fit(Path(self._parent.name(volume)), header, path, mask, "mask")
        return mask

    @property
    def fingerprint(self) -> str:
        """Of the volumes; the blocks follow from them."""
        return self._parent.fingerprint + f" in {BLOCKS} blocks"


def _moved(affine: np.ndarray | None, axis: int, first: int) -> np.ndarray | None:
    if affine is None:
        return None
    moved = affine.copy()
    moved[:3, 3] += first * moved[:3, axis]
    return moved


def _cut(scan: Scan, axis: int, first: int, count: int) -> Scan:
    array = np.take(scan.array, range(first, first + count), axis=axis + 1)
    return replace_scan(scan, array=array, affine=_moved(scan.affine, axis, first))


def _is_mask(column: str) -> bool:
    return column == "mask" or column.startswith("mask_")


def _called_by(table: pa.Table, by: str) -> pa.Table:
    return table.replace_schema_metadata(
        {**(table.schema.metadata or {}), b"unit": json.dumps(by.rstrip("s")).encode()}
    )


def _replaced(table: pa.Table, column: str, cells: Iterable[Any]) -> pa.Table:
    values = pa.array(list(cells), pa.string())
    if column in table.column_names:
        return table.set_column(table.column_names.index(column), column, values)
    return table.append_column(column, values)
