"""Small plain PNG files, of which long lists are made, read in half the time that Pillow takes for them.

Plain: 8-bit grey or RGB, or 16-bit grey, not interlaced, and no chunk that says how pixels are to be changed or turned.
Whatever is anything else, or odd in any way, is left to Pillow, which then also tells what is wrong.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import imagecodecs
import numpy as np

from frepa.images.guards import check_memory
from frepa.images.readers.pixels import check_size

_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_MOST = 2**20  # bytes; what is larger is spent on decoding, not around it
# Depth and colour type to bytes per pixel
_KINDS = {b"\x08\0": 1, b"\x08\2": 3, b"\x10\0": 2}
# Chunks that change no pixel: resolution, gamma, colour space, significant bits, time
_WITHOUT_EFFECT = frozenset((b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"tIME"))


def plain_png(path: Path, max_pixels: int) -> np.ndarray | None:
    """``(H, W)`` or ``(H, W, 3)``, uint8 or uint16; None for a file that is not plain.

    Raises:
        UnreadableScan: more pixels than ``max_pixels``, or than there is memory for.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
    except OSError:
        return None
    each = _KINDS.get(data[24:26])
    if len(data) > _MOST or each is None or data[:16] != _START or data[26:29] != b"\0\0\0" or not _is_sound(data):
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    check_size(path, (width, height), max_pixels)
    check_memory(path, width * height * each)
    try:
        array = imagecodecs.png_decode(data)
    except Exception:  # Pillow may read it yet, or says what is wrong
        return None
    shape = (height, width, 3) if each == 3 else (height, width)
    return array if array.shape == shape and array.dtype == (np.uint16 if each == 2 else np.uint8) else None


def _is_sound(data: bytes) -> bool:
    """Whether there is nothing but pixels and chunks without effect, each but the pixels as its checksum says."""
    at, seen = 8, False
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if kind == b"IDAT":
            seen = True
        elif kind == b"IEND":
            return seen and length == 0 and end == len(data)
        elif kind in _WITHOUT_EFFECT or at == 8:
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                return False
        else:
            return False
        at = end
    return False
