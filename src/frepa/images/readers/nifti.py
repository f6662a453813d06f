"""NIfTI (.nii, .nii.gz, .hdr/.img) and FreeSurfer (.mgh, .mgz) through nibabel.

Axes of ``S`` are the file's in reverse: (z, y, x). A file with a fourth axis holds one record per volume (time, echo,
direction); RGB voxels become three channels. Values are ``scl_slope * stored + scl_inter``, in the stored type where
these change nothing. Compressed files are read to their end, so that a damaged one fails its checksum.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from frepa.images.guards import check_beside, check_memory, reported
from frepa.images.orientation import is_usable, permuted, voxel_sizes
from frepa.images.readers.pixels import check_size, checked
from frepa.images.scan import Header, Note, Scan, Trouble, UnreadableScan
from frepa.images.units import with_values_judged
from frepa.images.volumes import claimed_bytes, record, record_header, rescaled, shown

_RGB = (
    np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]),
    np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]),
)
_PER_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
# Deflate cannot shrink by more than about 1032
_MOST_DEFLATE = 1100
# Extensions before the voxels: larger ones are a lie that would make seeking slow
_MOST_OFFSET = 2**26
_HEADER, _MAGIC = 548, slice(344, 348)
NO_ORIENTATION = Note("the file does not say how it lies in the patient", "geometry")


def header(path: Path, member: str | None, *, dims: int, max_pixels: int) -> Header:
    """Size, spacing and number of volumes from the first bytes alone."""
    with reported(path, _told):
        image = _open(path, member)
        return record_header(_describe(path, image, dims, max_pixels), dims)


def read(path: Path, member: str | None, row: int, *, dims: int, max_pixels: int) -> Scan:
    """Volume ``row`` as ``(1 | 3, D, H, W)``, or for ``dims=2`` slice ``row`` as ``(1 | 3, H, W)``."""
    with reported(path, _told):
        image = _open(path, member)
        whole = _describe(path, image, dims, max_pixels)
        return record(path, row, dims, whole, lambda volume: _volume(path, image, whole, volume))


def _told(error: Exception) -> tuple[str, Trouble]:
    """What is wrong with a file of which nibabel raises this."""
    if isinstance(error, EOFError):
        return "truncated: the file ends before its last voxel", "truncated"
    if isinstance(error, gzip.BadGzipFile | zlib.error):
        return "damaged: its compressed data fails the check", "damaged"
    if isinstance(error, nibabel.filebasedimages.ImageFileError):
        return "not a file of the kind its name says, or a damaged header", "damaged"
    if isinstance(error, HeaderDataError | nibabel.wrapstruct.WrapStructError):
        return f"damaged header ({' '.join(str(error).split())[:160]})", "damaged"
    return f"damaged or truncated ({type(error).__name__})", "truncated"


def _open(path: Path, member: str | None) -> Any:
    if member is not None:
        raise UnreadableScan(str(path), f"holds volumes by number, not by name; it has no member {member!r}")
    if not path.is_file():
        raise FileNotFoundError(path)
    if _compressed(path):
        with gzip.open(path) as unpacked:
            start = unpacked.read(_HEADER)
        if not start:
            raise UnreadableScan(str(path), "empty file inside its compression", kind="empty")
        _check_offset(path, start)
    with np.errstate(all="ignore"):
        return nibabel.load(path)


def _check_offset(path: Path, start: bytes) -> None:
    """Refuse extensions of the header that nibabel would unpack at once, whatever they claim to hold."""
    if start[_MAGIC] == b"n+1\0":
        place, kind, least = 108, "f", 352
    elif start[4:8] == b"n+2\0":
        place, kind, least = 168, "q", 544
    else:
        return
    order = "<" if start[0] in (0x5C, 0x1C) else ">"  # the header's length, 348 or 540, comes first
    offset = struct.unpack_from(order + kind, start, place)[0]
    has_extensions = least < len(start) and start[least - 4] != 0
    if not (least if has_extensions else 0) <= offset <= _MOST_OFFSET:
        raise UnreadableScan(
            str(path), "damaged header (its voxels are said to begin far beyond the header)", kind="damaged"
        )


def _describe(path: Path, image: Any, dims: int, max_pixels: int) -> Header:
    """The header of the volumes in the file, with what it claims held against the file's length."""
    shape, dtype = tuple(int(n) for n in image.shape), image.get_data_dtype()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3:
        shape = (*shape, 1, 1)[:3]
    if len(shape) > 4:
        raise UnreadableScan(
            str(path), f"has {len(shape)} axes ({shown(shape)}); expected a volume or a series of volumes"
        )
    size, count = shape[2::-1], shape[3] if len(shape) == 4 else 1
    check_size(path, size, max_pixels if dims == 3 else max(max_pixels, 2**30))
    colour = dtype in _RGB
    if not colour and dtype.kind not in "uif":
        raise UnreadableScan(str(path), f"holds values of type {dtype}, expected integers or real numbers")
    if count < 1:
        raise UnreadableScan(str(path), "the header says 0 volumes, so there is nothing to read", kind="empty")
    _check_claim(path, image, claimed_bytes(shape, dtype.itemsize))
    check_memory(path, claimed_bytes(size, dtype.itemsize))
    affine = _affine(image)
    spacing = voxel_sizes(affine) if affine is not None else _zooms(image)
    return Header(3 if colour else 1, size, count, spacing=spacing, affine=affine)


