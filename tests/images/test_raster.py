"""PNG, JPEG, BMP, GIF and PNM: what comes out against what was put in, and what damaged files do."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import skimage.io
from PIL import Image

from frepa.images.readers.raster import header, read
from frepa.images.scan import Scan, UnreadableScan

RNG = np.random.default_rng(2)
GREY = RNG.integers(0, 256, (23, 31), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (23, 31, 3), dtype=np.uint8)


def scan(path: Path, member: str | None = None, max_pixels: int = 10**6) -> Scan:
    return read(path, member, 0, dims=2, max_pixels=max_pixels)


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "pgm"])
def test_grey_is_one_channel(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(GREY).save(path)
    assert np.array_equal(scan(path).array, GREY[None])
    assert header(path, None, dims=2, max_pixels=10**6).size == (23, 31)


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm"])
def test_colour_is_three_channels_first(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(COLOUR).save(path)
    result = scan(path).array
    assert np.array_equal(result, COLOUR.transpose(2, 0, 1))
    assert result.flags.c_contiguous
    assert header(path, None, dims=2, max_pixels=10**6).channels == 3


def test_jpeg_agrees_with_another_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.kron(COLOUR, np.ones((4, 4, 1), np.uint8))).save(path, quality=90)
    assert np.array_equal(scan(path).array.transpose(1, 2, 0), skimage.io.imread(path))


def test_rgb_with_equal_channels_is_grey(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    same = np.repeat(np.kron(GREY, np.ones((3, 3), np.uint8))[..., None], 3, axis=2)
    Image.fromarray(same).save(path)
    assert np.array_equal(scan(path).array, same[None, ..., 0])
    same[5, 7, 1] ^= 1  # one pixel of colour, between the points of any coarse grid
    Image.fromarray(same).save(path)
    assert np.array_equal(scan(path).array, same.transpose(2, 0, 1))


def test_palette_is_looked_up(tmp_path: Path) -> None:
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(GREY)
    image.putpalette(palette.tobytes())
    for ending in ("png", "gif"):
        image.save(tmp_path / f"a.{ending}")
        assert np.array_equal(scan(tmp_path / f"a.{ending}").array.transpose(1, 2, 0), palette[GREY])


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 128).save(tmp_path / "a.png")
    result = scan(tmp_path / "a.png").array
    assert result.dtype == np.uint8
    assert np.array_equal(result[0], np.where(GREY > 128, 255, 0))


def test_sixteen_bits_stay_sixteen(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (23, 31), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "grey.png")
    assert np.array_equal(scan(tmp_path / "grey.png").array, deep[None])
    colour = RNG.integers(0, 65536, (23, 31, 3), dtype=np.uint16)
    (tmp_path / "colour.png").write_bytes(imagecodecs.png_encode(colour))
    result = scan(tmp_path / "colour.png").array
    assert result.dtype == np.uint16
    assert np.array_equal(result.transpose(1, 2, 0), colour)
    (tmp_path / "a.pgm").write_bytes(b"P5 31 23 65535\n" + deep.astype(">u2").tobytes())
    assert np.array_equal(scan(tmp_path / "a.pgm").array, deep[None])


def test_alpha_is_laid_over_black(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (23, 31), dtype=np.uint8)
    oracle = np.rint(COLOUR * (alpha[..., None] / 255.0)).astype(np.uint8)
    Image.fromarray(np.dstack([COLOUR, alpha])).save(tmp_path / "rgba.png")
    assert np.abs(scan(tmp_path / "rgba.png").array.transpose(1, 2, 0).astype(int) - oracle).max() <= 1
    Image.fromarray(np.dstack([COLOUR, np.full_like(alpha, 255)])).save(tmp_path / "opaque.png")
    assert np.array_equal(scan(tmp_path / "opaque.png").array.transpose(1, 2, 0), COLOUR)
    Image.fromarray(np.dstack([GREY, alpha])).save(tmp_path / "la.png")
    assert scan(tmp_path / "la.png").array.shape == (1, 23, 31)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = scan(tmp_path / "a.jpg").array.mean(axis=(1, 2))
    assert red < 5
    assert min(green, blue) > 250


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=tag)
    shown = {
        1: COLOUR,
        2: np.fliplr(COLOUR),
        3: np.rot90(COLOUR, 2),
        4: np.flipud(COLOUR),
        5: COLOUR.transpose(1, 0, 2),
        6: np.rot90(COLOUR, -1),
        7: np.rot90(COLOUR, 2).transpose(1, 0, 2),
        8: np.rot90(COLOUR, 1),
    }[orientation]
    assert np.array_equal(scan(tmp_path / "a.png").array.transpose(1, 2, 0), shown)
    assert header(tmp_path / "a.png", None, dims=2, max_pixels=10**6).size == shown.shape[:2]


def test_frames_have_to_be_named(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UnreadableScan, match="holds 2 frames"):
        scan(tmp_path / "a.gif")
    assert np.array_equal(scan(tmp_path / "a.gif", "0").array[0], GREY)
    assert np.array_equal(scan(tmp_path / "a.gif", "1").array[0], 255 - GREY)
    with pytest.raises(UnreadableScan, match="no frame '2'"):
        scan(tmp_path / "a.gif", "2")


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "ppm"])
def test_truncated_files_are_named_not_guessed(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.kron(COLOUR, np.ones((8, 8, 1), np.uint8))).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableScan) as caught:
        scan(path)
    assert str(tmp_path) not in caught.value.reason
    path.write_bytes(data[:10])
    with pytest.raises(UnreadableScan):
        scan(path)


def test_other_content_under_an_image_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image at all")
    with pytest.raises(UnreadableScan, match="not an image"):
        scan(tmp_path / "a.png")
    with pytest.raises(UnreadableScan, match="not found"):
        scan(tmp_path / "absent.png")


def test_a_header_that_claims_a_million_squared_is_refused_at_once(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    side = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(UnreadableScan, match="1000000 x 1000000"):
        scan(tmp_path / "bomb.png", max_pixels=2**28)
    assert Image.MAX_IMAGE_PIXELS is not None  # the limit of the host program is as it was


def test_the_limit_is_the_callers(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert scan(tmp_path / "a.png", max_pixels=23 * 31).size == (23, 31)
    with pytest.raises(UnreadableScan, match="more than the limit of 712"):
        scan(tmp_path / "a.png", max_pixels=23 * 31 - 1)
