"""One case as arrays: image in [0, 1], classes, field of view, all of one size."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from frepa.datasets.annotations import FOV
from frepa.datasets.labels import LabelMap
from frepa.errors import InputError
from frepa.images.intensity import Window, to_unit
from frepa.images.orientation import reorient, reorient_header, same_grid
from frepa.images.places import split_place
from frepa.images.readers.pixels import MAX_PIXELS
from frepa.images.readers.registry import Reader, readable_suffixes, reader_at
from frepa.images.scan import Header, Scan, UnreadableScan, replace_scan
from frepa.images.source import Source

if TYPE_CHECKING:
    from frepa.datasets.cases import Case

# Corners may differ by this share of a voxel: headers are rounded, and some programs place voxel corners by halves.
_PLACE_TOLERANCE = 0.6


class BrokenFile(InputError):
    """A file of a labelled set cannot be read, and so nothing can be said of its case; ``trouble`` says why."""

    def __init__(self, trouble: UnreadableScan) -> None:
        super().__init__(f"{trouble}. Repair the file or take it out of the set.")
        self.trouble = trouble


class LabelledImage(NamedTuple):
    """image ``(C, *S)`` float32 in [0, 1]; classes ``(*S)`` uint8; inside ``(*S)`` bool or None, the field of view."""

    image: np.ndarray
    classes: np.ndarray
    inside: np.ndarray | None


def read_scan(path: Path, dims: int, *, canonical: bool = True) -> Scan:
    """Decode the record at a place (`frepa.images.places`); volumes are turned to the canonical orientation.

    ``canonical`` False leaves them as stored.

    Raises:
        InputError: no reader takes it, or it is damaged; names the file.
    """
    reader, place = _reader(path, dims), split_place(str(path))
    options = {"dims": dims, "max_pixels": MAX_PIXELS[dims]}
    try:
        return reader.read(Path(place.file), place.member, place.row, canonical=canonical, **options)
    except UnreadableScan as error:
        raise BrokenFile(error) from None


def read_header(path: Path, dims: int, *, canonical: bool = True) -> Header:
    """Size and place of one record without decoding it; ``canonical`` and InputError as in `read_scan`."""
    reader, place = _reader(path, dims), split_place(str(path))
    options = {"dims": dims, "max_pixels": MAX_PIXELS[dims]}
    try:
        return reader.header(Path(place.file), place.member, canonical=canonical, **options)
    except UnreadableScan as error:
        raise BrokenFile(error) from None


def header_of(source: Source, record: int) -> Header:
    """Size and place of a source's record in canonical orientation.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return reorient_header(source.header(record))
    except UnreadableScan as error:
        raise BrokenFile(error) from None


def check_row(path: Path, dims: int) -> None:
    """Raise InputError for a mask that is many masks of which none is named, or of which it names one too many."""
    place, count = split_place(str(path)), read_header(path, dims).count
    if count > 1 and not str(path).endswith("]"):
        raise InputError(
            f"{path}: holds {count} masks, and its image is one. Name the one that is meant: "
            f"{place.file}#{place.member or ''}[0], counted from 0."
        )
    if place.row >= count:
        raise InputError(f"{path}: there is no mask {place.row}; it holds {count}, counted from 0.")


def _reader(path: Path, dims: int) -> Reader:
    reader = reader_at(Path(split_place(str(path)).file))
    if reader is None or dims not in reader.dims:
        raise InputError(
            f"{path}: no {dims}D image format is known by this ending. Known: {', '.join(readable_suffixes(dims))}. "
            f"An encoder for {5 - dims}D images is needed for others."
        )
    return reader


def read_mask(path: Path, dims: int) -> Scan:
    """A mask with its stored values and type, ``(1, *S)``; volumes in canonical orientation.

    Palette images give their palette positions, not colours.

    Raises:
        InputError: the file is damaged or holds a colour picture.
    """
    scan = read_scan(path, dims)
    array = scan.array
    if array.shape[0] == 1:
        return scan
    positions = _palette_positions(path)
    if positions is not None and positions.shape == array.shape[1:]:
        return replace_scan(scan, array=positions[None])
    raise InputError(
        f"{path}: this mask is a colour picture ({array.shape[0]} channels), and a class per pixel is expected. "
        "Save it as one channel with the class as value."
    )


def _palette_positions(path: Path) -> np.ndarray | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image) if image.mode == "P" else None
    except OSError:
        return None


def inside_of(values: np.ndarray) -> np.ndarray:
    """A field of view ``(*S)`` bool from its file's values ``(C, *S)``: above half of the largest; all where empty."""
    top = float(values.max())
    return values.max(axis=0) > top / 2 if top > 0 else np.ones(values.shape[1:], dtype=bool)