def _check_claim(path: Path, image: Any, nbytes: int) -> None:
    data = Path(image.file_map["image"].filename or path)
    if data != path and data.exists():
        check_beside(path, data)
    offset, length = int(getattr(image.dataobj, "offset", 0) or 0), os.path.getsize(data)
    if offset < 0 or offset > _MOST_OFFSET:
        raise UnreadableScan(
            str(path), "damaged header (its voxels are said to begin far beyond the header)", kind="damaged"
        )
    if _compressed(data):
        if nbytes > _MOST_DEFLATE * length:
            raise UnreadableScan(
                str(path), "the header claims more voxels than the compressed file can hold", kind="truncated"
            )
    elif offset + nbytes > length:
        raise UnreadableScan(
            str(path),
            f"truncated: the header asks for {offset + nbytes:,} bytes, the file has {length:,}",
            kind="truncated",
        )


def _compressed(path: Path) -> bool:
    return path.suffix.lower() in (".gz", ".mgz")


def _unit(image: Any) -> float:
    names = getattr(image.header, "get_xyzt_units", None)
    try:
        return _PER_MM.get(names()[0], 1.0) if names is not None else 1.0
    except KeyError:
        return 1.0


def _affine(image: Any) -> np.ndarray | None:
    """Voxel index in the order of ``S`` to RAS mm; None where the file gives no orientation or a nonsensical one."""
    header = image.header
    if hasattr(header, "get_sform") and int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        return None
    if isinstance(image, nibabel.Spm99AnalyzeImage) and not hasattr(header, "get_sform"):
        return None
    affine = np.array(image.affine, np.float64)
    affine[:3] *= _unit(image)
    return permuted(affine) if is_usable(affine) else None


def _zooms(image: Any) -> tuple[float, ...] | None:
    zooms = [abs(float(zoom)) * _unit(image) for zoom in image.header.get_zooms()[:3]]
    if len(zooms) < 3 or not all(math.isfinite(zoom) and zoom > 0 for zoom in zooms):
        return None
    return tuple(zooms[::-1])


def _volume(path: Path, image: Any, whole: Header, number: int) -> Scan:
    stored = _stored(path, image, whole, number)
    if stored.dtype in _RGB:
        array = np.stack([stored[colour] for colour in "RGB"])
    else:
        slope, intercept = _scaling(image)
        array = rescaled(stored, slope, intercept)[None]
    notes = () if whole.affine is not None else (NO_ORIENTATION,)
    scan = Scan(checked(path, array), whole.spacing, whole.affine, notes=notes)
    return with_values_judged(scan)


def _scaling(image: Any) -> tuple[float, float]:
    slope, intercept = getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)
    return float(1.0 if slope is None else slope), float(0.0 if intercept is None else intercept)


def _stored(path: Path, image: Any, whole: Header, number: int) -> np.ndarray:
    """Volume ``number`` ``(z, y, x)`` in the stored type."""
    dtype, offset = image.dataobj.dtype, int(image.dataobj.offset)
    nbytes = claimed_bytes(whole.size, dtype.itemsize)
    data = Path(image.file_map["image"].filename or path)
    start = offset + number * nbytes
    if not _compressed(data):
        return np.array(np.memmap(data, dtype, "r", start, whole.size, order="C"))
    # Not through nibabel: it stops at the last voxel it needs, before the checksum
    with gzip.open(data, "rb") as file:
        _skip(file, start)
        buffer = bytearray(nbytes)
        view, filled = memoryview(buffer), 0
        while filled < nbytes:
            got = file.readinto(view[filled : filled + 2**24])  # type: ignore[attr-defined]
            if not got:
                raise EOFError
            filled += got
        _skip(file, (whole.count - number - 1) * nbytes)
        file.read(2**16)
    return np.frombuffer(buffer, dtype).reshape(whole.size)


def _skip(file: Any, nbytes: int) -> None:
    while nbytes > 0:
        got = len(file.read(min(nbytes, 2**22)))
        if got == 0:
            raise EOFError
        nbytes -= got
