"""Labelled folders and lists of boxes as sources: files, and what their layout says of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frepa.datasets.annotations import extended
from frepa.datasets.layouts.coco import read_coco
from frepa.datasets.layouts.listed import open_listed
from frepa.datasets.layouts.registry import Layout, layouts, recognised
from frepa.datasets.layouts.table import read_table
from frepa.errors import InputError
from frepa.images.files import FileSource, nothing_readable
from frepa.images.finding import find_files
from frepa.images.readers.dicom.folders import grouped
from frepa.images.readers.pixels import MAX_PIXELS

#: ``files:FOLDER`` reads a folder as nothing but files, whatever layout it is in.
PLAIN = "files"
_ALIASES = {"decathlon": "folders", "nnunet": "folders"}


def named_layout(text: str) -> tuple[Path, Layout | None] | None:
    """Folder and layout of ``layout:folder``; the layout None for ``files:folder``; None for any other source.

    Raises:
        InputError: the folder is not in that layout.
    """
    name, colon, folder = text.partition(":")
    known = {layout.name: layout for layout in layouts()} | {PLAIN: None}
    name = _ALIASES.get(name.lower(), name.lower())
    path = Path(folder).expanduser()
    if not colon or name not in known or Path(text).exists():
        return None
    layout = known[name]
    if not path.exists():
        raise InputError(f"{path}: not found. Give a folder.")
    if layout is not None and not layout.detect(path):
        raise InputError(f"{path}: not in the layout {name}. Expected {layout.expects}.")
    return path, layout


def open_folder(
    text: str, *, dims: int, max_pixels: int | None = None, canonical: bool = True, voi: bool = False
) -> FileSource:
    """All images of a folder, without the files that its layout says are masks.

    A layout that recognises the folder and cannot read it is no reason not to read its images: why is kept in the
    facts of the annotations, for whoever needs them.

    Raises:
        InputError: no images.
    """
    limit = MAX_PIXELS[dims] if max_pixels is None else max_pixels
    path = Path(text).expanduser()
    path, layout = named_layout(text) or (path, recognised(path, "mask"))
    root, entries = find_files(str(path), dims)
    found = list(entries)
    listing = None
    if layout is not None and layout.column == "mask":
        try:
            listing = layout.read(path, [entry.name for entry in found], dims)
        except InputError as error:
            trouble = str(error)
    if listing is not None:
        members = listing.members
        found = [entry for entry in found if entry.name not in listing.no_images]
        found = [entry.changed(member=members[entry.name]) if entry.name in members else entry for entry in found]
    options: dict[str, Any] = {"dims": dims, "max_pixels": limit, "canonical": canonical, "voi": voi}
    source = FileSource(root, text, grouped(found, root, dims, limit), **options)
    if not len(source):
        raise nothing_readable(source)
    source.warn_of_labels()
    if listing is not None:
        listing.annotate(source)
        if listing.no_images:
            source.aside = (
                f"{len(listing.no_images):,} files are masks by the layout of the folder ({source.location}) and are "
                "not used as images; files:FOLDER takes every file."
            )
    elif layout is not None and layout.column == "mask":
        source.annotations = extended(None, {"mask": [None] * len(source)}, {"trouble": {"mask": trouble}})
    return source


def open_boxes_file(
    text: str, *, dims: int, max_pixels: int | None = None, canonical: bool = True, voi: bool = False
) -> FileSource:
    """The images that a table of boxes or one COCO file names.

    Raises:
        InputError: it cannot be understood, or most images are not there.
    """
    path = Path(text).expanduser()  # For a table the folder is walked where a name is none of a path, and not before
    names = (entry.name for entry in find_files(str(path.parent), dims)[1])
    is_coco = path.suffix.lower() == ".json"
    listing = read_coco(path, list(names), dims) if is_coco else read_table(path, names, dims)
    return open_listed(path.parent, text, listing, dims=dims, max_pixels=max_pixels, canonical=canonical, voi=voi)


def add_boxes(source: FileSource) -> None:
    """Add the boxes that files of a folder give, where there are such files."""
    named = named_layout(source.location)
    folder = named[0] if named else Path(source.location).expanduser()
    layout = recognised(folder, "boxes") if folder.is_dir() else None
    if layout is None or (named and named[1] is None):
        return
    names = list(dict.fromkeys(source.file(i) for i in range(len(source))))
    try:
        layout.read(folder, names, source.dims).annotate(source)
    except InputError as error:
        facts = {"trouble": {"boxes": str(error)}}
        source.annotations = extended(source.annotations, {"boxes": [None] * len(source)}, facts)
