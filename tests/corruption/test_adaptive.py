"""The image-adaptive spectrum mask: energies and ranks against NumPy on the full plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frepa.corruption.adaptive import energy_rank, tile_energy
from frepa.corruption.frequency import frequency_corrupt, tile_mask
from frepa.corruption.spectrum import to_spectrum
from frepa.corruption.tiles import tile_probability
from frepa.draws import Draws, sample_keys

SHAPES = [(64, 48), (45, 37), (33, 50), (20, 34, 18), (17, 19, 33), (1, 40), (1, 1)]


def images(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(3, 2, *shape, generator=torch.Generator().manual_seed(0))


def plain(image: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean energy and centre distance of each tile of the full plane, bin by bin."""
    shape = image.shape[1:]
    power = (np.abs(np.fft.fftn(image.astype(np.float64), axes=range(1, image.ndim))) ** 2).sum(0)
    tiles = [np.floor(np.fft.fftfreq(size, 1 / size).round() / patch).astype(int) for size in shape]
    lowest, count = [t.min() for t in tiles], [t.max() - t.min() + 1 for t in tiles]
    total, bins = np.zeros(count), np.zeros(count)
    place = np.ix_(*[t - low for t, low in zip(tiles, lowest)])
    np.add.at(total, place, power)
    np.add.at(bins, place, 1)
    centres = np.meshgrid(*[patch * (np.arange(n) + low + 0.5) for n, low in zip(count, lowest)], indexing="ij")
    return total / bins, np.sqrt(sum(centre**2 for centre in centres))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("patch", [4, 7])
def test_energy_and_rank_are_those_of_the_full_plane(shape: tuple[int, ...], patch: int) -> None:
    x = images(shape)
    energy, rank = tile_energy(to_spectrum(x), shape, patch), energy_rank(to_spectrum(x), shape, patch)
    for row in range(3):
        expected, distance = plain(x[row].numpy(), patch)
        assert np.allclose(energy[row].numpy(), expected, rtol=1e-4)
        own = energy[row].numpy()
        ring = np.floor(distance / patch)
        for index in np.ndindex(own.shape):
            others = own[ring == ring[index]]
            least, most = (others < own[index]).sum() + 1, (others <= own[index]).sum()
            assert least - 0.01 <= rank[row][index] * len(others) <= most + 0.01  # any order among equals
    assert float(rank.min()) > 0
    assert float(rank.max()) == 1


def test_the_direction_of_an_images_structures_is_masked_first() -> None:
    size, count = 64, 300
    grid = torch.arange(size) / size
    stripes = 0.5 + 0.3 * torch.sin(2 * torch.pi * 20 * grid)  # along the last axis, at 20 bins
    noise = 0.01 * torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    x = (stripes[None] + noise).expand(count, 1, size, size)
    draws = Draws(sample_keys(0, range(count), 0))
    options = {"patch": 2, "cutoff": 0.4, "low_noise": False}
    plain_, adaptive = (
        frequency_corrupt(x, draws, adaptive=value, **options).var(dim=(1, 2, 3)).mean() / x[0].var()
        for value in (False, True)
    )
    # Eq. 2 alone keeps (q + q^2) / 2 of the stripes. Theirs are the strongest tiles of their ring, so the rank is about
    # 1 and as much is kept, while the ring as a whole keeps about (1 + q) / 2.
    q = float(np.exp(-(21**2 + 1) / (0.4 * size) ** 2))
    assert float(plain_) == pytest.approx((q + q * q) / 2, abs=0.05)
    assert float(adaptive) == pytest.approx((q + q * q) / 2, abs=0.05)
    factor = energy_rank(to_spectrum(x[:1]), (size, size), 2)
    probability = tile_probability((size, size), 2, 0.4)
    keep = tile_mask((size, size), draws, patch=2, cutoff=0.4, factor=factor.expand(count, -1, -1)).mean()
    alone = tile_mask((size, size), draws, patch=2, cutoff=0.4).mean()
    # The half spectrum's columns do not weigh all tiles alike, hence the tolerance.
    assert float(keep) == pytest.approx(float((1 - probability * factor).mean()), abs=0.03)
    assert float(keep) > float(alone) + 0.2


def test_it_keeps_the_mean_and_does_not_depend_on_the_batch() -> None:
    x, keys = images((40, 36)), sample_keys(0, range(3), 0)
    whole = frequency_corrupt(x, Draws(keys), adaptive=True)
    assert torch.allclose(whole.flatten(2).mean(2), x.flatten(2).mean(2), atol=1e-5)
    assert torch.allclose(whole[1:2], frequency_corrupt(x[1:2], Draws(keys[1:2]), adaptive=True), atol=1e-6)
