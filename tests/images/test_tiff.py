"""TIFF in its many kinds, written by tifffile or Pillow, read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from frepa.images.readers.tiff import header, read
from frepa.images.scan import Scan, UnreadableScan

RNG = np.random.default_rng(3)


def scan(path: Path, member: str | None = None, dims: int = 2, max_pixels: int = 10**7) -> Scan:
    return read(path, member, 0, dims=dims, max_pixels=max_pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "deflate", "tile": (16, 16)}])
def test_grey_of_every_type(tmp_path: Path, dtype: type, options: dict) -> None:
    image = (RNG.random((40, 52)) * 200).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", **options)
    result = scan(tmp_path / "a.tif").array
    assert result.dtype == dtype
    assert np.array_equal(result, image[None])
    assert header(tmp_path / "a.tif", None, dims=2, max_pixels=10**7).size == (40, 52)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour_with_interleaved_and_separate_planes(tmp_path: Path, planar: str) -> None:
    image = RNG.integers(0, 65536, (40, 52, 3), dtype=np.uint16)
    stored = image if planar == "contig" else image.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    assert np.array_equal(scan(tmp_path / "a.tif").array, image.transpose(2, 0, 1))
    assert header(tmp_path / "a.tif", None, dims=2, max_pixels=10**7).channels == 3


def test_alpha_palette_one_bit_and_inverted_grey(tmp_path: Path) -> None:
    colour = RNG.integers(0, 256, (40, 52, 3), dtype=np.uint8)
    opaque = np.dstack([colour, np.full((40, 52), 255, np.uint8)])
    tifffile.imwrite(tmp_path / "rgba.tif", opaque, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(scan(tmp_path / "rgba.tif").array, colour.transpose(2, 0, 1))

    indices, palette = RNG.integers(0, 256, (40, 52), dtype=np.uint8), RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "palette.tif")
    assert np.array_equal(scan(tmp_path / "palette.tif").array.transpose(1, 2, 0), palette[indices])

    Image.fromarray(indices > 99).save(tmp_path / "bit.tif")
    assert np.array_equal(scan(tmp_path / "bit.tif").array[0] > 0, indices > 99)

    tifffile.imwrite(tmp_path / "white.tif", indices, photometric="miniswhite")
    assert np.array_equal(scan(tmp_path / "white.tif").array[0], 255 - indices)


def test_cmyk_as_pillow_converts_it(tmp_path: Path) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (40, 52, 4), dtype=np.uint8), mode="CMYK")
    image.save(tmp_path / "a.tif")
    oracle = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(scan(tmp_path / "a.tif").array.transpose(1, 2, 0) - oracle).max() <= 1


def test_pages_are_a_volume_in_3d_and_images_in_2d(tmp_path: Path) -> None:
    stack = RNG.integers(0, 4096, (5, 40, 52), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    assert np.array_equal(scan(tmp_path / "a.tif", dims=3).array, stack[None])
    assert header(tmp_path / "a.tif", None, dims=3, max_pixels=10**7).size == (5, 40, 52)
    assert np.array_equal(scan(tmp_path / "a.tif", "3").array, stack[3:4])
    assert header(tmp_path / "a.tif", None, dims=2, max_pixels=10**7).count == 5
    for page in range(5):
        result = read(tmp_path / "a.tif", None, page, dims=2, max_pixels=10**7)
        assert np.array_equal(result.array, stack[page : page + 1])
    tifffile.imwrite(tmp_path / "b.tif", stack[0], photometric="minisblack")
    with pytest.raises(UnreadableScan, match="an image and not a volume"):
        scan(tmp_path / "b.tif", dims=3)
    with pytest.raises(UnreadableScan, match="no page '5'"):
        scan(tmp_path / "a.tif", "5")


def test_thumbnails_are_not_the_image(tmp_path: Path) -> None:
    image = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(image, photometric="minisblack")
        writer.write(image[::4, ::4], photometric="minisblack", subfiletype=1)
    assert np.array_equal(scan(tmp_path / "a.tif").array[0], image)


def test_pages_of_different_sizes_are_no_volume(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.zeros((20, 20), np.uint8))
        writer.write(np.zeros((20, 21), np.uint8))
    with pytest.raises(UnreadableScan, match="different sizes"):
        scan(tmp_path / "a.tif", dims=3)


def test_nan_is_refused_with_a_count(tmp_path: Path) -> None:
    image = np.zeros((30, 30), np.float32)
    image[3, 4:6] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", image)
    with pytest.raises(UnreadableScan, match="2 of 900 values are NaN"):
        scan(tmp_path / "a.tif")


def test_damaged_files_and_too_large_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RNG.integers(0, 256, (200, 200), dtype=np.uint8), compression="lzw")
    data = path.read_bytes()
    with pytest.raises(UnreadableScan, match="more than the limit"):
        scan(path, max_pixels=39_999)
    for part in (data[: len(data) // 2], data[:6], b"II*\0 nothing more", b"text"):
        path.write_bytes(part)
        with pytest.raises(UnreadableScan) as caught:
            scan(path)
        assert str(tmp_path) not in caught.value.reason


def test_real_fundus_image(shared_data: Path) -> None:
    path = shared_data / "DRIVE" / "training" / "images" / "21_training.tif"
    oracle = np.asarray(Image.open(path))
    assert np.array_equal(scan(path).array.transpose(1, 2, 0), oracle)
