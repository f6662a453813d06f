"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) through SimpleITK.

Axes of ``S`` are the file's in reverse: (z, y, x). A file with a fourth axis holds one record per volume; so does one
with several values per voxel, unless these are three 8-bit ones, which are RGB. The header is read and held against the
file's length before SimpleITK is asked for memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from frepa.images.guards import check_beside, check_memory, reported
from frepa.images.orientation import is_usable, permuted, voxel_sizes
from frepa.images.readers.pixels import check_size, checked
from frepa.images.scan import Header, Scan, Trouble, UnreadableScan
from frepa.images.units import with_values_judged
from frepa.images.volumes import claimed_bytes, record, record_header

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_DEFLATE = 1100
_MOST_HEADER, _MOST_LINES = 2**20, 400
_MOST_COMPONENTS = 4096


def header(path: Path, member: str | None, *, dims: int, max_pixels: int) -> Header:
    """Size, spacing, orientation and number of volumes without the voxels."""
    with _reported(path):
        return record_header(_describe(path, member, dims, max_pixels), dims)


def read(path: Path, member: str | None, row: int, *, dims: int, max_pixels: int) -> Scan:
    """Volume ``row`` as ``(1 | 3, D, H, W)``, or for ``dims=2`` slice ``row`` as ``(1 | 3, H, W)``."""
    with _reported(path):
        whole = _describe(path, member, dims, max_pixels)
        return record(path, row, dims, whole, lambda volume: _volume(path, whole, volume))


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    shown_warnings = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # damaged files make it print

    def told(error: Exception) -> tuple[str, Trouble]:  # its messages are pages of source lines and full paths
        what = "SimpleITK cannot read it" if isinstance(error, RuntimeError) else type(error).__name__
        return f"damaged or truncated ({what})", "truncated"

    try:
        with reported(path, told):
            yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown_warnings)


