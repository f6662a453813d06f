"""Images with a class each: a folder per class, a manifest, a dataset of the catalogue, a MedMNIST file, a store."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frepa.datasets.catalogue.listing import CatalogueSource
from frepa.datasets.catalogue.records import table_facts
from frepa.datasets.layouts.registry import layouts
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.files import FileSource
from frepa.images.finding import Found
from frepa.images.readers.pixels import MAX_PIXELS
from frepa.images.source import Source

#: Spellings of the three parts in folder names, columns and keys.
PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
_MANIFESTS = (".csv", ".parquet")
#: What parts the names of an image that has several classes, in a manifest.
SEPARATOR = "|"
_STACKED = re.compile(r"\[\d+\]$")


@dataclass(frozen=True)
class LabelledSource:
    """A source and what is known of each record.

    Attributes:
        source: the images.
        labels: class names of each record, one as a rule; None where the record has no label.
        several: a record may have several classes or none (multi-label).
        splits: train, val or test of each record, None where nothing says so.
        classes: names in the order the source gives; () where it gives none.
        origin: where the labels come from, in words.
    """

    source: Source
    labels: list[tuple[str, ...] | None]
    several: bool
    splits: list[str | None]
    classes: tuple[str, ...]
    origin: str


def open_labelled(text: str, dims: int) -> LabelledSource:
    """Find the images of ``text`` and their classes. No pixel is read.

    Args:
        text: a folder with a sub-folder per class (or with train, val and test above these), a manifest with the
            columns ``path`` and ``label`` (and ``split``, ``group``), ``dataset-id:folder``, an npz file with
            ``train_images``, ``train_labels`` and so on as MedMNIST has them, or a store of labelled images.
        dims: 2 or 3.

    Raises:
        InputError: nothing there, no labels, or images of another number of axes.
    """
    path = Path(text)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _from_npz(path, dims)
    layout = next((item for item in layouts().values() if path.is_dir() and item.detect(path)), None)
    if layout is not None:
        raise InputError(
            f"{text}: is laid out for segmentation ({layout.name}: {layout.expects}), and its folders are no classes. "
            "Use frepa segment, or give a folder per class or a manifest with the columns path and label."
        )
    source = _open(text, dims)
    if isinstance(source, CatalogueSource):
        return _from_catalogue(source, text)
    if path.suffix.lower() in _MANIFESTS or source.labels is not None:
        found = _from_columns(source, text)
    else:
        found = _from_folders(source, text)
    if dims == 2:
        _refuse_stacks(source, text)
    return found


def _open(text: str, dims: int) -> Source:
    try:
        return open_source(text, dims=dims)
    except InputError as error:
        try:
            open_source(text, dims=5 - dims)
        except InputError:
            files = sorted(Path(text).glob("*.npz")) if Path(text).is_dir() else []
            if files:
                raise InputError(f"{text}: of npz files as MedMNIST has them give one, such as {files[0]}.") from None
            raise error from None
        if dims == 2:
            raise InputError(
                f"{text}: holds volumes, and the encoder takes 2D images. To carry it to volumes put slices: before "
                'it, as in --encoder "slices:ENCODER"; or give a 3D encoder.'
            ) from None
        raise InputError(f"{text}: holds 2D images, and the encoder takes volumes. Give a 2D encoder.") from None


def _refuse_stacks(source: Source, text: str) -> None:
    """A label belongs to one image: files of many slices are volumes, which a 2D encoder does not take."""
    stacked = next((source.name(i) for i in range(len(source)) if _STACKED.search(source.name(i))), None)
    if stacked is not None:
        file = _STACKED.sub("", stacked)
        raise InputError(
            f"{text}: {file} holds many slices under one label, and the encoder takes single 2D images. To carry it to "
            'volumes put slices: before it, as in --encoder "slices:ENCODER"; or give a 3D encoder.'
        )


def _from_npz(path: Path, dims: int) -> LabelledSource:
    """``{split}_images`` and ``{split}_labels`` (or without split); labels (N,) or (N, 1), or (N, K) of 0 and 1."""
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {name.removesuffix(".npy") for name in archive.namelist()}
        with np.load(path, allow_pickle=False) as file:
            parts = [part for part in ("train", "val", "test", "") if _key(part, "images") in keys]
            missing = [_key(part, "labels") for part in parts if _key(part, "labels") not in keys]
            if not parts or missing:
                raise InputError(
                    f"{path}: has no array {missing[0] if missing else 'train_images'}; it holds "
                    f"{', '.join(sorted(keys))}. Expected train_images and train_labels, and the same for val and test."
                )
            values = {part: np.asarray(file[_key(part, "labels")]) for part in parts}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as npz ({error}).") from None
    size = path.stat().st_size
    members = [Found(path.name, _key(part, "images"), size) for part in parts]
    source = FileSource(path.parent, str(path), members, dims=dims, max_pixels=MAX_PIXELS[dims])
    if source.skipped:
        hint = ""
        if dims == 2:
            hint = ' If they are volumes, put slices: before the encoder, as in --encoder "slices:ENCODER".'
        reason = source.skipped[0].reason.split(" (volumes are read")[0]
        raise InputError(f"{path}: {reason}; the encoder takes {dims}D images.{hint}")
    labels: list[tuple[str, ...] | None] = []
    splits: list[str | None] = []
    several = False
    for part in parts:
        rows = values[part].reshape(len(values[part]), -1)
        several = several or rows.shape[1] > 1
        labels += [tuple(str(k) for k in np.flatnonzero(row)) if len(row) > 1 else (str(row[0]),) for row in rows]
        splits += [part or None] * len(rows)
    if len(labels) != len(source):
        raise InputError(f"{path}: holds {len(source)} images and {len(labels)} labels. Every image needs one.")
    return LabelledSource(source, labels, several, splits, (), "the label arrays of the file")


def _key(part: str, what: str) -> str:
    return f"{part}_{what}" if part else what


def _from_catalogue(source: CatalogueSource, text: str) -> LabelledSource:
    one, many = source.table["label"].to_pylist(), source.table["labels"].to_pylist()
    several = any(names is not None for names in many)
    if not several and all(name is None for name in one):
        raise InputError(f"{text}: this dataset has no class labels, so nothing can be classified in it.")
    labels = [
        tuple(names) if names is not None else (name,) if name is not None else None for name, names in zip(one, many)
    ]
    splits = [PARTS.get(str(part).lower()) for part in source.table["split"].to_pylist()]
    classes = table_facts(source.table).get("classes", [])
    return LabelledSource(source, labels, several, splits, tuple(classes), "the dataset's own labels")


def _from_columns(source: Source, text: str) -> LabelledSource:
    if source.labels is None:
        raise InputError(
            f"{text}: has no column 'label', so nothing says which class an image is of. Add it: one class name per "
            f"row, or several parted by {SEPARATOR}."
        )
    cells = [str(cell).strip() for cell in source.labels]
    if not any(cells):
        raise InputError(f"{text}: the column 'label' is empty in every row. Write each image's class into it.")
    several = any(SEPARATOR in cell for cell in cells)
    labels: list[tuple[str, ...] | None] = [
        tuple(name.strip() for name in cell.split(SEPARATOR) if name.strip()) if cell else None for cell in cells
    ]
    return LabelledSource(source, labels, several, _splits(source.splits, text), (), "the column label")


def _splits(column: Any, text: str) -> list[str | None]:
    splits: list[str | None] = []
    for cell in column if column is not None else ():
        part = PARTS.get(str(cell).strip().lower())
        if part is None and str(cell).strip():
            raise InputError(f"{text}: split {cell!r} is not known. Expected train, val or test.")
        splits.append(part)
    return splits


def _from_folders(source: Source, text: str) -> LabelledSource:
    """``CLASS/image``, or ``train/CLASS/image`` where the upper folders are the three parts."""
    names = [source.name(i).split("/") for i in range(len(source))]
    above = {parts[0].lower() for parts in names if len(parts) > 1}
    divided = bool(above) and above <= set(PARTS)
    level = 1 if divided else 0
    labels = [(parts[level],) if len(parts) > level + 1 else None for parts in names]
    if not any(labels):
        raise InputError(
            f"{text}: no labels were found. Expected a folder per class (benign/1.png, malignant/2.png), these below "
            "train/, val/ and test/, a manifest with the columns path and label, an npz file as MedMNIST has them, or "
            "dataset-id:folder."
        )
    splits = [PARTS[parts[0].lower()] if divided and len(parts) > 1 else None for parts in names]
    return LabelledSource(source, list(labels), False, splits, (), "the names of the folders")


def class_order(names: Sequence[str]) -> tuple[str, ...]:
    """Class names in order: numbers by value, others by spelling."""
    distinct = set(names)
    if all(re.fullmatch(r"-?\d+", name) for name in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))
