"""Plain PNG files, read without Pillow: the same pixels, and everything that is not plain left to it."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from frepa.images.readers import raster
from frepa.images.readers.plain_png import plain_png
from frepa.images.scan import UnreadableScan

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (21, 34), np.uint8)
COLOUR = RNG.integers(0, 256, (21, 34, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (21, 34), np.uint16)


def written(array: np.ndarray, mode: str | None = None, **options: object) -> bytes:
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, "PNG", **options)
    return file.getvalue()


def with_chunk(data: bytes, kind: bytes, content: bytes, *, sound: bool = True) -> bytes:
    """The file with one more chunk before its pixels."""
    checksum = zlib.crc32(kind + content) ^ (not sound)
    return data[:33] + len(content).to_bytes(4, "big") + kind + content + checksum.to_bytes(4, "big") + data[33:]


def read(path: Path, data: bytes) -> np.ndarray:
    path.write_bytes(data)
    return raster.read(path, None, 0, dims=2, max_pixels=2**20).array


@pytest.mark.parametrize("array", [GREY, COLOUR, DEEP])
@pytest.mark.parametrize("change", [lambda data: data, lambda data: with_chunk(data, b"gAMA", b"\0\0\xb1\x8f")])
def test_pixels_are_those_that_were_written(tmp_path: Path, array: np.ndarray, change) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a.png"
    found = read(path, change(written(array)))
    plain = plain_png(path, 2**20)
    assert plain is not None
    assert plain.dtype == array.dtype
    assert np.array_equal(plain, array)
    assert np.array_equal(found, array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0))


def described(text: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", text)
    return written(GREY, pnginfo=info)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return written(GREY, exif=exif)


NOT_PLAIN = {
    "palette": written(GREY, "P"),
    "one bit": written(GREY, "1"),
    "grey with alpha": written(GREY, "LA"),
    "colour with alpha": written(COLOUR, "RGBA"),
    "a transparent value": written(GREY, transparency=0),
    "an orientation": turned(),
    "a text, which may be metadata": described("Raw profile type exif"),
    "an animation": with_chunk(written(GREY), b"acTL", (2).to_bytes(4, "big") + bytes(4)),
    "a chunk without effect, damaged": with_chunk(written(GREY), b"pHYs", bytes(9), sound=False),
    "cut within the pixels": written(GREY)[:-40],
    "cut behind the pixels": written(GREY)[:-12],
    "more behind its end": written(GREY) + b"\0",
    "damaged pixels": written(GREY)[:60] + bytes([written(GREY)[60] ^ 1]) + written(GREY)[61:],
    "damaged header": written(GREY)[:29] + bytes(4) + written(GREY)[33:],
    "a JPEG": b"\xff\xd8\xff\xe0" + bytes(60),
    "too short": b"\x89PNG",
    "nothing": b"",
}


@pytest.mark.parametrize("data", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_everything_else_is_left_to_pillow(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert plain_png(path, 2**20) is None


def test_what_is_turned_by_its_header_is_turned(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path / "a.png", turned())[0], np.rot90(GREY, -1))


def test_a_claim_of_more_pixels_than_the_limit_is_refused_before_they_are_decoded(tmp_path: Path) -> None:
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    whole = written(GREY)
    data = whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:]
    with pytest.raises(UnreadableScan, match="60000 x 60000 pixels, more than the limit") as caught:
        read(tmp_path / "a.png", data)
    assert caught.value.kind == "too large"