def _reader(path: Path) -> sitk.ImageFileReader:
    if not path.is_file():
        raise FileNotFoundError(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    return reader


def _describe(path: Path, member: str | None, dims: int, max_pixels: int) -> Header:
    if member is not None:
        raise UnreadableScan(str(path), f"holds volumes by number, not by name; it has no member {member!r}")
    data, compressed, binary = _data_file(path)
    reader = _reader(path)
    reader.ReadImageInformation()
    shape = tuple(int(n) for n in reader.GetSize()[::-1])
    size = shape[-3:] if len(shape) >= 3 else (1,) * (3 - len(shape)) + shape
    if len(shape) > 4:
        raise UnreadableScan(str(path), f"has {len(shape)} axes; expected a volume or a series of volumes")
    check_size(path, size, max_pixels if dims == 3 else max(max_pixels, 2**30))
    kind, components = sitk.GetPixelIDValueAsString(reader.GetPixelID()), reader.GetNumberOfComponents()
    if "complex" in kind:
        raise UnreadableScan(str(path), "holds complex values, expected integers or real numbers")
    bits = re.search(r"(8|16|32|64)-bit", kind)
    if bits is None or not 1 <= components <= _MOST_COMPONENTS:
        raise UnreadableScan(str(path), f"damaged header ({components} values per voxel of {kind})", kind="damaged")
    nbytes = claimed_bytes(shape, components * int(bits[1]) // 8)
    _check_claim(path, nbytes, os.path.getsize(data), compressed, binary)
    check_memory(path, nbytes)
    colour = components == 3 and kind.endswith("8-bit unsigned integer")
    volumes = shape[0] if len(shape) == 4 else 1
    count = volumes * (1 if colour else components)
    affine = _affine(reader)
    spacing = voxel_sizes(affine) if affine is not None else None
    return Header(3 if colour else 1, size, count, spacing=spacing, affine=affine)


def _data_file(path: Path) -> tuple[Path, bool, bool]:
    """The file that holds the voxels, whether they are compressed, and whether they are binary.

    SimpleITK follows whatever the header names, into any folder and into a pipe, and waits for ever on some numbers of
    axes; so these few lines of the header are looked at before it is asked anything.
    """
    with open(path, "rb") as file:
        head = file.read(_MOST_HEADER)
    is_meta = path.suffix.lower() in (".mha", ".mhd")
    if not is_meta and not head.startswith(b"NRRD"):
        raise UnreadableScan(str(path), "not an NRRD file, or a damaged header", kind="damaged")
    fields = _fields(path, head, "=" if is_meta else ":", "elementdatafile" if is_meta else "")
    axes = fields.get("ndims" if is_meta else "dimension", "")
    if not axes.isdecimal() or not 1 <= len(axes) <= 2 or not 1 <= int(axes) <= 16:
        what = "MetaImage" if is_meta else "NRRD"
        raise UnreadableScan(str(path), f"not a file of the kind {what}, or a damaged header", kind="damaged")
    encoding = fields.get("encoding", "raw").lower()
    where = fields.get("elementdatafile", "") if is_meta else fields.get("data file", fields.get("datafile", "LOCAL"))
    if is_meta:
        compressed = fields.get("compresseddata", "false").lower() in ("true", "1")
        binary = fields.get("binarydata", "true").lower() in ("true", "1")
    else:
        compressed = encoding in ("gzip", "gz", "bzip2", "bz2")
        binary = encoding not in ("text", "txt", "ascii", "hex")
    if not where:
        raise UnreadableScan(str(path), "damaged header (it does not say where its voxels are)", kind="damaged")
    if where.upper() == "LOCAL":
        return path, compressed, binary
    if where.upper().startswith("LIST") or "%" in where:
        raise UnreadableScan(str(path), "spreads its voxels over a list of files, which is not supported; join them")
    data = path.parent / where
    if not os.path.lexists(data):
        raise UnreadableScan(str(path), f"its voxels are in {data.name}, which is not there", kind="empty")
    check_beside(path, data)
    return data, compressed, binary


def _fields(path: Path, head: bytes, separator: str, last: str) -> dict[str, str]:
    """The lines of a header up to ``last`` (MetaImage) or the first empty one (NRRD); none may be said twice."""
    fields: dict[str, str] = {}
    for line in head.split(b"\n", _MOST_LINES)[:_MOST_LINES]:
        text = line.decode("latin-1").strip()
        if not text and not last:
            break
        key, found, value = text.partition(separator)
        key = " ".join(key.lower().split())
        if not found or key.startswith("#") or value.startswith("="):  # a comment, or a key of the user's own
            continue
        if key in fields:
            raise UnreadableScan(str(path), "damaged header (a line of it is there twice)", kind="damaged")
        fields[key] = value.strip()
        if key == last:
            break
    return fields


def _check_claim(path: Path, nbytes: int, length: int, compressed: bool, binary: bool) -> None:
    if compressed:
        if nbytes > _MOST_DEFLATE * length:
            raise UnreadableScan(
                str(path), "the header claims more voxels than the compressed file can hold", kind="truncated"
            )
    elif nbytes > length * (1 if binary else 8):
        raise UnreadableScan(
            str(path), f"truncated: the header asks for {nbytes:,} bytes, there are {length:,}", kind="truncated"
        )


def _affine(reader: sitk.ImageFileReader) -> np.ndarray | None:
    """Voxel index in the order of ``S`` to RAS mm (SimpleITK counts towards left and posterior)."""
    axes = reader.GetDimension()
    if axes < 3:
        return None
    direction = np.array(reader.GetDirection()).reshape(axes, axes)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    affine = _LPS_TO_RAS @ affine
    return permuted(affine) if is_usable(affine) else None


def _volume(path: Path, whole: Header, number: int) -> Scan:
    reader = _reader(path)
    reader.ReadImageInformation()
    components = 1 if whole.channels == 3 else reader.GetNumberOfComponents()
    volume, component = divmod(number, components)
    size = list(reader.GetSize())
    if len(size) == 4:
        reader.SetExtractIndex([0, 0, 0, volume])
        reader.SetExtractSize([*size[:3], 0])
    array = sitk.GetArrayFromImage(reader.Execute())
    if whole.channels == 3:
        array = np.moveaxis(array.reshape(*whole.size, 3), -1, 0)
    elif components > 1:
        array = array.reshape(*whole.size, components)[..., component][None]
    else:
        array = array.reshape(1, *whole.size)
    array = np.ascontiguousarray(array)
    return with_values_judged(Scan(checked(path, array), whole.spacing, whole.affine))
