"""NumPy files: .npy, and .npz with named members (``file.npz#train_images``), one record or thousands in each.

How axes are read, for ``dims`` spatial axes (2D: H, W; 3D: D, H, W):

- ``dims`` axes: one grey record;
- one more, the last of length 3 or 4 (RGB, RGBA): one colour record, unless the member is called ``*images``;
- one more, the first of length 1 (in 2D also 3), in an .npy file: one record with its channels first;
- one more otherwise: a stack of grey records along the first axis;
- two more: a stack along the first axis; channels are the last axis (1, 3 or 4) or else the second (1 or 3).

Files with pickled objects are refused: reading one can run anything.
"""

from __future__ import annotations

import io
import os
import re
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from frepa.images.guards import check_memory, reported
from frepa.images.readers.pixels import channels_first, check_size, checked, drop_alpha
from frepa.images.scan import Header, Scan, UnreadableScan
from frepa.images.volumes import claimed_bytes

#: Decompressed members kept in memory by each process.
CACHE_BYTES = 2**31
# Deflate cannot shrink by more than about 1032; a larger claim is a lie meant to exhaust memory
_MOST_DEFLATE = 1100
_MOST_HEADER = 2**16
# How Python writes an object that has no name for people
_OBJECT = re.compile(r":? ?<[\w.]+ object at 0x[0-9a-f]+>")


@dataclass(frozen=True)
class Layout:
    """Where the records of an array are: ``stacked`` along the first axis, channels ``first``, ``last`` or ``none``."""

    count: int
    size: tuple[int, ...]
    stacked: bool
    channels: str
    colour: int

    def pixels(self, one: np.ndarray) -> np.ndarray:
        """A record as ``(1 | 3, *S)``, without an alpha channel; a view where it can be."""
        if self.channels == "first":
            one = np.moveaxis(one, 0, -1)
        elif self.channels == "none":
            one = one[..., None]
        return channels_first(drop_alpha(one) if one.shape[-1] == 4 else one)


def header(path: Path, member: str | None, *, dims: int, max_pixels: int) -> Header:
    """Number, size and channels of the records, from the array header alone; chooses the member when there is one."""
    with reported(path, lambda error: (f"damaged or not a NumPy file ({_short(error)})", "damaged")):
        member, shape, dtype = _describe(path, member, dims)
    layout = layout_of(path, shape, dims, member)
    check_size(path, layout.size, max_pixels)
    check_memory(path, claimed_bytes((*layout.size, layout.colour), dtype.itemsize))
    return Header(3 if layout.colour >= 3 else 1, layout.size, layout.count, member)


def read(path: Path, member: str | None, row: int, *, dims: int, max_pixels: int) -> Scan:
    """Record ``row`` of the array, ``(1 | 3, *S)`` in the stored type."""
    with reported(path, lambda error: (f"damaged or truncated ({_short(error)})", "truncated")):
        array, layout = _array(path, member, dims, max_pixels)
    # A copy, so that the record does not keep the whole member or an open file alive
    return Scan(checked(path, np.array(layout.pixels(array[row] if layout.stacked else array))))


def layout_of(path: Path, shape: tuple[int, ...], dims: int, member: str | None) -> Layout:
    """How the axes of an array are read (top of this file). Raises `UnreadableScan` where they hold no image."""
    extra = len(shape) - dims
    named_stack = member is not None and member.endswith("images")
    if extra == 0:
        return Layout(1, shape, False, "none", 1)
    if extra == 1:
        if shape[-1] in (3, 4) and not named_stack:
            return Layout(1, shape[:-1], False, "last", shape[-1])
        if shape[0] in ((1, 3) if dims == 2 else (1,)) and member is None:
            return Layout(1, shape[1:], False, "first", shape[0])
        return Layout(shape[0], shape[1:], True, "none", 1)
    if extra == 2:
        if shape[-1] in (1, 3, 4):
            return Layout(shape[0], shape[1:-1], True, "last", shape[-1])
        if shape[1] in (1, 3):
            return Layout(shape[0], shape[2:], True, "first", shape[1])
    hint = " (volumes are read with dims 3)" if dims == 2 and len(shape) == 4 else ""
    raise UnreadableScan(
        str(path),
        f"an array of shape {shape} holds no {dims}D images{hint}",
        kind="other dims" if hint else "unreadable",
    )


