"""The lit part of an image against SciPy's morphology."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from frepa.corruption.field import DARK, lit
from frepa.datasets.opening import open_source
from frepa.images.geometry import resize_pad
from frepa.images.loading import load_images


@pytest.mark.parametrize("shape", [(64, 80), (32, 40, 36)])
def test_dark_places_larger_than_a_sixteenth_of_the_side_are_left_out(shape):
    rng = np.random.default_rng(0)
    images = rng.random((2, 1, *shape)) * (rng.random((2, 1, *shape)) > 0.8)
    side = 2 * (min(shape) // 32) + 1
    found = lit(torch.from_numpy(images).float()).numpy()
    for image, own in zip(images[:, 0], found[:, 0]):
        bright = image.astype(np.float32) > DARK
        wide = np.pad(bright, side)  # beyond the border is nothing, which leaves what is at the border as it is
        grown = ndimage.maximum_filter(wide, side, mode="constant")[tuple(slice(side, -side) for _ in shape)]
        expected = ndimage.minimum_filter(grown, side, mode="constant", cval=True)
        assert np.array_equal(own, expected)
        assert 0.1 < own.mean() < 1


def test_a_retina_is_its_disc_with_its_vessels_and_darkness_alone_is_whole():
    y, x = np.mgrid[:128, :128] - 63.5
    disc = np.hypot(x, y) < 60
    image = np.where(disc, 0.5, 0.05)
    image[:, 40:42] = 0.0  # a dark vessel
    found = lit(torch.from_numpy(np.stack([image] * 3)[None]).float())[0, 0].numpy()
    assert 2 * (found & disc).sum() / (found.sum() + disc.sum()) > 0.985
    assert found[64, 41]
    assert lit(torch.zeros(1, 1, 32, 32)).all()


def test_it_is_the_official_field_of_view_of_a_retina(shared_data):
    folder = shared_data / "DRIVE" / "training"
    source = open_source(str(folder / "images"), dims=2)
    batch = load_images(source, range(2), size=128, mode="resize")
    found = lit(batch["image"])[:, 0].numpy()
    for index in range(2):
        number = Path(source.name(index)).name.partition("_")[0]
        mask = np.array(Image.open(next((folder / "mask").glob(f"{number}_*"))).convert("L"))[None]
        official = resize_pad(mask, (128, 128), "nearest")[0] > 0
        assert 2 * (found[index] & official).sum() / (found[index].sum() + official.sum()) > 0.98
