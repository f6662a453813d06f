"""SimMIM's patch masking against NumPy, patch by patch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from frepa.corruption.patches import patch_mask
from frepa.draws import Draws, sample_keys
from frepa.errors import InputError

CASES = [((64, 96), 16), ((45, 37), 8), ((20, 33, 18), 8), ((1, 50), 32), ((16, 16, 16), 16)]


def images(shape: tuple[int, ...], batch: int = 4) -> torch.Tensor:
    return torch.rand(batch, 3, *shape, generator=torch.Generator().manual_seed(0))


def draws(batch: int) -> Draws:
    return Draws(sample_keys(0, range(batch), 0))


@pytest.mark.parametrize(("shape", "patch"), CASES)
@pytest.mark.parametrize("fill", ["mean", "zero"])
@pytest.mark.parametrize("exact", [True, False])
def test_whole_patches_are_masked_and_filled(shape: tuple[int, ...], patch: int, fill: str, exact: bool) -> None:
    x = images(shape)
    y, mask = patch_mask(x, draws(4), patch=patch, fill=fill, exact=exact)
    assert mask.shape == (4, 1, *shape)
    assert mask.dtype == torch.bool
    places = list(itertools.product(*[[slice(i, i + patch) for i in range(0, size, patch)] for size in shape]))
    for row in range(4):
        where = mask[row, 0].numpy()
        whole = [where[place] for place in places]
        assert all(part.all() or not part.any() for part in whole)
        if exact:
            assert sum(part.all() for part in whole) == round(0.6 * len(places))
        for channel in range(3):
            image = x[row, channel].numpy().astype(np.float64)
            value = image[~where].mean() if fill == "mean" and not where.all() else 0
            assert np.allclose(y[row, channel].numpy(), np.where(where, value, image), atol=1e-6)


def test_defaults_are_the_published_ones_and_fit_small_images() -> None:
    for shape, patch in (((192, 192), 32), ((64, 64), 16), ((96, 96, 96), 16), ((32, 32, 32), 8)):
        x = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
        mask = patch_mask(x, draws(1))[1][0, 0]
        count = math.prod(shape) // patch ** len(shape)
        assert int(mask.sum()) == round(0.6 * count) * patch ** len(shape)


def test_share_rows_and_options() -> None:
    x = torch.zeros(2000, 1, 6, 5)
    mask = patch_mask(x, draws(2000), patch=1)[1]
    assert (mask.flatten(1).sum(1) == 18).all()
    assert float((mask.float().mean(0) - 0.6).abs().max()) < 5 * math.sqrt(0.24 / 2000)
    x, keys = images((40, 30)), sample_keys(3, range(4), 0)
    whole, mask = patch_mask(x, Draws(keys))
    alone, own = patch_mask(x[2:3], Draws(keys[2:3]))
    assert torch.allclose(whole[2:3], alone, atol=1e-6)
    assert torch.equal(mask[2:3], own)
    for options, words in (
        ({"patch": 0}, "patch=0"),
        ({"mask_ratio": 1.5}, "mask_ratio=1.5"),
        ({"fill": "meen"}, "Did you mean mean"),
        ({"patch": 64}, "image patch of 64 pixels: the images are smaller, 40 x 30"),
    ):
        with pytest.raises(InputError, match=words):
            patch_mask(x, draws(4), **options)
