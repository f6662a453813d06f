"""TIFF through tifffile: 1 to 32 bit integers and floats, grey, RGB, RGBA, CMYK and palette, pages and planes.

A file with one page is an image. A file with several pages of one size is a volume when ``dims=3``, and one image per
page in 2D; one page is named as ``file.tif#0``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import tifffile

from frepa.images.readers.pixels import channels_first, check_size, checked, drop_alpha, orient
from frepa.images.scan import Header, Scan, UnreadableScan
from frepa.images.volumes import file_key

_MINISWHITE, _PALETTE, _SEPARATED = 0, 3, 5


def header(path: Path, member: str | None, *, dims: int, max_pixels: int) -> Header:
    """Size and channels from the tags alone."""
    with _opened(path) as file:
        pages = _pages(path, file, member, dims, max_pixels)
        colour = pages[0].samplesperpixel >= 3 or pages[0].photometric == _PALETTE
        size = (pages[0].imagelength, pages[0].imagewidth)
        if dims == 2 and _orientation(pages[0]) in (5, 6, 7, 8):
            size = size[::-1]
        channels = 3 if colour else 1
        return Header(channels, size, len(pages)) if dims == 2 else Header(channels, (len(pages), *size))


def read(path: Path, member: str | None, row: int, *, dims: int, max_pixels: int) -> Scan:
    """One image ``(1 | 3, H, W)``, or for ``dims=3`` the stack of pages ``(1 | 3, D, H, W)``, in the stored type."""
    with _opened(path) as file:
        if dims == 2 and member is None:
            # Parsing a page per slice, not all of them each time
            pages = [_full_page(file.pages[_page_numbers(path, file_key(path), max_pixels)[row]])]
        else:
            pages = _pages(path, file, member, dims, max_pixels)
        planes = [_page_pixels(path, page) for page in pages]
    array = planes[0] if dims == 2 else np.stack(planes)
    return Scan(checked(path, channels_first(array)))


@contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except UnreadableScan:
        raise
    except FileNotFoundError:
        raise UnreadableScan(str(path), "file not found", kind="empty") from None
    except MemoryError:
        raise UnreadableScan(str(path), "too large for this machine's memory", kind="too large") from None
    except Exception as error:  # codecs raise nearly anything on damaged files
        text = " ".join(str(error).replace(str(path), path.name).split())[:160] or type(error).__name__
        raise UnreadableScan(str(path), f"damaged or truncated TIFF ({text})", kind="truncated") from None


def _pages(
    path: Path, file: tifffile.TiffFile, member: str | None, dims: int, max_pixels: int
) -> list[tifffile.TiffPage]:
    """The pages that make up the record, their total size checked."""
    # A reduced page is a thumbnail or a pyramid level of the full one
    pages = [page for page in map(_full_page, file.pages) if not page.is_reduced]
    if not pages:
        raise UnreadableScan(str(path), "holds no page of pixels", kind="empty")
    if member is not None:
        if not member.isdigit() or int(member) >= len(pages):
            raise UnreadableScan(str(path), f"has no page {member!r}; it holds {len(pages)}, numbered from 0")
        pages = [pages[int(member)]]
    first = pages[0]
    if any(page.shape != first.shape or page.dtype != first.dtype for page in pages):
        text = f"holds {len(pages)} pages of different sizes or types; name one, e.g. {path.name}#0"
        raise UnreadableScan(str(path), text, kind="several arrays")
    if first.dtype is None:
        raise UnreadableScan(str(path), f"holds {first.bitspersample}-bit samples that cannot be read")
    if dims == 3 and len(pages) == 1:
        raise UnreadableScan(
            str(path), "one page, so an image and not a volume; read it with dims 2", kind="other dims"
        )
    if (first.imagedepth or 1) > 1:
        raise UnreadableScan(str(path), "holds a volume within one page, which is not supported; save it as pages")
    size = (first.imagelength, first.imagewidth)
    check_size(path, size if dims == 2 else (len(pages), *size), max_pixels)
    return pages


@lru_cache(maxsize=256)
def _page_numbers(path: Path, stamp: object, max_pixels: int) -> tuple[int, ...]:
    """Places in the file of the pages that are records, checked once per file and process."""
    with _opened(path) as file:
        return tuple(page.index for page in _pages(path, file, None, 2, max_pixels))


def _full_page(page: tifffile.TiffPage | tifffile.TiffFrame) -> tifffile.TiffPage:
    return page if isinstance(page, tifffile.TiffPage) else page.aspage()


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
