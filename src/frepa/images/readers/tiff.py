"""TIFF through tifffile: 1 to 32 bit integers and floats, grey, RGB, RGBA, CMYK and palette, pages and planes.

A file with one page is an image. A file with several pages of one size is a volume when ``dims=3``, and one image per
page in 2D; one page is named as ``file.tif#page=0``, or ``file.tif#0``.

The chain of pages is followed here, not by tifffile: once per file and process, no further than
`frepa.images.guards.MOST_PARTS`, and never in a circle.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from frepa.images.guards import MOST_PARTS, check_memory, reported
from frepa.images.readers.pixels import channels_first, check_size, checked, drop_alpha, orient
from frepa.images.scan import Header, Scan, Trouble, UnreadableScan
from frepa.images.volumes import file_key

_MINISWHITE, _PALETTE, _SEPARATED = 0, 3, 5


class _Pages(NamedTuple):
    """The pages of a file that can be records, all alike: places of their directories, and the first one's header."""

    places: tuple[int, ...]
    size: tuple[int, int]
    turned: bool
    colour: bool
    nbytes: int


def header(path: Path, member: str | None, *, dims: int, max_pixels: int) -> Header:
    """Size and channels from the tags alone."""
    pages = _pages(path, file_key(path), member, dims)
    size = pages.size[::-1] if dims == 2 and pages.turned else pages.size
    channels = 3 if pages.colour else 1
    _check(path, pages, dims, max_pixels)
    return Header(channels, size, len(pages.places)) if dims == 2 else Header(channels, (len(pages.places), *size))


def read(path: Path, member: str | None, row: int, *, dims: int, max_pixels: int) -> Scan:
    """One image ``(1 | 3, H, W)``, or for ``dims=3`` the stack of pages ``(1 | 3, D, H, W)``, in the stored type."""
    pages = _pages(path, file_key(path), member, dims)
    _check(path, pages, dims, max_pixels)
    with _opened(path) as file:
        places = pages.places if dims == 3 else pages.places[row : row + 1]
        planes = [_page_pixels(path, _page(file, place)) for place in places]
    array = planes[0] if dims == 2 else np.stack(planes)
    return Scan(checked(path, channels_first(array)))


def _check(path: Path, pages: _Pages, dims: int, max_pixels: int) -> None:
    count = len(pages.places) if dims == 3 else 1
    check_size(path, pages.size if dims == 2 else (count, *pages.size), max_pixels)
    check_memory(path, count * pages.nbytes)


@contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    def told(error: Exception) -> tuple[str, Trouble]:
        text = " ".join(str(error).replace(str(path), path.name).split())[:160] or type(error).__name__
        return f"damaged or truncated TIFF ({text})", "truncated"

    with reported(path, told), tifffile.TiffFile(path) as file:
        yield file


@lru_cache(maxsize=256)
def _pages(path: Path, stamp: object, member: str | None, dims: int) -> _Pages:
    """The pages that make up the records, which must be alike."""
    with _opened(path) as file:
        # A reduced page is a thumbnail or a pyramid level of the full one
        found = [page for page in (_page(file, place) for place in _directories(path, file)) if not page.is_reduced]
        if not found:
            raise UnreadableScan(str(path), "holds no page of pixels", kind="empty")
        if member is not None:
            number = member.removeprefix("page=")
            if not number.isdecimal() or int(number) >= len(found):
                raise UnreadableScan(str(path), f"has no page {member!r}; it holds {len(found)}, numbered from 0")
            found = [found[int(number)]]
        first = found[0]
        if any(page.shape != first.shape or page.dtype != first.dtype for page in found):
            text = f"holds {len(found)} pages of different sizes or types; name one, e.g. {path.name}#page=0"
            raise UnreadableScan(str(path), text, kind="several arrays")
        if first.dtype is None:
            raise UnreadableScan(str(path), f"holds {first.bitspersample}-bit samples that cannot be read")
        if dims == 3 and len(found) == 1:
            text = "one page, so an image and not a volume; read it with dims 2"
            raise UnreadableScan(str(path), text, kind="other dims")
        if (first.imagedepth or 1) > 1:
            raise UnreadableScan(str(path), "holds a volume within one page, which is not supported; save it as pages")
        size = (first.imagelength, first.imagewidth)
        samples = max(1, first.samplesperpixel) * first.dtype.itemsize
        return _Pages(
            tuple(page.offset for page in found),
            size,
            _orientation(first) in (5, 6, 7, 8),
            first.samplesperpixel >= 3 or first.photometric == _PALETTE,
            size[0] * size[1] * samples,
        )


def _directories(path: Path, file: tifffile.TiffFile) -> list[int]:
    """Places of the directories, one per page, in the order of the chain."""
    tiff, handle = file.tiff, file.filehandle
    if tiff.is_ndpi:  # its offsets are split over two places
        return [page.offset for page in file.pages]

    def number(place: int, kind: str, width: int) -> int:
        handle.seek(place)
        return int(struct.unpack(kind, handle.read(width))[0])

    places: list[int] = []
    seen: set[int] = set()
    try:
        place = number(8 if tiff.is_bigtiff else 4, tiff.offsetformat, tiff.offsetsize)
        while place:
            if place in seen:
                raise UnreadableScan(str(path), "damaged: its pages lead back to one another", kind="damaged")
            if len(places) >= MOST_PARTS:
                text = f"holds more pages than the limit of {MOST_PARTS:,}"
                raise UnreadableScan(str(path), text, kind="too large")
            seen.add(place)
            places.append(place)
            after = place + tiff.tagnosize + number(place, tiff.tagnoformat, tiff.tagnosize) * tiff.tagsize
            place = number(after, tiff.offsetformat, tiff.offsetsize)
    except struct.error:
        text = f"truncated: the file ends within the list of its pages, after {len(places)}"
        raise UnreadableScan(str(path), text, kind="truncated") from None
    return places


def _page(file: tifffile.TiffFile, place: int) -> tifffile.TiffPage:
    file.filehandle.seek(place)
    return tifffile.TiffPage(file, 0)


def _orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get("Orientation")
    return int(tag.value) if tag is not None else 1


def _page_pixels(path: Path, page: tifffile.TiffPage) -> np.ndarray:
    """``(H, W, 1 | 3)``, brighter is larger."""
    array = page.asarray()
    bits, samples = page.bitspersample, page.samplesperpixel
    if array.ndim == 2:
        array = array[..., None]
    elif page.planarconfig == 2 and array.shape[0] == samples:  # planes after each other
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] != samples:
        raise UnreadableScan(str(path), f"holds an array of shape {array.shape}, which is no image")
    if page.photometric == _PALETTE and page.colormap is not None:
        array = (page.colormap[:, array[..., 0]] >> 8).astype(np.uint8)
        array = np.moveaxis(array, 0, -1)
    elif page.photometric == _MINISWHITE and samples == 1 and array.dtype.kind in "ub":
        array = ~array if array.dtype == bool else np.array(2**bits - 1, array.dtype) - array
    elif page.photometric == _SEPARATED and samples >= 4:
        full = float(2**bits - 1)
        ink = array[..., :4].astype(np.float32)
        array = np.rint((full - ink[..., :3]) * (full - ink[..., 3:]) / full).astype(array.dtype)
    elif samples in (2, 4) and len(page.extrasamples) == 1:
        array = drop_alpha(array)
    if array.shape[-1] not in (1, 3):
        raise UnreadableScan(
            str(path), f"holds {array.shape[-1]} channels; expected grey, RGB or one of them with alpha"
        )
    return orient(array, _orientation(page))
