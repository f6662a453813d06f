"""What is known of the images of a source, as a store keeps it: plain values without names, and masks on their grid."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frepa.datasets.annotations import CORNERS, FOV, SCHEMA, Annotations, table_of
from frepa.datasets.cases import cases_of
from frepa.datasets.opening import annotations_of
from frepa.datasets.reading import inside_of, misfit, read_mask, read_scan
from frepa.datasets.slice_boxes import boxes_on_slices
from frepa.datasets.stacks import with_rows
from frepa.errors import InputError
from frepa.images import boxes
from frepa.images.files import FileSource
from frepa.images.orientation import reorient_header
from frepa.images.places import split_place
from frepa.images.scan import Scan, UnreadableScan
from frepa.images.source import Source
from frepa.images.store.records import anonymous_id

#: Facts of an annotation table that say nothing of a single file.
_FACTS = ("classes", "target", "targets", "values", "binary", "rules", "box_unit", "layout", "dataset")
_OURS = "the store it was packed into"
_ROWS = 65536  # looked at at a time


class StoredLabels:
    """The annotations of a source for a store, see `frepa.images.store.labels.Labels`.

    Without ``keep_names`` patients are pseudonyms, and images that have masks are called by their place in the order of
    their names, so that heads see them in the order in which they see the files.

    Args:
        known: what is known of the images, axes canonical.
        keep_names: names of images and patients stay as they are.
        native: the same source with axes as stored, opened with dims 2 or 3: boxes of volumes are turned with them.
        lost: a sentence on what cannot be kept.
    """

    def __init__(
        self, known: Annotations, *, keep_names: bool, native: Callable[[int], Source], lost: str = ""
    ) -> None:
        self._lost = lost
        self._source, self._target = known.source, str(known.facts.get("target") or "")
        table = known.table
        self.masks = tuple(c for c in table.column_names if _is_mask(c) and known.has(c))
        self._places = {column: table[column].combine_chunks() for column in self.masks}
        columns = {c: table[c] for c in table.column_names if not _is_mask(c) and known.has(c)}
        if "boxes" in columns and known.source.dims == 3 and known.facts.get("box_unit", CORNERS) == CORNERS:
            columns["boxes"] = _turned(columns["boxes"].to_pylist(), native(3))
        if "group" in columns and not keep_names:
            columns["group"] = _anonymous(columns["group"])
        columns.pop("case", None)
        if self.masks:
            columns["case"] = _called(known, keep_names)
        facts = {name: known.facts[name] for name in _FACTS if name in known.facts}
        facts["origins"] = dict.fromkeys(columns, _OURS)
        self.table = table_of(columns, facts)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for column in (*self.table.columns, *self._places.values()):
            for first in range(0, len(column), _ROWS):
                digest.update(json.dumps(column[first : first + _ROWS].to_pylist()).encode("utf-8", "surrogateescape"))
        for path in sorted({self._file(text) for places in self._places.values() for text in pc.unique(places)}):
            digest.update(f"{os.path.getsize(path) if os.path.isfile(path) else -1} ".encode())
        self.fingerprint = digest.hexdigest()

    def said(self) -> str:
        """What is kept, in words."""
        kinds = {
            "label": "classes",
            "labels": "classes",
            "boxes": "boxes",
            "split": "parts",
            "fold": "folds",
            "group": "groups",
        }
        found = [kinds[column] for column in self.table.column_names if column in kinds]
        found += ["masks"] if "mask" in self.masks else []
        found += ["fields of view"] if f"mask_{FOV}" in self.masks else []
        kept = f"Kept with them: {', '.join(dict.fromkeys(found))}." if found else ""
        return " ".join(filter(None, (kept, self._lost)))

    def read(self, index: int, column: str, image: Scan) -> np.ndarray | None:
        """A mask, ``(1, *S)`` on the grid of ``image``; see `frepa.images.store.labels.Labels`."""
        text = self._places[column][index].as_py()
        if text is None:
            return None
        target = self._target if column == "mask" else column.removeprefix("mask_")
        mask = self._source.read_mask(index, target) if self._source.holds_masks else self._of_file(text, target)
        if mask is None:
            return None
        parted = misfit(image, mask)
        if parted is not None:
            raise UnreadableScan(text, f"another {parted} than its image")
        return mask.array

    def _of_file(self, text: str, target: str) -> Scan:
        path = Path(os.path.join(self._source.folder or "", text))
        try:
            if target != FOV:
                return read_mask(path, self._source.dims)
            found = read_scan(path, self._source.dims)
        except InputError as error:
            cause = error.__context__
            reason = cause.reason if isinstance(cause, UnreadableScan) else "no label map: a colour picture, or unknown"
            raise UnreadableScan(text, reason) from None
        inside = inside_of(found.array)[None].astype(np.uint8)
        return Scan(inside, affine=found.affine, spacing=found.spacing)

    def _file(self, text: pa.Scalar) -> str:
        place = split_place(text.as_py() or "").file
        return os.path.join(self._source.folder or "", place)


def stored_labels(
    source: Source, *, native: Callable[[int], Source], keep_names: bool = False, label_folders: bool = False
) -> StoredLabels | None:
    """What a store keeps of what is known of a source's images; None where nothing is known.

    Args:
        source: axes canonical.
        native: opens the same with axes as stored, with dims 2 or 3.
        keep_names: names of images and patients stay as they are.
        label_folders: the folder of an image is its class. Not taken for granted: it may be the name of a patient.

    Raises:
        InputError: annotations that cannot be understood.
    """
    known = annotations_of(source, folders=label_folders)
    lost = ""
    if source.dims == 2 and isinstance(source, FileSource) and not known.facts.get("each"):
        known, lost = _slices(known, source, native)
    if not lost and not any(known.has(column) for column in known.table.column_names):
        return None
    return StoredLabels(known, keep_names=keep_names, native=native, lost=lost)


def _slices(known: Annotations, source: FileSource, native: Callable[[int], Source]) -> tuple[Annotations, str]:
    """What is known of a stack, told of each of its slices, which stay together where parts are made of them.

    Boxes of volumes are given to the slices that they cross. Those of two axes do not say which slice of a stack they
    are in, so its slices have none, and a sentence says so.
    """
    stacked = [source.is_stack(i) for i in range(len(source))]
    if not any(stacked):
        return known, ""
    table, lost = with_rows(known), ""
    volumes = _boxed_volumes(known, native)
    if volumes is not None:
        added = table_of({"boxes": boxes_on_slices(source, volumes)}, {"box_unit": CORNERS})
        table = table.drop_columns(["boxes"]) if "boxes" in table.column_names else table
        facts = {**known.facts, "box_unit": CORNERS, "classes": volumes.facts.get("classes", ())}
        table = table_of(dict(zip(table.column_names, table.columns)) | {"boxes": added["boxes"]}, facts)
    elif known.has("boxes"):
        cells = table["boxes"].to_pylist()
        flat = {source.file(i) for i, cell in enumerate(cells) if stacked[i] and cell}
        lost = f"Not kept: boxes on stacks ({len(flat):,}), which do not say in which slice they are." if flat else ""
        without = pa.array([None if one else cell for cell, one in zip(cells, stacked)], SCHEMA["boxes"])
        table = table.set_column(table.column_names.index("boxes"), "boxes", without)
    if source.group_codes is None and not known.has("group"):
        files = [source.file(i) if one else None for i, one in enumerate(stacked)]
        table = table.drop_columns(["group"]) if "group" in table.column_names else table
        table = table.append_column("group", pa.array(files, pa.string()))
    return Annotations(source, table), lost


def _boxed_volumes(known: Annotations, native: Callable[[int], Source]) -> Annotations | None:
    """The volumes that slices are of, where boxes of these are known, which slices could not be told."""
    if known.has("boxes") or "boxes" not in known.facts.get("trouble", {}):
        return None
    try:
        volumes = annotations_of(native(3), folders=False)
    except InputError:
        return None
    return volumes if volumes.has("boxes") else None


def _is_mask(column: str) -> bool:
    return column == "mask" or column.startswith("mask_")


def _anonymous(groups: pa.ChunkedArray) -> pa.Array:
    coded = groups.cast(pa.string()).combine_chunks().dictionary_encode()
    names = pa.array([anonymous_id(name) for name in coded.dictionary.to_pylist()], pa.string())
    return pa.DictionaryArray.from_arrays(coded.indices, names).cast(pa.string())


def _called(known: Annotations, keep_names: bool) -> list[str | None]:
    """A name for every image that has a mask; names sort as those of the files do."""
    called: list[str | None] = [None] * len(known.source)
    cases = cases_of(known, "").cases
    for place, case in enumerate(cases):
        number = f"{place:0{len(str(len(cases)))}d}"
        called[case.record] = case.name if keep_names else f"{number}-{anonymous_id(known.source.name(case.record))}"
    return called


def _turned(cells: list[Any], native: Source) -> list[Any]:
    """Boxes in the axes of the files to the canonical ones that a store has."""
    for index, cell in enumerate(cells):
        if not cell:
            continue
        try:
            header = native.header(index)
        except UnreadableScan:  # told when its turn comes
            continue
        to = reorient_header(header)
        if header.affine is None or to.affine is None:
            continue
        corners = boxes.turned(np.array([box["coordinates"] for box in cell]), header.affine, to.affine)
        cells[index] = [{**box, "coordinates": corner} for box, corner in zip(cell, corners.tolist())]
    return cells