def _describe(path: Path, member: str | None, dims: int) -> tuple[str | None, tuple[int, ...], np.dtype]:
    """Member chosen, shape and dtype."""
    if path.suffix.lower() == ".npy":
        if member is not None:
            raise UnreadableScan(str(path), f"is an .npy file and has no member {member!r}")
        with open(path, "rb") as file:
            shape, _, dtype, _ = _npy_header(path, file)
        return None, shape, dtype
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if member is None:
            member = _only_image_member(path, archive, names, dims)
        elif member not in names:
            raise UnreadableScan(str(path), f"has no member {member!r}; it holds {', '.join(names) or 'none'}")
        with archive.open(f"{member}.npy") as file:
            shape, _, dtype, _ = _npy_header(path, file)
        info = archive.getinfo(f"{member}.npy")
        if info.compress_type != zipfile.ZIP_STORED:  # kept in memory as a whole, however small its records
            needed = claimed_bytes(shape, dtype.itemsize)
            if needed > info.file_size or info.file_size > _MOST_DEFLATE * max(info.compress_size, 1):
                text = f"member {member} claims more data than the file can hold"
                raise UnreadableScan(str(path), text, kind="truncated")
            check_memory(path, needed, f"member {member}, which is unpacked as a whole,")
    return member, shape, dtype


def _only_image_member(path: Path, archive: zipfile.ZipFile, names: list[str], dims: int) -> str:
    """The one array that can be images. Never a guess between several: one of them may be the test part."""
    fitting = []
    for name in names:
        with archive.open(f"{name}.npy") as file:
            shape, _, dtype, _ = _npy_header(path, file)
        if dtype.kind in "buif" and dims <= len(shape) <= dims + 2 and min(shape[-dims:]) > 1:
            fitting.append(name)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise UnreadableScan(str(path), f"none of its arrays holds {dims}D images: {', '.join(names) or 'it is empty'}")
    raise UnreadableScan(
        str(path),
        f"holds several arrays of images ({', '.join(fitting)}); name one, e.g. {path.name}#{fitting[0]}",
        kind="several arrays",
    )


def _npy_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, order, type, and bytes the header takes."""
    # No more than this is read, whatever length the header claims
    start = io.BytesIO(file.read(_MOST_HEADER))
    version = npy.read_magic(start)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(start)
    else:
        # (2, 0) and (3, 0) differ in the encoding of field names only, which images do not have
        shape, fortran, dtype = npy.read_array_header_2_0(start)
    if dtype.hasobject:
        raise UnreadableScan(str(path), "holds pickled Python objects, which are never loaded; save plain numbers")
    return shape, fortran, dtype, start.tell()


_CACHE: OrderedDict[tuple[str, str | None, int, int, int], tuple[np.ndarray, Layout]] = OrderedDict()
# Threads that read ahead share the cache; and a member is decompressed by the first of them alone.
_CACHE_LOCK = threading.RLock()


def _array(path: Path, member: str | None, dims: int, max_pixels: int) -> tuple[np.ndarray, Layout]:
    """The array, mapped from disk where it is stored plainly, otherwise decompressed once per process and kept."""
    with _CACHE_LOCK:
        return _array_of_this_thread(path, member, dims, max_pixels)


def _array_of_this_thread(path: Path, member: str | None, dims: int, max_pixels: int) -> tuple[np.ndarray, Layout]:
    status = os.stat(path)
    key = (str(path), member, dims, status.st_size, status.st_mtime_ns)
    if key in _CACHE:
        _CACHE.move_to_end(key)
        return _CACHE[key]
    member, shape, dtype = _describe(path, member, dims)
    layout = layout_of(path, shape, dims, member)
    check_size(path, layout.size, max_pixels)
    check_memory(path, claimed_bytes((*layout.size, layout.colour), dtype.itemsize))
    array = _mapped(path, 0) if member is None else _member(path, member)
    held = sum(_in_memory(kept) for kept, _ in _CACHE.values())
    while _CACHE and (held + _in_memory(array) > CACHE_BYTES or len(_CACHE) >= 64):
        _, (dropped, _) = _CACHE.popitem(last=False)
        held -= _in_memory(dropped)
    _CACHE[key] = array, layout
    return array, layout


def _in_memory(array: np.ndarray) -> int:
    return 0 if isinstance(array, np.memmap) else array.nbytes


def _member(path: Path, member: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{member}.npy")
        if info.compress_type == zipfile.ZIP_STORED:
            with open(path, "rb") as raw:
                raw.seek(info.header_offset + 26)
                lengths = np.frombuffer(raw.read(4), "<u2")
            return _mapped(path, info.header_offset + 30 + int(lengths.sum()))
        with archive.open(info) as file:
            return npy.read_array(file, allow_pickle=False)


def _mapped(path: Path, start: int) -> np.ndarray:
    """The array that begins at byte ``start``, without reading it."""
    with open(path, "rb") as file:
        file.seek(start)
        shape, fortran, dtype, length = _npy_header(path, file)
        offset = start + length
        file.seek(0, os.SEEK_END)
        if file.tell() < offset + claimed_bytes(shape, dtype.itemsize):
            raise UnreadableScan(str(path), "truncated: the file is shorter than its header says", kind="truncated")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")


def _short(error: Exception) -> str:
    text = _OBJECT.sub("", " ".join(str(error).split()))
    return text[:160] or type(error).__name__
