"""HDF5 (.h5, .hdf5, .hdf): one dataset of images or volumes, named as ``file.h5#volumes/raw``.

Axes are read as in NumPy files (`frepa.images.readers.numpy_arrays`). The dataset need not be named where the file
holds only one that can be images. Voxel sizes come from the dataset's attributes: ``spacing`` (mm), ``element_size_um``
(µm) or ``resolution`` (nm, as CREMI and other electron microscopy files have it), unless an attribute ``unit`` says
otherwise. A dataset of three axes that has one of them is a volume, so its sections are scaled alike in 2D; without, it
is a stack of images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from frepa.images.guards import check_memory, reported
from frepa.images.readers.numpy_arrays import Layout, layout_of
from frepa.images.readers.pixels import check_size, checked
from frepa.images.scan import Header, Scan, Trouble, UnreadableScan
from frepa.images.units import with_values_judged
from frepa.images.volumes import VolumeStatistics, cached_volume, claimed_bytes, file_key

_ATTRIBUTES = {"spacing": "mm", "element_size_um": "um", "resolution": "nm"}
_PER_MM = {"mm": 1.0, "um": 1e-3, "µm": 1e-3, "micrometer": 1e-3, "micron": 1e-3, "nm": 1e-6, "nanometer": 1e-6}
# A dataset may claim what was never written; up to this it is believed, beyond, the filters cannot shrink so much
_BELIEVED, _MOST_DEFLATE = 2**26, 1100


def header(path: Path, member: str | None, *, dims: int, max_pixels: int) -> Header:
    """Size, number and spacing of the records; chooses the dataset when there is only one."""
    with _opened(path) as file:
        member, data, layout = _dataset(path, file, member, dims, max_pixels)
        channels = 3 if layout.colour >= 3 else 1
        return Header(channels, layout.size, layout.count, member, spacing=_spacing(data, dims))


def read(path: Path, member: str | None, row: int, *, dims: int, max_pixels: int) -> Scan:
    """Record ``row``, ``(1 | 3, *S)`` in the stored type."""
    with _opened(path) as file:
        member, data, layout = _dataset(path, file, member, dims, max_pixels)
        one = data[row] if layout.stacked else data[()]
        spacing = _spacing(data, dims)
        is_volume = dims == 2 and data.ndim == 3 and spacing is not None
    scan = Scan(checked(path, layout.pixels(one)), spacing)
    if is_volume:
        key, limit = file_key(path, member), max(max_pixels, 2**30)

        def volume() -> Scan:
            return cached_volume(key, lambda: read(path, member, 0, dims=3, max_pixels=limit))

        return Scan(scan.array, spacing, whole=VolumeStatistics(key, volume))
    return with_values_judged(scan) if dims == 3 else scan


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    with reported(path, _told):
        if not path.is_file():
            raise FileNotFoundError(path)
        with h5py.File(path, "r") as file:
            yield file


def _told(error: Exception) -> tuple[str, Trouble]:
    text = str(error).lower()
    if "truncated" in text:
        return "truncated HDF5 file", "truncated"
    if "filter" in text:
        return "damaged, or compressed by a filter that is not installed", "damaged"
    return f"damaged or not an HDF5 file ({type(error).__name__})", "damaged"


def _dataset(
    path: Path, file: h5py.File, member: str | None, dims: int, max_pixels: int
) -> tuple[str, h5py.Dataset, Layout]:
    """The dataset meant, its name, and how its axes are read; refused where it claims more than can be held."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    if member is None:
        fitting = [name for name in names if _can_be_images(file[name], dims)]
        if len(fitting) != 1:
            found = ", ".join((fitting or names)[:8]) or "it is empty"
            what = "several datasets of images" if fitting else f"no dataset of {dims}D images"
            hint = f"; name one, e.g. {path.name}#{fitting[0]}" if fitting else ""
            raise UnreadableScan(
                str(path), f"holds {what} ({found}){hint}", kind="several arrays" if fitting else "unreadable"
            )
        member = fitting[0]
    elif member.strip("/") not in names:
        raise UnreadableScan(str(path), f"has no dataset {member!r}; it holds {', '.join(names[:8]) or 'none'}")
    data = file[member]
    if data.dtype.kind not in "buif":
        raise UnreadableScan(str(path), f"{member} holds values of type {data.dtype}, expected integers or reals")
    if data.external or data.is_virtual:
        raise UnreadableScan(str(path), f"{member} refers to other files, which is not supported; copy it into one")
    layout = layout_of(path, data.shape, dims, member)
    check_size(path, layout.size, max_pixels)
    _check_claim(path, data)
    check_memory(path, claimed_bytes((*layout.size, layout.colour), data.dtype.itemsize))
    return member, data, layout


def _can_be_images(data: h5py.Dataset, dims: int) -> bool:
    return data.dtype.kind in "buif" and dims <= data.ndim <= dims + 2 and min(data.shape[-dims:]) > 1


def _check_claim(path: Path, data: h5py.Dataset) -> None:
    nbytes, stored = claimed_bytes(data.shape, data.dtype.itemsize), data.id.get_storage_size()
    if data.chunks is not None:  # a part of a chunk is read by unpacking all of it
        check_memory(path, claimed_bytes(data.chunks, data.dtype.itemsize), "one chunk of it")
    if nbytes > max(_BELIEVED, _MOST_DEFLATE * stored):
        raise UnreadableScan(str(path), "claims far more values than it holds", kind="truncated")


def _spacing(data: h5py.Dataset, dims: int) -> tuple[float, ...] | None:
    """Millimetres per axis of a record."""
    for name, unit in _ATTRIBUTES.items():
        if name not in data.attrs:
            continue
        values = np.asarray(data.attrs[name]).reshape(-1)
        stated = data.attrs.get("unit", data.attrs.get("units", unit))
        factor = _PER_MM.get(stated.decode() if isinstance(stated, bytes) else str(stated))
        if factor is None or values.dtype.kind not in "uif" or len(values) < dims:
            continue
        sizes = tuple(float(value) * factor for value in values[-dims:])
        if all(math.isfinite(size) and size > 0 for size in sizes):
            return sizes
    return None
