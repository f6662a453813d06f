"""One array to bytes and back: a blosc2 NDArray in its contiguous form, with checksums that a crop can check alone."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import blosc2
import numpy as np

# A 128^3 crop touches at most 27 chunks; blocks are what is decompressed, flat so that a single slice is cheap as well
_CHUNK_3D, _BLOCK_3D = (64, 64, 64), (16, 64, 64)
# An image is one chunk, read whole in one go, unless it is a giant; blocks let a crop decompress only what it needs
_CHUNK_2D, _BLOCK_2D = (4096, 4096), (512, 512)
# blosc2 asks for this variable whenever it begins a frame, whatever number of threads its parameters say. Without it
# two threads are made and ended for every array, which takes longer than packing a small one; with a larger number
# set by somebody, the order of blocks in a frame would depend on which thread is the first
os.environ["BLOSC_NTHREADS"] = "1"
# Marks where the header of a blosc2 frame says how long it is (big-endian)
_HEADER_LENGTH = slice(11, 15)
_TAIL = struct.Struct("<III")


class DamagedRecord(Exception):
    """The bytes of a record are not those that were written."""


@dataclass(frozen=True)
class Packed:
    """A packed array.

    Attributes:
        data: the frame; where it has several chunks, their crc32 follow as ``<u4``, then the crc32 of the frame's
            header and tail, and the lengths of these two.
        chunks: number of chunks.
    """

    data: bytes
    chunks: int


def pack(array: np.ndarray) -> Packed:
    """Compress ``(C, *S)`` of any integer or float type without loss.

    The bytes depend on the array alone: one thread, no time stamps.
    """
    chunks, blocks = _layout(array.shape)
    frame = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=chunks,
        blocks=blocks,
        cparams=_compression(array.dtype.itemsize),
        dparams={"nthreads": 1},
    ).to_cframe()
    count = math.prod(-(-n // c) for n, c in zip(array.shape, chunks))
    if count == 1:
        return Packed(frame, 1)
    opened = blosc2.ndarray_from_cframe(frame)
    parts = [opened.schunk.get_chunk(i) for i in range(count)]
    head = int.from_bytes(frame[_HEADER_LENGTH], "big")
    # An all-zero chunk takes no room in the frame, so the tail is found from the total, not by summing chunks
    tail = len(frame) - head - int(opened.schunk.cbytes)
    sums = np.array([zlib.crc32(part) for part in parts], "<u4").tobytes()
    around = zlib.crc32(frame[len(frame) - tail :], zlib.crc32(frame[:head]))
    return Packed(frame + sums + _TAIL.pack(around, head, tail), count)


def unpack(data: Any, chunks: int, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """The whole array. ``data`` is bytes or a buffer whose checksum has been compared already."""
    return _slice(_opened(data, chunks, shape, dtype), (0,) * len(shape), shape)


def unpack_crop(
    data: Any, chunks: int, shape: Sequence[int], dtype: np.dtype, start: Sequence[int], size: Sequence[int]
) -> np.ndarray:
    """``(C, *size)`` from ``start`` on; only the chunks it touches are looked at, and their checksums compared.

    A frame of one chunk has no checksums of its own: the caller compares the whole record's.

    Raises:
        DamagedRecord: a chunk, the frame's header or its tail is not as written.
    """
    # Before anything else: a damaged header must not reach the decompressor
    sums = _checked_around(data, chunks) if chunks > 1 else None
    opened = _opened(data, chunks, shape, dtype)
    if sums is not None:
        grid = [-(-n // c) for n, c in zip(opened.shape, opened.chunks)]
        touched = [range(grid[0])]
        for first, n, c in zip(start, size, opened.chunks[1:]):
            touched.append(range(first // c, (first + n - 1) // c + 1))
        for place in product(*touched):
            number = int(np.ravel_multi_index(place, grid))
            try:
                intact = zlib.crc32(opened.schunk.get_chunk(number)) == sums[number]
            except (RuntimeError, ValueError, TypeError) as error:
                raise DamagedRecord(f"chunk {number} cannot be read") from error
            if not intact:
                raise DamagedRecord(f"chunk {number} does not match its checksum")
    return _slice(opened, (0, *start), (shape[0], *(first + n for first, n in zip(start, size))))


def _opened(data: Any, chunks: int, shape: Sequence[int], dtype: np.dtype) -> blosc2.NDArray:
    view = memoryview(data)
    frame = view if chunks == 1 else view[: len(view) - _extra(chunks)]
    try:
        opened = blosc2.ndarray_from_cframe(frame)
        same = tuple(opened.shape) == tuple(shape) and opened.dtype == dtype and opened.schunk.nchunks == chunks
    except (RuntimeError, ValueError, TypeError) as error:
        raise DamagedRecord("it is no blosc2 array") from error
    if not same:
        raise DamagedRecord("it holds another array than the index says")
    return opened


def _slice(opened: blosc2.NDArray, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
    # What indexing ends in as well, without half a millisecond of looking at what kind of index it is
    out = np.empty([last - first for first, last in zip(start, stop)], opened.dtype)
    try:
        return opened.get_slice_numpy(out, (start, stop))
    except (RuntimeError, ValueError, TypeError) as error:
        raise DamagedRecord("it cannot be decompressed") from error


def _extra(chunks: int) -> int:
    return 4 * chunks + _TAIL.size


def _checked_around(data: Any, chunks: int) -> np.ndarray:
    """The chunks' checksums, after comparing that of the frame's header and tail, which say where the chunks are."""
    view = memoryview(data)
    end = len(view) - _extra(chunks)
    around, head, tail = _TAIL.unpack(view[-_TAIL.size :]) if end > 0 else (0, 0, 0)
    if end <= 0 or head + tail > end or zlib.crc32(view[end - tail : end], zlib.crc32(view[:head])) != around:
        raise DamagedRecord("its header does not match its checksum")
    return np.frombuffer(view[end : end + 4 * chunks], "<u4")


def _layout(shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk and block shape. Axes are cut into equal parts, since an incomplete chunk is padded to a whole one."""
    size = shape[1:]
    chunk_most, block_most = (_CHUNK_3D, _BLOCK_3D) if len(size) == 3 else (_CHUNK_2D, _BLOCK_2D)
    chunks = tuple(_equal_part(n, most) for n, most in zip(size, chunk_most))
    blocks = tuple(_equal_part(n, most) for n, most in zip(chunks, block_most))
    return (shape[0], *chunks), (1, *blocks)


def _equal_part(extent: int, most: int) -> int:
    return math.ceil(extent / math.ceil(extent / most))


@lru_cache(maxsize=16)
def _compression(itemsize: int) -> dict[str, Any]:
    # As a mapping: of its own class of parameters blosc2 makes copy after copy, a tenth of packing a small image
    # Measured on CT, MR and fundus: bit planes pack 8-bit images best, differences within byte planes deeper ones
    filters = [blosc2.Filter.BITSHUFFLE] if itemsize == 1 else [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA]
    return {
        "codec": blosc2.Codec.ZSTD,
        "clevel": 1,
        "typesize": itemsize,
        "filters": filters,
        "filters_meta": [0] * len(filters),
        "nthreads": 1,
    }
