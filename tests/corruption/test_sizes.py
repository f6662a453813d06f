"""The corruption means the same at every size: the mean stays, the noise is as strong, the same share is kept."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data
from skimage.transform import downscale_local_mean

from frepa.corruption import sizes
from frepa.corruption.dual import Corruption
from frepa.corruption.frequency import frequency_corrupt
from frepa.corruption.histogram import histogram_mask
from frepa.draws import Draws, sample_keys
from frepa.errors import InputError

SHAPES = [(64, 64), (128, 128), (256, 256), (512, 512), (32, 32, 32), (64, 64, 64), (128, 128, 128)]


def draws(batch: int, view: int = 0) -> Draws:
    return Draws(sample_keys(0, range(batch), view))


@functools.cache
def photograph(size: int) -> torch.Tensor:
    """A photograph of 512 x 512, averaged over blocks down to ``size``: ``(1, 1, size, size)`` of equal mean."""
    image = downscale_local_mean(data.camera() / 255, (512 // size,) * 2)
    return torch.from_numpy(image).float()[None, None]


@functools.cache
def volume(size: int) -> torch.Tensor:
    """Blobs in 128^3, averaged over blocks down to ``size``: ``(1, 1, size, size, size)`` of equal mean."""
    noise = np.random.default_rng(0).normal(size=(32, 32, 32))
    whole = ndimage.zoom(ndimage.gaussian_filter(noise, 1), 4, order=1)
    whole = (whole - whole.min()) / np.ptp(whole)
    return torch.from_numpy(downscale_local_mean(whole, (128 // size,) * 3)).float()[None, None]


def content(shape: tuple[int, ...]) -> torch.Tensor:
    return photograph(shape[0]) if len(shape) == 2 else volume(shape[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_of_an_image_survives_at_every_size(shape: tuple[int, ...]) -> None:
    count = max(2, min(40, (1 << 20) // math.prod(shape)))
    x = content(shape).expand(count, 1, *shape)
    y = frequency_corrupt(x, draws(count))
    assert float((y - x).square().mean().sqrt()) > 0.01
    assert float((y.flatten(1).mean(1) - x.flatten(1).mean(1)).abs().max()) < 1e-5
    if min(shape) <= 64 and math.prod(shape) <= 64**2:  # what Eq. 2 does taken literally, with the paper's 16 bins
        literal = frequency_corrupt(x, draws(count), patch=16, mask_centre=True)
        assert float((literal.flatten(1).mean(1) - x.flatten(1).mean(1)).abs().max()) > 0.05


def test_the_centre_is_lost_as_often_as_equation_2_says() -> None:
    """At 64 pixels and 16 bins the zero frequency's tile goes with probability 1 - exp(-2 (8 / 12.8)^2) = 0.54."""
    count = 1500
    x = torch.full((count, 1, 64, 64), 0.5)
    y = frequency_corrupt(x, draws(count), patch=16, mask_centre=True, low_noise=False)
    lost = float((y.flatten(1).mean(1) < 0.4).float().mean())
    expected = -math.expm1(-2 * (8 / 12.8) ** 2)
    assert lost == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / count))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("perturbation", ["real", "complex"])
def test_the_perturbation_is_as_strong_at_every_size(dims: int, perturbation: str) -> None:
    """The same picture, averaged down, so that the spectrum's maximum per pixel (its mean) is the same."""
    strength = {}
    for size in (64, 128, 512) if dims == 2 else (32, 128):
        x = content((size,) * dims)
        # Few coefficients are perturbed in a small image, so its RMSE varies: more draws of the cheap ones.
        count = {64: 256, 128: 64, 512: 6}[size] if dims == 2 else {32: 80, 128: 3}[size]
        x = x.expand(count, *x.shape[1:])
        y = frequency_corrupt(x, draws(count), high_mask=False, perturbation=perturbation)
        strength[size] = math.sqrt(float((y - x).square().mean()))
    values = list(strength.values())
    assert max(values) / min(values) < 1.05, strength
    # Parseval: half of sigma^2 max|F|^2 times the sum of the squared weights, over the squared number of pixels.
    cutoff, reference = 0.2 * sizes.REFERENCE_SIZE[dims], 0.002 * float(content((size,) * dims).mean())
    expected = reference * math.sqrt(0.5 * (cutoff * math.sqrt(math.pi / 2)) ** dims)
    assert values == pytest.approx([expected] * len(values), rel=0.04)


def test_without_scaling_the_noise_grows_with_the_size() -> None:
    found = [
        float(
            (frequency_corrupt(photograph(size), draws(1), high_mask=False, scale_sigma=False) - photograph(size)).std()
        )
        for size in (64, 512)
    ]
    assert found[1] / found[0] == pytest.approx(8, rel=0.15)
    same = frequency_corrupt(photograph(512), draws(1), scale_sigma=False)
    assert torch.equal(same, frequency_corrupt(photograph(512), draws(1)))


