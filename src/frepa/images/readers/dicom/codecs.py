"""Decoders of compressed DICOM pixels: what is missing from pydicom's, and what to install where nothing helps.

JPEG 2000 and HTJ2K go through pylibjpeg-openjpeg, JPEG-LS through pyjpegls, RLE through pylibjpeg-rle, 8-bit JPEG
through Pillow. Lossless and 12-bit JPEG, common in CT, MR and X-ray archives, go through imagecodecs (libjpeg-turbo),
registered here as one more plugin of pydicom.
"""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders import JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

#: pydicom asks a plugin's module for this: transfer syntax to what it needs installed.
DECODER_DEPENDENCIES = dict.fromkeys((JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1), ("imagecodecs",))
_PLUGIN = "imagecodecs"


def is_available(uid: str) -> bool:
    """pydicom asks: can this module decode the transfer syntax?"""
    return uid in DECODER_DEPENDENCIES and bool(imagecodecs.JPEG8.available)


def decode_frame(source: bytes, runner: Any) -> bytes:
    """One JPEG frame to little-endian pixels, colour by pixel; pydicom calls it."""
    # Colours as stored: pydicom converts them by what the header says
    space = "RGB" if runner.samples_per_pixel == 3 else None
    array = imagecodecs.jpeg8_decode(source, colorspace=space, outcolorspace=space)
    wanted = runner.get_option("bits_allocated")
    if array.dtype.itemsize * 8 > wanted:
        raise ValueError("more bits than the header allows")
    runner.set_option("planar_configuration", 0)
    kind = np.dtype(f"<u{wanted // 8}")
    return np.ascontiguousarray(array).astype(kind, copy=False).tobytes()


def add_decoders() -> None:
    """Make pydicom know this module; repeating it does no harm."""
    for decoder in (JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder):
        if _PLUGIN not in decoder.available_plugins and is_available(decoder.UID):
            decoder.add_plugin(_PLUGIN, (__name__, "decode_frame"))


def cannot_decode(syntax: UID) -> str | None:
    """Why pixels in this transfer syntax cannot be decoded here, and what to do; None where they can."""
    if not syntax.is_transfer_syntax:
        return (
            "its transfer syntax is unknown, so its pixels cannot be decoded; decompress it with gdcmconv or dcmdjpeg"
        )
    if not syntax.is_compressed or syntax == DeflatedExplicitVRLittleEndian:
        return None
    name = syntax.name if syntax.name != str(syntax) else f"an unknown transfer syntax ({syntax})"
    if syntax.startswith("1.2.840.10008.1.2.4.10"):
        return f"compressed as video ({name}), which is not decoded; export its frames with ffmpeg or dcmtk"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return f"compressed as {name}, for which there is no decoder; decompress it with gdcmconv or dcmdjpeg"
    if decoder.is_available:
        return None
    needs = sorted({word for text in decoder.missing_dependencies for word in _packages(text)})
    return f"compressed as {name}, for which no decoder is installed; pip install {' or '.join(needs)}"


def _packages(text: str) -> list[str]:
    """The last package named in ``"pylibjpeg - requires pylibjpeg>=2.0 and pylibjpeg-rle>=2.0"``, never a GPL one."""
    names = [word.split(">")[0].strip(",") for word in text.rpartition("requires")[2].split() if word != "and"]
    return [name for name in names[-1:] if name not in ("pylibjpeg-libjpeg", "gdcm>=3.0.10", "gdcm")]


def stated_size(frame: bytes) -> tuple[int, int] | None:
    """``(rows, columns)`` that a JPEG, JPEG-LS or JPEG 2000 stream says of itself; None where it says none.

    Decoders allocate by these, so a stream that does not agree with the file's header must not reach them.
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0 and len(frame) >= start + 24:
        x1, y1, x0, y0 = (int.from_bytes(frame[start + 8 + 4 * i : start + 12 + 4 * i], "big") for i in range(4))
        return y1 - y0, x1 - x0
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


add_decoders()
