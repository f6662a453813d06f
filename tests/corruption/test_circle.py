"""MFM's circle against plain complex transforms of the full plane."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from frepa.corruption.circle import circle_mask, circle_radius
from frepa.corruption.spectrum import half_shape, to_spectrum
from frepa.draws import Draws, sample_keys
from frepa.errors import InputError

SHAPES = [(64, 48), (45, 37), (20, 34, 18), (17, 19, 33), (1, 40), (1, 1)]


def images(shape: tuple[int, ...], batch: int = 6) -> torch.Tensor:
    return torch.rand(batch, 2, *shape, generator=torch.Generator().manual_seed(0))


def draws(batch: int) -> Draws:
    return Draws(sample_keys(0, range(batch), 0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", ["auto", 3, 5.5])
def test_circle_is_that_of_the_complex_plane(shape: tuple[int, ...], radius: float | str) -> None:
    x = images(shape)
    image, removed, is_low = circle_mask(x, draws(6), radius=radius)
    assert 0 < int(is_low.sum()) < 6
    axes = np.meshgrid(*[np.fft.fftfreq(size, 1 / size) for size in shape], indexing="ij")
    limit = 16 * min(shape) / 224 if radius == "auto" else radius
    disc = np.sqrt(sum(axis**2 for axis in axes)) < limit
    over = tuple(range(2, x.ndim))
    plane = np.fft.fftn(x.numpy().astype(np.float64), axes=over)
    for row in range(6):
        kept = disc if is_low[row] else ~disc
        expected = np.fft.ifftn(plane[row] * kept, axes=range(1, len(shape) + 1)).real
        assert np.allclose(image[row].numpy(), expected, atol=2e-6)
        assert np.array_equal(removed[row, 0].numpy(), ~kept[..., : shape[-1] // 2 + 1])
    assert removed.shape == (6, 1, *half_shape(shape))
    assert image.dtype == torch.float32


def test_what_was_removed_is_the_rest_of_the_image() -> None:
    x = images((30, 44))
    image, removed, is_low = circle_mask(x, draws(6))
    found = to_spectrum(x - image)
    assert float(found.abs().mul(~removed).max()) < 1e-3
    assert torch.allclose(found.mul(removed), to_spectrum(x).mul(removed), atol=1e-3)
    mean = image.flatten(2).mean(2)
    assert torch.allclose(mean[is_low], x.flatten(2).mean(2)[is_low], atol=1e-6)
    assert float(mean[~is_low].abs().max()) < 1e-6


def test_choice_radius_and_options() -> None:
    x = torch.zeros(4000, 1, 1, 1)
    low = circle_mask(x, draws(4000)).is_low.float().mean()
    assert float(low) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(4000))
    assert circle_mask(x, draws(4000), low_probability=1.0).is_low.all()
    assert not circle_mask(x, draws(4000), low_probability=0.0).is_low.any()
    assert [circle_radius((224, 224)), circle_radius((448, 224, 448)), circle_radius((112, 200))] == [16, 16, 8]
    for options in ({"radius": 0}, {"radius": math.nan}, {"radius": "wide"}, {"low_probability": 2}):
        with pytest.raises(InputError, match=next(iter(options))):
            circle_mask(images((8, 8)), draws(6), **options)


@pytest.mark.parametrize("shape", [(20, 24), (9, 10, 12)])
def test_rows_do_not_depend_on_the_batch_nor_precision_on_autocast(shape: tuple[int, ...]) -> None:
    x, keys = images(shape).to(torch.bfloat16), sample_keys(3, range(6), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = circle_mask(x, Draws(keys))
    alone = circle_mask(x[4:5].float(), Draws(keys[4:5]))
    assert torch.allclose(whole.image[4:5], alone.image, atol=1e-6)
    assert torch.equal(whole.removed[4:5], alone.removed)
