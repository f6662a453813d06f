"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) through SimpleITK.

Axes of ``S`` are the file's in reverse: (z, y, x). A file with a fourth axis holds one record per volume; so does one
with several values per voxel, unless these are three 8-bit ones, which are RGB. The header is read and held against the
file's length before SimpleITK is asked for memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from frepa.images.orientation import is_usable, permuted, voxel_sizes
from frepa.images.readers.itk_text import DataFile, data_file
from frepa.images.readers.pixels import check_size, checked
from frepa.images.scan import Header, Scan, UnreadableScan
from frepa.images.units import with_values_judged
from frepa.images.volumes import record, record_header, shown

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_DEFLATE = 1100


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
    try:
        yield
    except UnreadableScan:
        raise
    except FileNotFoundError:
        raise UnreadableScan(str(path), "file not found", kind="empty") from None
    except MemoryError:
        raise UnreadableScan(str(path), "too large for this machine's memory", kind="too large") from None
    except Exception as error:  # its messages are pages of source lines and full paths
        kind = "SimpleITK cannot read it" if isinstance(error, RuntimeError) else type(error).__name__
        raise UnreadableScan(str(path), f"damaged or truncated ({kind})", kind="truncated") from None
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
    if not path.is_file():
        raise FileNotFoundError(path)
    data = data_file(path)
    size = data.shape[-3:] if len(data.shape) >= 3 else (1,) * (3 - len(data.shape)) + data.shape
    if len(data.shape) > 4:
        raise UnreadableScan(str(path), f"has {len(data.shape)} axes; expected a volume or a series of volumes")
    check_size(path, size, max_pixels if dims == 3 else max(max_pixels, 2**30))
    _check_claim(path, data)
    reader = _reader(path)
    reader.ReadImageInformation()
    if tuple(reader.GetSize()[::-1]) != tuple(data.shape):
        raise UnreadableScan(str(path), f"damaged header (its size reads as {shown(data.shape)})", kind="damaged")
    components = reader.GetNumberOfComponents()
    if sitk.GetPixelIDValueAsString(reader.GetPixelID()).startswith("complex"):
        raise UnreadableScan(str(path), "holds complex values, expected integers or real numbers")
    colour = components == 3 and "8-bit unsigned" in sitk.GetPixelIDValueAsString(reader.GetPixelID())
    volumes = data.shape[0] if len(data.shape) == 4 else 1
    count = volumes * (1 if colour else components)
    affine = _affine(reader)
    spacing = voxel_sizes(affine) if affine is not None else None
    return Header(3 if colour else 1, size, count, spacing=spacing, affine=affine)


def _check_claim(path: Path, data: DataFile) -> None:
    length = 0
    for file in data.files:
        if not os.path.isfile(file):
            raise UnreadableScan(str(path), f"its voxels are in {file.name}, which is not there", kind="empty")
        length += os.path.getsize(file)
    if data.compressed:
        if data.nbytes > _MOST_DEFLATE * length:
            raise UnreadableScan(
                str(path), "the header claims more voxels than the compressed file can hold", kind="truncated"
            )
    elif data.nbytes > length * (1 if data.binary else 8):
        raise UnreadableScan(
            str(path), f"truncated: the header asks for {data.nbytes:,} bytes, there are {length:,}", kind="truncated"
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