@pytest.mark.parametrize("shape", [(64, 64), (128, 128), (512, 512), (64, 64, 64)])
def test_the_same_share_of_energy_is_kept_at_every_size(shape: tuple[int, ...]) -> None:
    """Rings in units of Nyquist: at 512 pixels 0.99, 0.80, 0.38, 0.07 and 0.006 of the energy are kept.

    On random images whose energy at a distance r from the zero frequency, taken over all directions, falls as r^-2.
    """
    count = {64: 60, 128: 20, 512: 4}[shape[0]] if len(shape) == 2 else 6
    axes = np.meshgrid(*[2 * np.fft.fftfreq(size) for size in shape], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    white = np.fft.fftn(np.random.default_rng(0).normal(size=(count, *shape)), axes=range(1, len(shape) + 1))
    x = np.fft.ifftn(
        white * np.maximum(radius, 1e-9) ** (-(len(shape) + 1) / 2) * (radius > 0), axes=range(1, len(shape) + 1)
    ).real
    x = 0.5 + 0.05 * x / x.std()
    y = frequency_corrupt(torch.from_numpy(x).float()[:, None], draws(count), low_noise=False)[:, 0].numpy()
    power, kept = (np.abs(np.fft.fftn(a, axes=range(1, len(shape) + 1))) ** 2 for a in (x, y.astype(np.float64)))
    rings = ((0, 0.06), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 9))
    found = []
    for low, high in rings:
        inside = (radius > 0) & (radius >= low) & (radius < high)
        found.append(float(kept[:, inside].sum() / power[:, inside].sum()))
    assert found == pytest.approx([0.99, 0.80, 0.38, 0.07, 0.006], abs=0.06)
    assert found[-1] < 0.012


def test_sides_of_the_patches_by_size() -> None:
    side = [sizes.spectrum_side(shape) for shape in ((512, 512), (256, 256), (128, 128), (64, 64), (28, 28))]
    assert side == [16, 8, 4, 2, 2]
    assert [sizes.spectrum_side((n, n, n)) for n in (128, 64, 32)] == [4, 2, 2]
    assert sizes.spectrum_side((512, 256)) == 8  # the cut-off distance follows the shortest side too
    square = {fit: [sizes.image_side((n, n), fit=fit) for n in (512, 256, 128, 64, 28)] for fit in ("resize", "crop")}
    assert square == {"resize": [32, 16, 8, 4, 2], "crop": [32, 32, 32, 16, 7]}
    cube = {fit: [sizes.image_side((n, n, n), fit=fit) for n in (128, 64, 32)] for fit in ("resize", "crop")}
    assert cube == {"resize": [16, 8, 4], "crop": [16, 16, 8]}
    assert sizes.image_side((1024, 1024), fit="crop") == 32
    assert [sizes.image_side((64, 64)), sizes.image_side((32, 32, 32))] == [4, 8]  # resized in 2D, cropped in 3D
    assert [sizes.spectrum_side((64, 64), 5), sizes.image_side((64, 64), 5)] == [5, 5]
    assert [sizes.noise_scale(shape) for shape in ((512, 512), (64, 64), (128,) * 3, (32,) * 3)] == pytest.approx(
        [1, 8, 1, 8]
    )


def test_auto_is_the_number_it_stands_for() -> None:
    x = photograph(64).expand(4, 1, 64, 64)
    assert torch.equal(frequency_corrupt(x, draws(4)), frequency_corrupt(x, draws(4), patch=2))
    for fit, side in (("resize", 4), ("crop", 16)):
        expected = histogram_mask(x, draws(4), patch=side)[0]
        assert torch.equal(histogram_mask(x, draws(4), fit=fit)[0], expected)
        options = Corruption(fit=fit)
        plain = Corruption(fit=fit, frequency_patch=2, patch=side)
        assert torch.equal(options(x, draws(4)).image, plain(x, draws(4)).image)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 5), (1, 40), (3, 3, 3), (1, 24, 24)])
def test_the_defaults_take_any_size(shape: tuple[int, ...]) -> None:
    x = torch.rand(6, 1, *shape, generator=torch.Generator().manual_seed(0))
    assert Corruption()(x, draws(6)).image.isfinite().all()


def test_patches_for_which_there_is_no_room_are_refused_in_plain_words() -> None:
    x = torch.zeros(1, 1, 32, 32)
    with pytest.raises(InputError, match=r"spectrum patch of 16 bins: images of 32 x 32 leave room for at most 15"):
        frequency_corrupt(x, draws(1), patch=16)
    frequency_corrupt(x, draws(1), patch=15)
    frequency_corrupt(x, draws(1), patch=16, mask_centre=True)
    frequency_corrupt(x, draws(1), patch=16, high_mask=False)
    with pytest.raises(InputError, match="image patch of 33 pixels: the images are smaller, 32 x 32"):
        histogram_mask(x, draws(1), patch=33)
    for options in ({"frequency_patch": 64}, {"patch": 64}):
        with pytest.raises(InputError, match="64"):
            Corruption(**options).check_size((32, 32))
        with pytest.raises(InputError, match="64"):
            Corruption(**options)(x, draws(1))
    # A strategy that is never chosen does not matter.
    Corruption(frequency_probability=0.0, frequency_patch=64).check_size((32, 32))
    Corruption(frequency_probability=1.0, patch=64).check_size((32, 32))
    with pytest.raises(InputError, match="Did you mean resize"):
        Corruption(fit="resized")
    for name in ("patch", "frequency_patch"):
        for side in (0, 2.5, "automatic", True):
            with pytest.raises(InputError, match=f'{name}={side}: expected "auto"'):
                Corruption(**{name: side})
