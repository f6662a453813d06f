"""The one table of what is known of each image: class, masks, boxes, split, fold, group.

Every SOURCE fills the same columns, in `Source.annotations`, and every task takes those it needs. A row per record; a
cell is null where nothing is known of the record:

- ``label``: its class; ``labels``: its classes, where it may have several or none;
- ``mask``, and ``mask_<target>`` for every further target (``mask_fov`` is the field of view): a file, ``file#member``
  or ``file#member[row]``, relative to the source's folder or absolute;
- ``boxes``: list of label (null where a finding counts neither as hit nor as miss) and coordinates; empty where nothing
  was found, null where nobody looked. ``box_size``: the extent of the image they were drawn on;
- ``split``: train, val or test; ``fold``: the fold it is tested in; ``group``: patient or study; ``case``: its name.

The schema's metadata holds, as JSON, what is true of the whole: ``classes`` in order, ``target`` of ``mask`` and all
``targets``, ``values`` (mask value to class name), ``binary`` masks, ``rules`` (how values of a target become classes),
``box_unit``, ``layout``, ``pairs`` (how images and masks were paired, in words), ``origins`` (column to where it is
from, in words), ``trouble`` (column to why it could not be filled) and ``unit`` (what a group is called).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from frepa.errors import InputError
from frepa.images.source import Source

#: Spellings of the three parts in folder names, columns and keys.
PARTS = {
    "train": "train", "training": "train", "tr": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
#: What parts the names of an image that has several classes, in a manifest.
SEPARATOR = "|"
#: The target that is no class but the part of the image that counts.
FOV = "fov"
#: ``box_unit``: corners as in `frepa.images.boxes`; the catalogue's x, y, x, y; spheres in the patient.
CORNERS, XYXY, SPHERES = "corners", "pixel xyxy", "RAS mm, centre and diameter"
#: Class of a finding where nothing names its class.
FINDING = "finding"
_BOX = pa.struct([("label", pa.string()), ("coordinates", pa.list_(pa.float64()))])
SCHEMA: dict[str, pa.DataType] = {
    "label": pa.string(),
    "labels": pa.list_(pa.string()),
    "mask": pa.string(),
    "boxes": pa.list_(_BOX),
    "box_size": pa.list_(pa.int64()),
    "split": pa.string(),
    "fold": pa.int16(),
    "group": pa.string(),
    "case": pa.string(),
}


class Findings(NamedTuple):
    """What is marked in one image.

    Attributes:
        values: ``(n, 2 * dims)`` float64: corners as in `frepa.images.boxes`, in the axes of the file; or where the
            source has spheres ``(n, 4)``: x, y, z of the centre in RAS millimetres, and the diameter in millimetres.
        labels: class name of each; None where the finding counts neither as hit nor as miss.
        size: extent of the image that the boxes were drawn on, where the annotation says so.
    """

    values: np.ndarray
    labels: tuple[str | None, ...]
    size: tuple[int, ...] | None = None


def table_of(columns: Mapping[str, Sequence[Any] | pa.Array], facts: Mapping[str, Any]) -> pa.Table:
    """The table of these columns, a value per record each, and of what is true of the whole."""
    schema = pa.schema([(name, SCHEMA.get(name, pa.string())) for name in columns])
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    return pa.table(dict(columns), schema=schema.with_metadata(metadata))


def extended(
    table: pa.Table | None, columns: Mapping[str, Sequence[Any] | pa.Array], facts: Mapping[str, Any]
) -> pa.Table:
    """A table with further columns and facts; those it has already win, unless they say nothing of any record."""
    added = table_of(columns, facts)
    if table is None:
        return added
    for name in added.column_names:
        if name in table.column_names and table[name].null_count == len(table):
            table = table.drop_columns([name])
        if name not in table.column_names:
            table = table.append_column(added.schema.field(name), added[name])
    merged = {**added.schema.metadata, **(table.schema.metadata or {})}
    for name in (b"origins", b"trouble"):
        if name in added.schema.metadata and name in (table.schema.metadata or {}):
            merged[name] = json.dumps(facts[name.decode()] | facts_of(table)[name.decode()]).encode()
    return table.replace_schema_metadata(merged)


def facts_of(table: pa.Table) -> dict[str, Any]:
    """What the metadata of a table hold: ``classes``, ``target``, ``problems``, ..."""
    return {name.decode(): json.loads(value) for name, value in (table.schema.metadata or {}).items()}


class Annotations:
    """A typed look at the annotations of a source; every list has an entry per record, None where nothing is known.

    Args:
        source: the images.
        table: what is known of them, see the top of this file.
    """

    def __init__(self, source: Source, table: pa.Table) -> None:
        self.source, self.table = source, table
        self.facts = facts_of(table)

    def has(self, column: str) -> bool:
        """Whether the column is there and says something of at least one record."""
        return column in self.table.column_names and self.table[column].null_count < len(self.table)

    def _list(self, column: str) -> list[Any]:
        return self.table[column].to_pylist() if self.has(column) else [None] * len(self.table)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order the source gives; () where it gives none."""
        return tuple(self.facts.get("classes", ()))

    @property
    def layout(self) -> str:
        """How the source was read, in a word."""
        return self.facts.get("layout") or self.facts.get("dataset") or "manifest"

    @cached_property
    def several(self) -> bool:
        """A record may have several classes or none."""
        return self.has("labels") or any(SEPARATOR in name for name in self._list("label") if name is not None)

    @cached_property
    def labels(self) -> list[tuple[str, ...] | None]:
        """Class names of each record, one as a rule; in a manifest's cell several are parted by `SEPARATOR`."""
        found: list[tuple[str, ...] | None] = []
        for name, names in zip(self._list("label"), self._list("labels")):
            parts = names if names is not None or name is None else name.split(SEPARATOR) if self.several else [name]
            found.append(None if parts is None else tuple(part.strip() for part in parts if part.strip()))
        return found

    @cached_property
    def splits(self) -> list[str | None]:
        """Train, val or test of each record.

        Raises:
            InputError: a split that is not known.
        """
        found = []
        for cell in self._list("split"):
            part = None if cell is None else PARTS.get(str(cell).strip().lower())
            if cell is not None and part is None:
                raise InputError(f"{self.source.location}: split {cell!r} is not known. Expected train, val or test.")
            found.append(part)
        return found

    @property
    def folds(self) -> list[int | None]:
        """The fold each record is tested in; folds that are names are numbered in order."""
        folds = [None if cell is None else str(cell).removesuffix(".0") for cell in self._list("fold")]
        number = {fold: k for k, fold in enumerate(class_order([fold for fold in folds if fold is not None]))}
        return [None if fold is None else number[fold] for fold in folds]

    @property
    def groups(self) -> list[str | None]:
        """Patient or study of each record, as the source names it."""
        return self._list("group")

    @property
    def unit(self) -> str:
        """What a group is called: group; slice or block where `frepa.datasets.stacks` divides by these."""
        return str(self.facts.get("unit", "group"))

    @property
    def names(self) -> list[str | None]:
        """What each record is to be called, where the source says so."""
        return self._list("case")

    def masks(self, target: str = "") -> list[str | None]:
        """Place of each record's mask; of the target that ``mask`` holds by default."""
        return self._list("mask" if target in ("", self.facts.get("target")) else f"mask_{target}")

    @cached_property
    def findings(self) -> list[Findings | None]:
        """What is marked in each record."""
        boxes, sizes = self._list("boxes"), self._list("box_size")
        # A source of one kind of finding need not name it; among named ones a finding without name is one to leave out
        nameless = all(box["label"] is None for cell in boxes for box in cell or ())
        width = 4 if self.spheres else 2 * self.source.dims
        found: list[Findings | None] = []
        for cell, size in zip(boxes, sizes):
            if cell is None:
                found.append(None)
                continue
            values = np.array([box["coordinates"] for box in cell], np.float64).reshape(-1, width)
            if self.facts.get("box_unit") == XYXY:
                values = values[:, [1, 0, 3, 2]]
            labels = tuple(FINDING if nameless else box["label"] for box in cell)
            found.append(Findings(values, labels, None if size is None else tuple(size)))
        return found

    @property
    def spheres(self) -> bool:
        """Findings are spheres in the patient, not boxes in the image."""
        return self.facts.get("box_unit") == SPHERES

    def origin(self, column: str) -> str:
        """Where a column is from, in words."""
        return self.facts.get("origins", {}).get(column) or f"the column {column}"

    def said(self) -> str:
        """What the source has, in words."""
        kinds = {"label": "classes", "labels": "classes", "mask": "masks", "boxes": "boxes"}
        found: dict[str, int] = {}
        for column, what in kinds.items():
            if self.has(column):
                found[what] = max(found.get(what, 0), len(self.table) - self.table[column].null_count)
        if not found:
            return f"It holds {len(self.table):,} images and nothing else is known of them."
        shown = ", ".join(f"{what} of {count:,}" for what, count in found.items())
        return f"Of its {len(self.table):,} images it has {shown}."

    def need(self, column: str) -> None:
        """Raise InputError, saying what the source has instead, unless a column (``labels`` for classes) is there."""
        if self.has(column) or (column == "label" and self.has("labels")):
            return
        where, missing = self.source.location, _NEEDED[column]
        if column in self.facts.get("trouble", {}):
            raise InputError(self.facts["trouble"][column])
        verbs = [verb for other, verb in _VERBS.items() if other != column and self.has(other)]
        hint = f" frepa {' or frepa '.join(verbs)} learns from these." if verbs else ""
        raise InputError(f"{where}: has no {missing}. {self.said()}{hint} {EXPECTED[column]}")


_NEEDED = {"label": "classes, which frepa classify learns", "mask": "masks, which frepa segment learns",
           "boxes": "boxes, which frepa detect learns"}  # fmt: skip
_VERBS = {"label": "classify", "labels": "classify", "mask": "segment", "boxes": "detect"}
#: Where each column is read from, in words.
EXPECTED = {
    "label": "Classes are read from a folder per class (benign/1.png, malignant/2.png), these below train/, val/ and "
    "test/, the column label of a manifest, an npz file as MedMNIST has them, or dataset-id:folder.",
    "mask": "Masks are read from images/ and masks/ (or image/ and label/), flat or below train/, val/ and test/, the "
    "column mask of a manifest, the layouts of DRIVE, CHASE_DB1, HRF, STARE and the Medical Decathlon, or "
    "dataset-id:folder.",
    "boxes": "Boxes are read from Pascal VOC (Annotations/*.xml), COCO (annotations.json), a table with a row per box "
    "(path, x_min, y_min, x_max, y_max), masks, or dataset-id:folder.",
}


def class_order(names: Sequence[str]) -> tuple[str, ...]:
    """Class names in order: numbers by value, others by spelling."""
    distinct = set(names)
    if all(re.fullmatch(r"-?\d+", name) for name in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))
