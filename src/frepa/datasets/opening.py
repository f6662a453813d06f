"""The one door: whatever a user names as SOURCE, opened as a `Source`, and what is known of its images."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frepa.datasets.annotations import Annotations, table_of
from frepa.datasets.stacks import BY_PATIENT, Dividing, in_parts
from frepa.errors import InputError
from frepa.images.source import Source
from frepa.user_paths import check_source_name

_STACKED = re.compile(r"\[\d+\]$")
_CARRY = 'To carry it to volumes put slices: before it, as in --encoder "slices:ENCODER"; or give a 3D encoder.'


@dataclass(frozen=True)
class Kind:
    """A kind of source, in a module of its own that is imported when it is needed.

    ``matches(text, path)`` says cheaply whether a SOURCE is one; ``opener``, as ``module:function``, names what gives
    the `Source`: ``open(text, dims=..., max_pixels=..., canonical=..., voi=...)``.
    """

    name: str
    matches: Callable[[str, Path], bool]
    opener: str


def _is_store(text: str, path: Path) -> bool:
    if not os.path.isdir(path):  # which Path.is_dir is not asked: it raises on names that are too long
        return False
    from frepa.images.store.layout import StoreFolder

    return StoreFolder(path).exists()


def _is_catalogue(text: str, path: Path) -> bool:
    if ":" not in text:
        return False
    from frepa.datasets.catalogue.resolve import parse_source

    return parse_source(text) is not None


def _is_box_file(text: str, path: Path) -> bool:
    ending = path.suffix.lower()
    if ending not in (".json", ".csv", ".tsv", ".parquet") or not os.path.isfile(path):
        return False
    if ending in (".json", ".tsv"):
        return True
    from frepa.datasets.layouts.table import has_boxes

    return has_boxes(path)


def _is_npz(text: str, path: Path) -> bool:
    if path.suffix.lower() != ".npz":
        return False
    from frepa.datasets.derived import holds_parts

    return holds_parts(path)


def _is_labelled_folder(text: str, path: Path) -> bool:
    from frepa.datasets.layouts.opening import named_layout
    from frepa.datasets.layouts.registry import recognised

    if ":" in text and named_layout(text) is not None:
        return True
    return os.path.isdir(path) and recognised(path, "mask") is not None


#: Asked in this order; what is none of them is files. A new kind is a line here.
KINDS = [
    Kind("store", _is_store, "frepa.images.store.source:open_store"),
    Kind("labelled folder", _is_labelled_folder, "frepa.datasets.layouts.opening:open_folder"),
    Kind("catalogue", _is_catalogue, "frepa.datasets.catalogue.listing:open_catalogue"),
    Kind("npz", _is_npz, "frepa.datasets.derived:open_npz"),
    Kind("boxes", _is_box_file, "frepa.datasets.layouts.opening:open_boxes_file"),
    Kind("files", lambda text, path: True, "frepa.images.files:open_files"),
]


def open_source(
    source: str | Path | Source,
    *,
    dims: int = 2,
    max_pixels: int | None = None,
    canonical: bool = True,
    voi: bool = False,
) -> Source:
    """Find every record of ``source``.

    Args:
        source: a folder (searched recursively), a glob pattern, one file (``file.npz#member`` too;
            an npz file as MedMNIST has them with all its parts), a manifest (.csv or .parquet with a ``path`` column,
            and ``label``, ``mask``, ``split``, ``group``, ``fold``, ``modality``, ``dim``, ``unit``, ``slope``,
            ``intercept`` if wanted), a table with a row per box, a COCO file, a store,
            ``dataset-id:folder``, or ``layout:folder`` (``files:folder`` where no layout is to be recognised). An open
            `Source` is handed back. DICOM files are grouped into series. Files that a recognised layout says are masks
            are no records.
        dims: 2 for images, 3 for volumes. Files that can only be the other are left out.
        max_pixels: positions above which a file is refused before memory is asked for; None takes 2^28 pixels in 2D
            and 2^30 voxels in 3D.
        canonical: turn volumes of files to one orientation (slices from feet to head, rows from front to back, columns
            from right to left), by exchanging and flipping axes; nothing is resampled. False: axes as stored.
        voi: apply the display window or table that DICOM files carry, except to CT: for X-ray images whose stored
            values are raw detector readings.

    Raises:
        InputError: nothing there, or nothing readable in it.
    """
    if isinstance(source, Source):
        if source.dims != dims:
            raise InputError(f"The source {source.location} was opened with dims {source.dims}, expected {dims}.")
        return source
    if dims not in (2, 3):
        raise InputError(f"dims is {dims}, expected 2 (images) or 3 (volumes).")
    text, path = str(source), Path(source)
    check_source_name(text)  # before anything takes an empty name for the folder one is in
    kind = next(kind for kind in KINDS if kind.matches(text, path))
    module, name = kind.opener.split(":")
    opened: Source = getattr(importlib.import_module(module), name)(
        text, dims=dims, max_pixels=max_pixels, canonical=canonical, voi=voi
    )
    return opened


def annotations_of(source: Source, *, folders: bool = True) -> Annotations:
    """What is known of the images of a source: what it carries, and what its files tell of classes and boxes.

    ``folders`` False takes no folder's name for a class.
    """
    from frepa.datasets.derived import add_classes
    from frepa.datasets.layouts.opening import add_boxes
    from frepa.images.files import FileSource

    if isinstance(source, FileSource) and not _has(source, "boxes"):
        add_boxes(source)
    if not any(_has(source, column) for column in ("label", "labels", "mask")):
        add_classes(source, folders=folders)
    table = source.annotations
    return Annotations(source, table_of({"label": [None] * len(source)}, {}) if table is None else table)


def _has(source: Source, column: str) -> bool:
    return source.annotations is not None and column in source.annotations.column_names


def open_annotated(
    text: str,
    dims: int,
    column: str | None,
    *,
    instead: str | None = None,
    canonical: bool = True,
    how: Dividing = BY_PATIENT,
) -> Annotations:
    """The images of a source and what is known of them, for a task that needs ``column``: label, mask or boxes.

    No pixel is read.

    Args:
        text: a SOURCE as in `open_source`.
        dims: 2 or 3, as the encoder takes.
        column: must be known of one image at least; None where images alone will do, slices of stacks too.
        instead: a column that serves as well.
        canonical: as in `open_source`.
        how: how images are to be divided into parts, see `frepa.datasets.stacks.in_parts`.

    Raises:
        InputError: nothing there, the column is missing (says what there is instead), or images of another number of
            axes.
    """
    try:
        source = open_source(text, dims=dims, canonical=canonical)
    except InputError as error:
        raise _other_axes(text, dims) or error from None
    known = annotations_of(source)
    if column is None:
        return known
    if instead is not None and known.has(instead) and not known.has(column):
        column = instead
    known.need(column)
    stacked = _stacked(known, column)
    if how.by != "patients":
        return in_parts(known, how, column, stacks=stacked is not None and dims == 2)
    if stacked is None:
        return known
    if dims == 3:
        raise InputError(
            f"{text}: {stacked} holds several volumes under one annotation. Save each as a file of its own."
        )
    raise InputError(
        f"{text}: {stacked} holds many slices under one annotation, and the encoder takes single 2D images. {_CARRY} "
        "To take its slices one by one add --divide-by blocks."
    )


def _other_axes(text: str, dims: int) -> InputError | None:
    """What to do where images have another number of axes than the encoder takes; None where that is not the matter."""
    try:
        open_source(text, dims=5 - dims)
    except InputError:
        path = Path(text)
        files = sorted(path.glob("*.npz")) if os.path.isdir(path) else []
        return InputError(f"{text}: of npz files as MedMNIST has them give one, such as {files[0]}.") if files else None
    return InputError(f"{text}: {wrong_axes(dims)}")


def wrong_axes(dims: int) -> str:
    """What to do where images have another number of axes than an encoder of ``dims`` takes."""
    if dims == 3:
        return "holds 2D images, and the encoder takes volumes. Give a 2D encoder."
    return f"holds volumes, and the encoder takes 2D images. {_CARRY}"


def _stacked(known: Annotations, column: str) -> str | None:
    """A file of many slices or volumes, to all of which belongs what is known of it; None where there is none."""
    from frepa.images.files import FileSource

    source = known.source
    if not isinstance(source, FileSource) or known.facts.get("each"):
        return None
    cells = known.table[column if column in known.table.column_names else "label"]
    rows = np.flatnonzero(cells.is_valid().to_numpy(zero_copy_only=False))
    stacked = next((source.name(row) for row in rows.tolist() if source.is_stack(row)), None)
    return None if stacked is None else _STACKED.sub("", stacked)
