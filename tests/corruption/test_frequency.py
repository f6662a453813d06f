"""Frequency dual-component masking against plain complex transforms of the full plane, and against Eq. 2 and 3."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from frepa.corruption import frequency, tiles
from frepa.corruption.spectrum import frequency_distance, half_shape, to_image, to_spectrum
from frepa.draws import Draws, sample_keys
from frepa.errors import InputError

SHAPES = [(64, 48), (45, 37), (33, 50), (1, 40), (40, 1), (1, 1), (20, 34, 18), (17, 19, 33), (2, 1, 35), (1, 1, 1)]


def to_half(plane: torch.Tensor, dims: int) -> torch.Tensor:
    """``(A(u) + conj A(-u)) / 2`` on the half spectrum of a plane in transform order: its part with a real image."""
    return frequency.hermitian_part(plane, range(-dims, 0))[..., : plane.shape[-1] // 2 + 1]


def images(shape: tuple[int, ...], batch: int = 2, channels: int = 2) -> torch.Tensor:
    return torch.rand(batch, channels, *shape, generator=torch.Generator().manual_seed(0))


def draws(batch: int, seed: int = 0) -> Draws:
    return Draws(sample_keys(seed, range(batch), 0))


def tile_of_bin(size: int, patch: int) -> np.ndarray:
    """Tile of each bin along an axis: walk away from the zero frequency, ``patch`` bins at a time."""
    number = {}
    for frequency_ in range(-(size // 2), (size - 1) // 2 + 1):
        number[frequency_ % size] = math.floor(frequency_ / patch)
    lowest = min(number.values())
    return np.array([number[index] - lowest for index in range(size)])


def full_plane(values: np.ndarray, shape: tuple[int, ...], patch: int) -> np.ndarray:
    """Values of tiles ``(B, *tiles)`` on every bin of the full plane, in transform order."""
    return values[(slice(None), *np.ix_(*[tile_of_bin(size, patch) for size in shape]))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("patch", [16, 5])
def test_masking_and_noise_equal_the_complex_plane(shape: tuple[int, ...], patch: int) -> None:
    x = images(shape)
    generator = np.random.default_rng(1)
    axes = tuple(range(2, x.ndim))
    counts = tiles.tile_probability(shape, patch, 0.2).shape
    keep = (generator.random((2, *counts)) > 0.5).astype(np.float32)
    noise = generator.normal(size=x.shape).astype(np.float32)

    plane = np.fft.fftn(x.numpy().astype(np.float64), axes=axes)
    level = 0.002 * np.abs(plane).max(axis=(1, *axes), keepdims=True)
    expected = np.fft.ifftn(plane * full_plane(keep, shape, patch)[:, None] + level * noise, axes=axes).real

    mask = tiles.expand_tiles(torch.from_numpy(keep), shape, patch)[:, None]
    half_noise = to_half(torch.from_numpy(noise), len(shape)).clone()
    found = to_image(frequency.corrupt_spectrum(to_spectrum(x), mask, half_noise, 0.002), shape)
    assert np.allclose(found.numpy(), expected, atol=3e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_half_mask_of_tiles_is_that_of_the_plane(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(2)
    keep = generator.random((3, *tiles.tile_probability(shape, 16, 0.2).shape)).astype(np.float32)
    plane = torch.from_numpy(full_plane(keep, shape, 16))
    found = tiles.expand_tiles(torch.from_numpy(keep), shape, 16)
    assert tuple(found.shape) == (3, *half_shape(shape))
    assert torch.equal(found, to_half(plane, len(shape)))


def test_mirror_is_the_negative_frequency() -> None:
    plane = np.random.default_rng(0).normal(size=(6, 5, 4))
    found = frequency.hermitian_part(torch.from_numpy(plane), range(3)).numpy()
    for index in itertools.product(range(6), range(5), range(4)):
        mirror = tuple(-i % size for i, size in zip(index, plane.shape))
        assert found[index] == (plane[index] + plane[mirror]) / 2


@pytest.mark.parametrize("mask_centre", [False, True])
@pytest.mark.parametrize("shape", [(128, 96), (45, 70), (48, 40, 36)])
def test_tiles_are_masked_as_often_as_equation_2_says(shape: tuple[int, ...], mask_centre: bool) -> None:
    count = 3000
    cutoff = 0.4  # so that many probabilities are neither 0 nor 1
    centres = [np.unique(np.floor(np.fft.fftfreq(size) * size / 16 + 1e-9)) * 16 + 8 for size in shape]
    square = sum(axis**2 for axis in np.meshgrid(*centres, indexing="ij"))
    expected = 1 - np.exp(-square / (cutoff * min(shape)) ** 2)
    if not mask_centre:  # the tiles with a corner at the zero frequency: their centres are 8 bins away along each axis
        expected[square == 64 * len(shape)] = 0
        assert (expected == 0).sum() == 2 ** len(shape)
    assert np.allclose(tiles.tile_probability(shape, 16, cutoff, mask_centre=mask_centre).numpy(), expected, atol=1e-6)
    # At the first bin of each tile the half mask is 1/2 (M(u) + M(-u)): the mean over draws gives both probabilities.
    masks = frequency.tile_mask(shape, draws(count), patch=16, cutoff=cutoff, mask_centre=mask_centre)
    assert masks.shape == (count, 1, *half_shape(shape))
    plane = full_plane(expected[None], shape, 16)
    kept = 1 - to_half(torch.from_numpy(plane), len(shape))[0].numpy()
    assert np.abs(masks.mean(0)[0].numpy() - kept).max() < 5 * 0.5 / math.sqrt(count)


def test_distances_of_tile_centres_are_8_24_and_so_on() -> None:
    probability = tiles.tile_probability((512, 512), 16, 0.2, mask_centre=True)
    assert probability.shape == (32, 32)
    for i, j in ((16, 16), (15, 16), (20, 3), (0, 31)):
        square = (16 * (i - 15.5)) ** 2 + (16 * (j - 15.5)) ** 2
        assert float(probability[i, j]) == pytest.approx(1 - math.exp(-square / (0.2 * 512) ** 2), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_complex_noise_is_the_real_part_of_the_complex_plane(shape: tuple[int, ...]) -> None:
    generator, axes = np.random.default_rng(1), tuple(range(2, 2 + len(shape)))
    x = images(shape)
    noise = (generator.normal(size=x.shape) + 1j * generator.normal(size=x.shape)).astype(np.complex64)
    plane = np.fft.fftn(x.numpy().astype(np.float64), axes=axes)
    level = 0.002 * np.abs(plane).max(axis=(1, *axes), keepdims=True)
    expected = np.fft.ifftn(plane + level * noise, axes=axes).real
    half = to_half(torch.from_numpy(noise), len(shape)).clone()
    found = to_image(frequency.corrupt_spectrum(to_spectrum(x), None, half, 0.002), shape)
    assert np.allclose(found.numpy(), expected, atol=3e-6)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_real_noise_is_point_symmetric_and_complex_noise_is_not(kind: str) -> None:
    x = torch.full((1, 1, 33, 40), 0.5)
    noise = (frequency.frequency_corrupt(x, draws(1), perturbation=kind) - x)[0, 0].numpy()
    mirrored = np.roll(noise[::-1, ::-1], (1, 1), (0, 1))
    similarity = float((noise * mirrored).mean() / (noise**2).mean())
    assert similarity == pytest.approx(1, abs=1e-3) if kind == "real" else abs(similarity) < 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_perturbation_keeps_the_mean_of_every_channel(shape: tuple[int, ...]) -> None:
    x = images(shape)
    y = frequency.frequency_corrupt(x, draws(2), high_mask=False, sigma=0.05)
    assert torch.allclose(y.flatten(2).mean(2), x.flatten(2).mean(2), atol=2e-6)
    if min(shape) > 1:  # with a cut-off of a fifth of one bin nothing but the zero frequency is low
        assert not torch.allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("shape", [(16, 12), (9, 15), (10, 7), (6, 8, 10), (5, 7, 9)])
def test_noise_is_a_spectrum_of_real_images(shape: tuple[int, ...], kind: str) -> None:
    """What the inverse real transform is given must be Hermitian: rebuilt to a full plane it gives the same image."""
    half = frequency.low_frequency_noise((1, *shape), draws(2), cutoff=0.5, kind=kind).numpy()[:, 0]
    axes = tuple(range(1, half.ndim))
    plane = np.zeros((2, *shape), half.dtype)
    plane[..., : half.shape[-1]] = half
    for index in itertools.product(*map(range, shape)):
        if index[-1] >= half.shape[-1]:
            plane[(slice(None), *index)] = half[(slice(None), *[-i % size for i, size in zip(index, shape)])].conj()
    expected = np.fft.ifftn(plane, axes=axes)
    assert np.abs(expected.imag).max() < 1e-7
    found = torch.fft.irfftn(torch.from_numpy(half).to(torch.complex64), s=shape, dim=axes)
    assert np.allclose(found.numpy(), expected.real, atol=1e-6)
    assert (half[(slice(None), *[0] * len(shape))] == 0).all()


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("shape", [(12, 10), (9, 11), (6, 5, 8)])
def test_noise_has_the_variance_of_the_projected_plane(shape: tuple[int, ...], kind: str) -> None:
    count, cutoff = 6000, 0.7
    noise = frequency.low_frequency_noise((1, *shape), draws(count), cutoff=cutoff, kind=kind)[:, 0]
    weight = torch.exp(-(frequency_distance(shape) ** 2) / (cutoff * min(shape)) ** 2)
    # Half of the variance everywhere but, with real noise, where a coefficient is its own mirror.
    own = torch.zeros(half_shape(shape), dtype=torch.bool)
    for index in itertools.product(*map(range, half_shape(shape))):
        own[index] = all(2 * i % size == 0 for i, size in zip(index, shape))
    expected = weight**2 * torch.where(own, 1.0 if kind == "real" else 0.5, 0.5)
    expected.view(-1)[0] = 0
    assert torch.allclose(noise.abs().square().mean(0), expected, rtol=0.12, atol=1e-7)
    assert float((noise.mean(0).abs() / expected.sqrt().clamp_min(1e-12)).abs().max()) < 5 / math.sqrt(count) * 1.1


def test_image_noise_power_is_the_closed_form() -> None:
    """Parseval: mean squared image error = sum over the plane of variance of the Hermitian part / N^2."""
    shape, count = (40, 33), 400
    x = images(shape, 1, 1).expand(count, 1, *shape)
    y = frequency.frequency_corrupt(x, draws(count), high_mask=False, scale_sigma=False)
    pixels = math.prod(shape)
    axes = [np.fft.fftfreq(size) * size for size in shape]
    square = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))
    weight = np.exp(-square / (0.2 * min(shape)) ** 2)
    own = np.zeros(shape, bool)
    for index in itertools.product(*[(0, size // 2) if size % 2 == 0 else (0,) for size in shape]):
        own[index] = True
    variance = weight**2 * np.where(own, 1.0, 0.5)
    variance[0, 0] = 0
    sigma = 0.002 * np.abs(np.fft.fft2(x[0, 0].numpy())).max()
    expected = sigma**2 * variance.sum() / pixels**2
    found = float((y - x).square().mean())
    assert found == pytest.approx(expected, rel=0.05)


def test_one_mask_for_all_channels_but_noise_of_their_own() -> None:
    x = images((48, 48), 2, 1).expand(2, 3, 48, 48)
    masked = frequency.frequency_corrupt(x, draws(2), low_noise=False)
    assert torch.equal(masked[:, 0], masked[:, 1])
    assert torch.equal(masked[:, 0], masked[:, 2])
    noisy = frequency.frequency_corrupt(x, draws(2), high_mask=False) - x
    correlation = torch.corrcoef(noisy[0].flatten(1)) - torch.eye(3)
    assert float(correlation.abs().max()) < 0.5
    assert float(noisy.flatten(2).std(2).min()) > 0


def test_noise_level_follows_the_largest_magnitude_of_the_whole_image_before_masking() -> None:
    x = images((32, 32), 1, 2)
    x[:, 1] *= 0.01  # its own spectrum is small, but the image's largest magnitude counts
    quiet = frequency.frequency_corrupt(x, draws(1), high_mask=False) - x
    loud = frequency.frequency_corrupt(2 * x, draws(1), high_mask=False) - 2 * x
    assert torch.allclose(loud, 2 * quiet, atol=1e-6)
    assert 0.3 < float(quiet[0, 1].std() / quiet[0, 0].std()) < 3


def test_result_is_not_clipped_and_each_part_can_be_left_out() -> None:
    x = (images((64, 64), 1, 1) > 0.5).float()
    y = frequency.frequency_corrupt(x, draws(1), high_mask=False)
    assert float(y.min()) < 0
    assert float(y.max()) > 1
    same = frequency.frequency_corrupt(x, draws(1), high_mask=False, low_noise=False)
    assert torch.allclose(same, x, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 30), (12, 14, 16)])
def test_rows_do_not_depend_on_the_batch(shape: tuple[int, ...]) -> None:
    x, keys = images(shape, 4), sample_keys(3, range(4), 1)
    whole = frequency.frequency_corrupt(x, Draws(keys))
    alone = frequency.frequency_corrupt(x[2:3], Draws(keys[2:3]))
    assert torch.allclose(whole[2:3], alone, atol=1e-6)
    assert not torch.allclose(whole[0], frequency.frequency_corrupt(x[:1], Draws(keys[1:2]))[0], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_and_autocast_give_float32(dtype: torch.dtype) -> None:
    x = images((30, 22)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = frequency.frequency_corrupt(x, draws(2))
    assert found.dtype == torch.float32
    assert torch.equal(found, frequency.frequency_corrupt(x.float(), draws(2)))


def test_input_is_left_alone() -> None:
    x = images((24, 24))
    before = x.clone()
    frequency.frequency_corrupt(x, draws(2))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "option", [{"patch": 0}, {"patch": 2.5}, {"cutoff": 0.0}, {"sigma": -1.0}, {"perturbation": "r"}]
)
def test_options_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        frequency.frequency_corrupt(images((8, 8)), draws(2), **option)
