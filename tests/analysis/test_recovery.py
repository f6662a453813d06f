"""What features hold of each frequency, against NumPy's transform and scikit-learn's regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from frepa.analysis.recovery import BANDS, RINGS, random_projection, recovery
from frepa.heads.ridge import blocks_of, unblocked


def images(count: int, shape: tuple[int, ...], seed: int, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, *shape, generator=torch.Generator().manual_seed(seed))


def blocks_as_map(x: Tensor, stride: int) -> Tensor:
    grid = [n // stride for n in x.shape[2:]]
    return blocks_of(x, stride).view(len(x), *grid, -1).movedim(-1, 1)


@pytest.mark.parametrize(("shape", "channels"), [((16, 24), 3), ((8, 8, 12), 1)])
def test_unblocked_undoes_blocks(shape: tuple[int, ...], channels: int) -> None:
    x = images(3, shape, 0, channels)
    assert torch.equal(unblocked(blocks_of(x, 4), x.shape, 4), x)


@pytest.mark.parametrize("shape", [(16, 16), (8, 8, 8)])
def test_all_is_recovered_from_the_pixels_themselves(shape: tuple[int, ...]) -> None:
    """The identity, and a random projection to more numbers than pixels, from which they can be told."""
    fit, test = [images(40, shape, seed) for seed in range(4)], [images(8, shape, 9)]
    outputs = 4 ** len(shape)
    for features in (lambda x: blocks_as_map(x, 4), random_projection(2 * outputs, 4)):
        found = recovery(features, 4, fit, test)
        assert np.nanmin(found.share) > 0.98
        assert np.nanmin(list(found.bands.values())) > 0.98
        assert found.outputs == outputs


def test_nothing_is_recovered_from_noise() -> None:
    def noise(x: Tensor) -> Tensor:
        return torch.randn(len(x), 8, 4, 4, generator=torch.Generator().manual_seed(int(1e6 * x.sum())))

    found = recovery(noise, 4, [images(64, (16, 16), seed) for seed in range(4)], [images(32, (16, 16), 9)])
    assert np.nanmax(np.abs(found.share)) < 0.05


def test_a_random_projection_keeps_its_share_of_white_noise() -> None:
    """k of n directions of white noise hold k / n of its energy."""
    fit, test = [images(300, (16, 16), seed) for seed in range(4)], [images(300, (16, 16), 9)]
    found = recovery(random_projection(8, 4), 4, fit, test)
    whole = np.nansum(np.multiply(found.share, found.energy)) / np.sum(found.energy)
    corners = 1 - np.pi / 4  # of the square of frequencies, which no ring holds
    assert whole * (1 - corners) + found.bands["high"] * corners == pytest.approx(0.5, abs=0.06)


def test_low_pass_features_keep_low_frequencies() -> None:
    def means(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 4)

    fit, test = [images(200, (32, 32), seed) for seed in range(4)], [images(100, (32, 32), 9)]
    found = recovery(means, 4, fit, test)
    assert found.bands["low"] > 0.5 > 0.1 > found.bands["high"]
    assert found.share[1] > found.share[-1]


def test_rings_bands_and_similarity_are_numpys() -> None:
    """The whole of it again by scikit-learn and a plain complex transform."""
    fit, test = [images(50, (16, 20), seed, 2) for seed in range(4)], images(30, (16, 20), 9, 2)
    features = random_projection(10, 4, seed=3)
    found = recovery(features, 4, fit, [test[:11], test[11:]])

    def rows(x: Tensor) -> np.ndarray:
        return features(x).movedim(1, -1).reshape(-1, 10).double().numpy()

    known = np.concatenate([rows(x) for x in fit])
    scale = known.std(0)
    targets = np.concatenate([blocks_of(x, 4).double().numpy() for x in fit])
    model = Ridge(alpha=found.penalty * len(known)).fit((known - known.mean(0)) / scale, targets)
    predicted = model.predict((rows(test) - known.mean(0)) / scale)
    off = unblocked(torch.from_numpy(predicted), test.shape, 4).numpy() - test.double().numpy()

    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(20), indexing="ij"))
    error, energy = (np.abs(np.fft.fft2(x)) ** 2 for x in (off, test.double().numpy()))
    for ring in range(RINGS):
        inside = (radius >= 0.5 * ring / RINGS) & (radius < 0.5 * (ring + 1) / RINGS) & (radius > 0)
        if inside.any():
            assert found.share[ring] == pytest.approx(
                1 - error[..., inside].sum() / energy[..., inside].sum(), abs=1e-4
            )
        else:
            assert np.isnan(found.share[ring])
    for name, (low, high) in BANDS.items():
        inside = (radius >= low) & (radius < high)
        filtered = np.fft.ifft2(np.fft.fft2(off) * inside).real
        rho = 1 - np.sqrt((filtered**2).mean((1, 2, 3)))
        assert found.similarity[name] == pytest.approx(rho.mean(), abs=1e-5)


def test_wrong_sizes_are_told() -> None:
    with pytest.raises(ValueError, match="whole numbers of positions"):
        recovery(random_projection(2, 4), 4, [images(2, (15, 16), 0)], [images(2, (16, 16), 0)])
    with pytest.raises(ValueError, match="no images"):
        recovery(random_projection(2, 4), 4, [], [])
