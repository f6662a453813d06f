"""DICOM files opened: by content, within limits of memory, without a word of what the header holds."""

from __future__ import annotations

import io
import logging
import os
import warnings
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from frepa.images.guards import file_status, memory_limit, why
from frepa.images.readers.dicom.shortening import shortened
from frepa.images.readers.packed import is_packed, unpacked
from frepa.images.scan import UnreadableScan

# pydicom's warnings quote the values they complain about, which may name a patient
warnings.filterwarnings("ignore", module=r"pydicom(\..*)?$")
for _library in ("pydicom", "pylibjpeg", "openjpeg"):  # without a handler of their own they write to the screen
    logging.getLogger(_library).addHandler(logging.NullHandler())
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

#: Bytes a deflated file may unpack to, or a quarter of the limit of memory where that is less.
MOST_INFLATED = 2**31
# Deflate cannot shrink by more than about 1032
_MOST_DEFLATE = 1100

#: The image pixel module: what is needed for values is in this group, or behind it.
PIXEL_GROUP = 0x0028
# Bytes in which the pixels of a header begin, mostly, and of files that are read at once
_HEADER, _WHOLE = 2**16, 2**24

#: The element by which files are grouped into series.
SERIES = Tag("SeriesInstanceUID")


def series_of(data: Dataset) -> str:
    """The series instance UID, "" where it was removed."""
    return str(data.get("SeriesInstanceUID") or "").strip()


def is_deflated(data: Dataset) -> bool:
    """Whether all of the file after its meta group is compressed."""
    stated = getattr(data, "file_meta", None)
    return stated is not None and stated.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian


def read_tags(path: Path, tags: Sequence[BaseTag | str]) -> Dataset:
    """A few elements of a header, as `read_header` finds them. Raises `UnreadableScan`."""
    return read_dataset(path, tags, pixels=False)


def read_dataset(path: Path, tags: Sequence[BaseTag | str], *, pixels: bool = True) -> Dataset:
    """A pydicom dataset. Raises `UnreadableScan`; nothing of the header is quoted in its reason.

    Args:
        path: the file.
        tags: elements that are asked for. Others may be missing, but for those of `PIXEL_GROUP` and behind it.
        pixels: read all of the file; else what lies before the pixels, and none but these elements.
    """
    file_status(path)
    if is_packed(path.name):
        path = unpacked(path)
    try:
        with open(path, "rb") as file:
            small = not pixels or os.fstat(file.fileno()).st_size < _WHOLE
            start = file.read((_WHOLE if pixels else _HEADER) if small else 2048)
            check_inflated(path, start[:2048])
            force = start[128:132] != b"DICM" and starts_like_dicom(start)
            group = PIXEL_GROUP if pixels else 0x7FE0
            whole = len(start) < _HEADER or pixels
            numbers = _numbers(tuple(tags))
            short = shortened(start, numbers, whole=whole, from_group=group) if small else None
            file.seek(0)
            source = file if short is None else io.BytesIO(short)
            if pixels:
                return pydicom.dcmread(source, force=force)
            return pydicom.dcmread(source, force=force, stop_before_pixels=True, specific_tags=list(numbers))
    except FileNotFoundError:
        raise UnreadableScan(str(path), "file not found", kind="empty") from None
    except InvalidDicomError:
        raise UnreadableScan(str(path), "not a DICOM file", kind="damaged") from None
    except UnreadableScan:
        raise
    except PermissionError as error:
        raise UnreadableScan(str(path), why(error)[0]) from None
    except MemoryError:
        raise UnreadableScan(str(path), "too large for this machine's memory", kind="too large") from None
    except RecursionError:
        raise UnreadableScan(str(path), "damaged header (nested without end)", kind="damaged") from None
    except zlib.error:
        raise UnreadableScan(str(path), "damaged: its compressed data fails the check", kind="damaged") from None
    except Exception as error:  # pydicom raises nearly anything on damaged files
        raise UnreadableScan(
            str(path), f"damaged or truncated header ({type(error).__name__})", kind="truncated"
        ) from None


@lru_cache(maxsize=16)
def _numbers(tags: tuple[BaseTag | str, ...]) -> frozenset[int]:
    return frozenset(int(Tag(tag)) for tag in tags)


def check_inflated(path: Path, start: bytes) -> None:
    """Refuse a deflated file that unpacks to more than a part of `memory_limit`, before pydicom unpacks it whole.

    Args:
        path: the file.
        start: its first 2048 bytes.
    """
    if DeflatedExplicitVRLittleEndian.encode() not in start:
        return
    # The data begin where the meta group, whose length is its first element, ends
    at = start.find(b"\x02\x00\x00\x00UL\x04\x00")
    limit = min(MOST_INFLATED, memory_limit() // 4)
    if at < 0 or os.path.getsize(path) * _MOST_DEFLATE < limit:
        return
    with open(path, "rb") as file:
        file.seek(at + 12 + int.from_bytes(start[at + 8 : at + 12], "little"))
        unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not unpacker.eof and (piece := unpacker.unconsumed_tail or file.read(2**16)):
            total += len(unpacker.decompress(piece, 2**20))
            if total > limit:
                raise UnreadableScan(str(path), f"unpacks to more than {limit:,} bytes", kind="too large")


def starts_like_dicom(start: bytes) -> bool:
    """Whether a file that has no preamble begins with an element of group 2 or 8, in either byte order."""
    if len(start) < 8:
        return False
    little, big = (int.from_bytes(start[:2], order) for order in ("little", "big"))  # type: ignore[arg-type]
    if little not in (2, 8) and big not in (2, 8):
        return False
    order = "little" if little in (2, 8) else "big"
    if int.from_bytes(start[2:4], order) > 0x0100:  # type: ignore[arg-type]
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or int.from_bytes(start[4:8], order) < 2**16  # type: ignore[arg-type]


def is_dicom(path: Path) -> bool:
    """By content: the mark after the preamble, or a first element that only DICOM files begin with."""
    try:
        file_status(path)
        with open(path, "rb") as file:
            start = file.read(132)
    except (OSError, UnreadableScan):
        return False
    return start[128:132] == b"DICM" or starts_like_dicom(start)
