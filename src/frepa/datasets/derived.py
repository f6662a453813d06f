"""Classes that a source tells without a table: folders of classes, label arrays of an npz file, labels of a store."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from frepa.datasets.annotations import PARTS, Annotations, extended
from frepa.errors import InputError
from frepa.images.files import FileSource, nothing_readable
from frepa.images.finding import Found
from frepa.images.readers.pixels import MAX_PIXELS
from frepa.images.source import Source

#: The layout of an npz file with arrays called as MedMNIST calls them.
NPZ = "npz"
_NPZ_PARTS = ("train", "val", "test", "")


def add_classes(source: Source, *, folders: bool = True) -> None:
    """Add the classes, and the parts where they are told too, to what is known of a source.

    ``folders`` False takes no folder's name for a class.
    """
    if source.labels is not None:
        labels = [str(label) or None for label in source.labels]
        source.annotations = extended(source.annotations, {"label": labels}, {"origins": {"label": "the source"}})
    elif folders:
        _from_folders(source)


def holds_parts(path: Path) -> bool:
    """Whether a file is an npz with arrays called as MedMNIST calls them: ``train_images``, ``images``, ..."""
    if path.suffix.lower() != ".npz" or not os.path.isfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):  # told by whoever reads it
        return False
    return any(_key(part, "images") in names for part in _NPZ_PARTS)


def open_npz(
    text: str, *, dims: int, max_pixels: int | None = None, canonical: bool = True, voi: bool = False
) -> FileSource:
    """All images of an npz file, with the classes and parts that its other arrays tell.

    ``{split}_images`` and ``{split}_labels`` (or without split); labels (N,) or (N, 1), or (N, K) of 0 and 1.

    Raises:
        InputError: the file is damaged, holds no images of ``dims`` axes, or labels do not fit their images.
    """
    path = Path(text).expanduser()
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = [part for part in _NPZ_PARTS if _key(part, "images") in file.files]
            told = [_labels(file, part) for part in parts]
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as npz ({error}).") from None
    size = path.stat().st_size
    members = [Found(path.name, _key(part, "images"), size) for part in parts]
    options: dict[str, Any] = {"max_pixels": max_pixels or MAX_PIXELS[dims], "canonical": canonical, "voi": voi}
    source = FileSource(path.parent, text, members, dims=dims, **options)
    if source.skipped:
        raise nothing_readable(source)
    counts = Counter(source.file(i) for i in range(len(source)))
    rows: list[list[int] | None] = []
    splits: list[str | None] = []
    for part, labels in zip(parts, told):
        count = counts[f"{path.name}#{_key(part, 'images')}"]
        if labels is not None and len(labels) != count:
            raise InputError(f"{path}: holds {count} {part} images and {len(labels)} labels. Every image needs one.")
        rows += [None] * count if labels is None else [np.atleast_1d(row).tolist() for row in labels]
        splits += [part or None] * count
    several = any(row is not None and len(row) > 1 for row in rows)
    cells = [
        None if row is None else np.flatnonzero(row).astype(str).tolist() if several else str(row[0]) for row in rows
    ]
    facts = {"origins": {"label": "the label arrays of the file"}, "layout": NPZ, "each": True}
    source.annotations = extended(None, {"labels" if several else "label": cells, "split": splits}, facts)
    return source


def training_images(source: Source) -> Source:
    """Of an npz file that holds the parts of a set, the training part alone; any other source as it is.

    What is to be known of the choice, and of test images that stay, is in `Source.aside` and `Source.warnings`.
    """
    if source.annotations is None or "split" not in source.annotations.column_names:
        return source
    cells = source.annotations["split"].to_pylist()
    parts = [None if cell is None else PARTS.get(str(cell).strip().lower()) for cell in cells]
    counts = Counter(parts)
    where = source.location
    if Annotations(source, source.annotations).layout == NPZ and 0 < counts["train"] < len(source):
        chosen = source.select([i for i, part in enumerate(parts) if part == "train"])
        chosen.aside = (
            f"{where}: the {counts['train']:,} images of its training part are used; the other "
            f"{len(source) - counts['train']:,} are kept out ({where}#test_images names another part)."
        )
        return chosen
    if 0 < counts["test"] < len(source):
        source.warnings.append(
            f"{counts['test']:,} of {len(source):,} images are of the test part of {where}, and are trained on like "
            "the others: an encoder that has seen them is not to be scored on them. To keep them out name the training "
            "part alone: dataset-id?split=train:folder, its folder, or a manifest of it."
        )
    return source


def _labels(file: Any, part: str) -> np.ndarray | None:
    """The classes that an array tells; None where there is none, or it is one of masks."""
    name = _key(part, "labels")
    labels = np.asarray(file[name]) if name in file.files else None
    return None if labels is None or labels.ndim > 2 else labels


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
