"""Classes that a source tells without a table: folders of classes, label arrays of an npz file, labels of a store."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from frepa.datasets.annotations import PARTS, extended
from frepa.errors import InputError
from frepa.images.files import FileSource, nothing_readable
from frepa.images.finding import Found
from frepa.images.readers.pixels import MAX_PIXELS
from frepa.images.source import Source


def add_classes(source: Source, *, folders: bool = True) -> None:
    """Add the classes, and the parts where they are told too, to what is known of a source.

    ``folders`` False takes no folder's name for a class.
    """
    if source.labels is not None:
        labels = [str(label) or None for label in source.labels]
        source.annotations = extended(source.annotations, {"label": labels}, {"origins": {"label": "the source"}})
    elif folders:
        _from_folders(source)


def open_npz(path: Path, dims: int, *, canonical: bool = True) -> FileSource:
    """All images of an npz file, with the classes and parts of its other arrays.

    ``{split}_images`` and ``{split}_labels`` (or without split); labels (N,) or (N, 1), or (N, K) of 0 and 1. Not for
    `open_source`: whoever only wants images has to say which part.

    Raises:
        InputError: the file is damaged, or arrays are missing or do not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = [part for part in ("train", "val", "test", "") if _key(part, "images") in file.files]
            missing = [_key(part, "labels") for part in parts if _key(part, "labels") not in file.files]
            if not parts or missing:
                raise InputError(
                    f"{path}: has no array {missing[0] if missing else 'train_images'}; it holds "
                    f"{', '.join(sorted(file.files))}. Expected train_images and train_labels, and the same for val "
                    "and test."
                )
            values = [np.asarray(file[_key(part, "labels")]) for part in parts]
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as npz ({error}).") from None
    size = path.stat().st_size
    members = [Found(path.name, _key(part, "images"), size) for part in parts]
    source = FileSource(path.parent, str(path), members, dims=dims, max_pixels=MAX_PIXELS[dims], canonical=canonical)
    if source.skipped:
        raise nothing_readable(source)
    count = sum(len(array) for array in values)
    if count != len(source):
        raise InputError(f"{path}: holds {len(source)} images and {count} labels. Every image needs one.")
    rows = [np.atleast_1d(row) for array in values for row in array]
    several = any(len(row) > 1 for row in rows)
    labels = [[str(k) for k in np.flatnonzero(row)] if several else str(row[0]) for row in rows]
    splits = [part or None for part, array in zip(parts, values) for _ in range(len(array))]
    facts = {"origins": {"label": "the label arrays of the file"}, "layout": "npz", "each": True}
    source.annotations = extended(None, {"labels" if several else "label": labels, "split": splits}, facts)
    return source


def _key(part: str, what: str) -> str:
    return f"{part}_{what}" if part else what


def _from_folders(source: Source) -> None:
    """``CLASS/image``, or ``train/CLASS/image`` where the upper folders are the three parts."""
    names = [source.name(i).split("/") for i in range(len(source))]
    above = {parts[0].lower() for parts in names if len(parts) > 1}
    divided = bool(above) and above <= set(PARTS)
    level = 1 if divided else 0
    labels = [parts[level] if len(parts) > level + 1 else None for parts in names]
    if not any(labels):
        return
    splits = [PARTS[parts[0].lower()] if divided and len(parts) > 1 else None for parts in names]
    facts = {"origins": {"label": "the names of the folders"}, "layout": "classes"}
    source.annotations = extended(source.annotations, {"label": labels, "split": splits}, facts)