def field_of_view(source: Source, record: int) -> np.ndarray | None:
    """Where the field of view of a record is, ``(1, *S)`` bool on its grid, axes canonical; None where nothing says.

    Raises:
        UnreadableScan: it is damaged, or does not fit its image.
    """
    column, table = f"mask_{FOV}", source.annotations
    place = None if table is None or column not in table.column_names else table[column][record].as_py()
    if place is None:
        return None
    name = source.name(record)
    found = source.read_mask(record, FOV)
    try:
        scan = read_scan(Path(os.path.join(source.folder or "", place)), source.dims) if found is None else found
    except InputError:
        raise UnreadableScan(name, "its field of view cannot be read") from None
    if parted := misfit(source.header(record), scan):
        raise UnreadableScan(name, f"its field of view has another {parted} than the image")
    return inside_of(scan.array)[None]


def mask_of(case: Case, dims: int) -> Scan:
    """The mask of a case with the values that stand for classes, ``(1, *S)``; volumes in canonical orientation.

    Raises:
        InputError: as in `read_mask`.
    """
    try:
        own = case.source.read_mask(case.record, case.target)
    except UnreadableScan as error:
        raise BrokenFile(error) from None
    scan = read_mask(case.mask, dims) if own is None else reorient(own)
    return scan if not case.rule else replace_scan(scan, array=RULES[case.rule](scan.array[0])[None])


def _outlines(ids: np.ndarray) -> np.ndarray:
    from skimage.segmentation import find_boundaries

    return find_boundaries(ids, mode="thick").astype(np.uint8)


def _of_any(ids: np.ndarray) -> np.ndarray:
    top = np.iinfo(ids.dtype).max if ids.dtype.kind in "iu" else 0
    return ((ids != 0) & (ids != top)).astype(np.uint8)


#: How masks whose values number instances become classes: where two instances meet (both pixels), or any instance at
#: all (0 and the type's largest value are none, as in CREMI).
RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"outlines": _outlines, "ids": _of_any}


def read_case(case: Case, labels: LabelMap, dims: int, window: Window = None) -> LabelledImage:
    """Image scaled over the whole image, classes and field of view, at native resolution.

    Volumes come in canonical orientation, each file turned by its own header.

    Raises:
        InputError: a file is damaged, or mask or field of view do not fit the image; names both files and sizes.
    """
    try:
        scan = reorient(case.source.read(case.record))
    except UnreadableScan as error:
        raise BrokenFile(error) from None
    mask = mask_of(case, dims)
    check_fit(case.image, scan, case.mask, mask, "mask")
    inside = None
    if case.fov is not None:
        try:
            own = case.source.read_mask(case.record, FOV)
        except UnreadableScan as error:
            raise BrokenFile(error) from None
        fov = read_scan(case.fov, dims) if own is None else reorient(own)
        check_fit(case.image, scan, case.fov, fov, "field of view")
        inside = inside_of(fov.array)
    return LabelledImage(to_unit(scan, window=window), labels.to_classes(mask.array[0], str(case.mask)), inside)


def misfit(image: Scan | Header, other: Scan | Header) -> Literal["size", "place"] | None:
    """What parts two records that should cover the same voxels, both in canonical orientation; None where nothing does.

    ``place`` where both are volumes that say where they lie.
    """
    if tuple(image.size) != tuple(other.size):
        return "size"
    if image.affine is None or other.affine is None or len(image.size) != 3:
        return None
    same = same_grid(tuple(image.size), image.affine, tuple(other.size), other.affine, _PLACE_TOLERANCE)
    return None if same else "place"


def check_fit(path: Path, image: Scan | Header, other_path: Path, other: Scan | Header, what: str) -> None:
    """Raise InputError unless both have the same extent on every axis and, where both say so, lie at the same place.

    Both in canonical orientation.
    """
    parted = misfit(image, other)
    if parted == "size":
        shown, other_shown = (" x ".join(map(str, item.size)) for item in (image, other))
        hint = ""
        if sorted(image.size) == sorted(other.size):
            hint = " The axes look exchanged: one of the two was probably saved turned or with an orientation tag."
        raise InputError(f"The {what} does not fit its image: {path} is {shown}, {other_path} is {other_shown}.{hint}")
    if parted == "place":
        raise InputError(
            f"The {what} lies elsewhere in the patient than its image: {path} and {other_path} have the same size, but "
            "their headers give other positions or voxel sizes. Resample the mask to the image's grid, or correct its "
            "header."
        )
