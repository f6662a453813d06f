"""Resizing against Pillow, cropping against plain slicing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from frepa.images.geometry import crop_at, placement, resize, resize_pad

RNG = np.random.default_rng(1)


def pillow(plane: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize(size[::-1], how))


@pytest.mark.parametrize("size", [(32, 40), (97, 13), (200, 150), (64, 300)])
@pytest.mark.parametrize(("order", "how"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
def test_resize_agrees_with_pillow(size: tuple[int, int], order: str, how: Image.Resampling) -> None:
    image = RNG.random((2, 97, 120), dtype=np.float32)
    ours = resize(image, size, order)
    oracle = np.stack([np.clip(pillow(plane, size, how), 0, 1) for plane in image])
    np.testing.assert_allclose(ours, oracle, atol=2e-5)


@pytest.mark.parametrize("shape", [(20, 1), (1, 20), (1, 1), (5, 7)])
@pytest.mark.parametrize("size", [(13, 1), (1, 13), (1, 1), (50, 1), (30, 4)])
def test_images_one_pixel_wide_agree_with_pillow(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = RNG.random((3, *shape), dtype=np.float32)
    oracle = np.stack([np.clip(pillow(plane, size, Image.BICUBIC), 0, 1) for plane in image])
    np.testing.assert_allclose(resize(image, size), oracle, atol=2e-5)


def test_volumes_are_resized_axis_by_axis() -> None:
    volume = RNG.random((1, 20, 30, 24), dtype=np.float32)
    ours = resize(volume, (13, 44, 12), "bilinear")
    planes = np.stack([pillow(plane, (44, 12), Image.BILINEAR) for plane in volume[0]])  # D, 44, 12
    oracle = np.stack([pillow(np.ascontiguousarray(planes[:, i]), (13, 12), Image.BILINEAR) for i in range(44)], axis=1)
    np.testing.assert_allclose(ours[0], oracle, atol=2e-5)


def test_shrinking_does_not_alias() -> None:
    # Stripes finer than the new grid must become grey; without a low-pass they would turn into false coarse stripes
    stripes = np.tile((np.arange(300) % 2).astype(np.float32), (300, 1))[None]
    small = resize(stripes, (70, 70))[0, 8:-8, 8:-8]
    assert np.abs(small - 0.5).max() < 0.02


@pytest.mark.parametrize(
    ("shape", "size", "inner", "offset"),
    [
        ((100, 50), (64, 64), (64, 32), (0, 16)),
        ((30, 90), (60, 60), (20, 60), (20, 0)),
        ((40, 40), (128, 128), (128, 128), (0, 0)),
        ((1, 1000), (64, 64), (1, 64), (31, 0)),
        ((10, 20, 40), (16, 16, 16), (4, 8, 16), (6, 4, 0)),
    ],
)
def test_aspect_is_kept_and_the_rest_is_zero(
    shape: tuple[int, ...], size: tuple[int, ...], inner: tuple[int, ...], offset: tuple[int, ...]
) -> None:
    place = placement(shape, size)
    assert (place.inner, place.offset) == (inner, offset)
    framed = resize_pad(np.ones((2, *shape), np.float32), size)
    assert framed.shape == (2, *size)
    inside = np.zeros((2, *size), bool)
    inside[(slice(None), *place.slices)] = True
    np.testing.assert_allclose(framed[inside], 1, atol=1e-6)
    assert framed[~inside].sum() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (600, 1), (1, 1, 1), (3, 1, 900)])
def test_extreme_shapes_come_out_finite_and_in_range(shape: tuple[int, ...]) -> None:
    for size in ((16,) * len(shape), (224,) * len(shape)) if len(shape) == 2 else ((16,) * 3,):
        framed = resize_pad(RNG.random((1, *shape), dtype=np.float32), size)
        assert framed.shape == (1, *size)
        assert np.isfinite(framed).all()
        assert framed.min() >= 0
        assert framed.max() <= 1


def test_bicubic_overshoot_is_clipped() -> None:
    edge = np.zeros((1, 20, 20), np.float32)
    edge[..., 10:] = 1
    large = resize_pad(edge, (90, 90))
    assert large.min() == 0
    assert large.max() == 1


def test_labels_keep_their_values_and_their_place() -> None:
    labels = np.kron(RNG.integers(0, 5, (1, 12, 9)), np.ones((1, 8, 8), int)).astype(np.uint8)
    framed = resize_pad(labels, (224, 224), "nearest")
    assert framed.dtype == np.uint8
    assert set(np.unique(framed)) <= {0, 1, 2, 3, 4}
    inner = framed[(slice(None), *placement(labels.shape[1:], (224, 224)).slices)]
    back = resize(inner, labels.shape[1:], "nearest")
    assert np.array_equal(back, labels)


def test_crop_is_a_slice_at_native_resolution() -> None:
    image = RNG.random((3, 50, 70), dtype=np.float32)
    assert np.array_equal(crop_at(image, (20, 30), (0.0, 0.0)), image[:, :20, :30])
    assert np.array_equal(crop_at(image, (20, 30), (1.0, 1.0)), image[:, 30:, 40:])
    assert np.array_equal(crop_at(image, (20, 30), (0.5, 0.5)), image[:, 15:35, 20:50])
    volume = RNG.integers(0, 9, (1, 6, 50, 70), dtype=np.int16)
    assert np.array_equal(crop_at(volume, (4, 50, 8), (0.999, 0.3, 0.0)), volume[:, 2:, :, :8])


def test_every_crop_position_is_equally_likely() -> None:
    image = np.arange(7, dtype=np.int64).reshape(1, 1, 7)
    first = [int(crop_at(image, (1, 3), (0.0, w))[0, 0, 0]) for w in (np.arange(1000) + 0.5) / 1000]
    assert np.bincount(first).tolist() == [200] * 5


def test_short_axes_are_padded_with_zeros() -> None:
    image = np.full((2, 3, 40), 9, np.uint8)
    out = crop_at(image, (8, 10), (0.7, 0.2))
    assert out.shape == (2, 8, 10)
    assert out.dtype == np.uint8
    assert out[:, 2:5].min() == 9
    assert out.sum() == 9 * 2 * 3 * 10
