"""The guide against scikit-image's ridge filters, in 2D and 3D, borders included."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data, filters
from skimage.color import rgb2gray
from skimage.feature import hessian_matrix, hessian_matrix_eigvals

from frepa.corruption.guide import guide_reach, hessian_guide, luminance, plain_guide
from frepa.errors import InputError

SIGMAS = (0.5, 1.0, 1.5)


@functools.cache
def pictures() -> dict[str, np.ndarray]:
    camera = data.camera() / 255
    return {
        "whole": camera[::2, ::2],
        "odd": camera[100:237, 57:300],
        "small": camera[100:107, 200:231],
        "vessels": data.microaneurysms() / 255,
        "volume": tubes((30, 36, 41)),
        "thin volume": tubes((5, 40, 33)),
    }


def tubes(shape: tuple[int, ...]) -> np.ndarray:
    """A volume with curved bright and dark tubes in smooth noise, values in [0, 1]."""
    generator = np.random.default_rng(0)
    volume = ndimage.gaussian_filter(generator.normal(size=shape), 1.5)
    volume = 0.1 * volume / volume.std()
    z, y, x = np.meshgrid(*[np.arange(size) for size in shape], indexing="ij")
    for sign, phase in ((1, 0.3), (-1, 2.1)):
        distance = (y - shape[1] / 2 - 8 * np.sin(x / 7 + phase)) ** 2 + (z - shape[0] / 2 - 6 * np.cos(x / 9)) ** 2
        volume = volume + sign * np.exp(-distance / 4)
    return (volume - volume.min()) / np.ptp(volume)


def oracle(image: np.ndarray, dark: bool, gamma: float | None = None, sigmas: tuple[float, ...] = SIGMAS) -> np.ndarray:
    """skimage's Frangi filter, made to keep what it documents: 0 where an eigenvalue has the wrong sign.

    It reaches that by a ratio with 1e-10 being large, which it is not where the least eigenvalue is near 0.
    """
    best = np.zeros(image.shape)
    for number, sigma in enumerate(sigmas):
        matrix = hessian_matrix(image, sigma, mode="reflect", use_gaussian_derivatives=True)
        values = hessian_matrix_eigvals(matrix)
        if gamma is None and number == 0:
            gamma = np.sqrt((values**2).sum(0)).max() / 2
        larger = np.take_along_axis(values, np.abs(values).argsort(0), 0)[1:]
        right = ((larger > 0) if dark else (larger < 0)).all(0)
        answer = filters.frangi(image, sigmas=(sigma,), gamma=gamma, black_ridges=dark)
        best = np.maximum(best, np.where(right, answer, 0))
    return best


@functools.cache
def picture_oracle(name: str, dark: bool) -> np.ndarray:
    return oracle(pictures()[name], dark)


def kind_of(measure: str, ridges: str) -> str:
    """The name of a guide that answers to ``ridges``."""
    return measure if ridges == "both" else f"{measure}_{ridges}"


def guide(image: np.ndarray, **options: object) -> np.ndarray:
    found = hessian_guide(torch.from_numpy(image).float()[None, None], **options)
    assert found.shape == (1, 1, *image.shape)
    assert found.dtype == torch.float32
    return found[0, 0].numpy()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to float32 rounding; one pixel in 2,000 may lie on the jump where two eigenvalues change places."""
    apart = np.abs(found - expected) > 2e-4
    assert apart.mean() <= 5e-4, (apart.mean(), np.abs(found - expected).max())
    assert np.abs(found - expected)[~apart].mean() < 1e-5


@pytest.mark.parametrize("name", pictures())
@pytest.mark.parametrize("ridges", ["dark", "bright", "both"])
def test_frangi_is_that_of_scikit_image(name: str, ridges: str) -> None:
    image = pictures()[name]
    expected = {dark: picture_oracle(name, dark) for dark in (True, False)}
    wanted = {"dark": expected[True], "bright": expected[False], "both": np.maximum(*expected.values())}[ridges]
    assert wanted.max() > 0.3
    assert_close(guide(image, kind=kind_of("frangi", ridges)), wanted)


@pytest.mark.parametrize("name", ["odd", "vessels"])
@pytest.mark.parametrize("dark", [True, False])
def test_frangi_needs_no_correction_of_the_oracle_on_pictures(name: str, dark: bool) -> None:
    image = pictures()[name]
    plain = filters.frangi(image, sigmas=SIGMAS, black_ridges=dark)
    assert_close(guide(image, kind="frangi_dark" if dark else "frangi_bright"), plain)


@pytest.mark.parametrize("name", ["odd", "volume"])
@pytest.mark.parametrize("dark", [True, False])
def test_hessian_is_that_of_scikit_image_on_grey_levels(name: str, dark: bool) -> None:
    image = pictures()[name]
    expected = filters.hessian(255 * image, sigmas=SIGMAS, black_ridges=dark)
    expected[expected == 1] = 0  # written by skimage where the measure is 0
    assert_close(guide(image, kind="hessian_dark" if dark else "hessian_bright"), expected)


@pytest.mark.parametrize(("name", "kind", "dark"), [("odd", "frangi_dark", True), ("volume", "frangi_bright", False)])
def test_plain_operations_give_it_too(name: str, kind: str, dark: bool) -> None:
    """As they are written into exported programs: convolutions in place of banded matrices."""
    image = torch.from_numpy(pictures()[name]).float()[None, None]
    assert_close(plain_guide(image, kind)[0, 0].numpy(), picture_oracle(name, dark))
    if image.ndim == 4:
        wide = "hessian:1-2"
        assert guide_reach(wide) == 10
        torch.testing.assert_close(plain_guide(image, wide), hessian_guide(image, kind=wide), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["small", "thin volume"])
def test_options_have_the_meaning_of_scikit_image(name: str) -> None:
    image = pictures()[name]
    options = {"sigmas": (1.0, 2.5), "alpha": 0.8, "beta": 0.3, "gamma": 0.05}
    expected = filters.frangi(image, black_ridges=True, **options)
    assert_close(guide(image, kind="frangi_dark", **options), expected)


def test_a_guides_name_may_carry_its_scales() -> None:
    image = pictures()["odd"]
    expected = filters.frangi(image, sigmas=(1, 2.5), black_ridges=True)
    assert_close(guide(image, kind="frangi_dark:1-2.5"), expected)
    assert np.array_equal(guide(image, kind="hessian:0.5-1-1.5"), guide(image, kind="hessian"))


@pytest.mark.parametrize("measure", ["frangi", "hessian"])
def test_both_polarities_are_the_larger_of_the_two(measure: str) -> None:
    image = pictures()["small"]
    both, dark, bright = (guide(image, kind=kind_of(measure, ridges)) for ridges in ("both", "dark", "bright"))
    assert np.allclose(both, np.maximum(dark, bright), atol=1e-6)
    assert (dark > 0).any()
    assert (bright > 0).any()


def test_frangi_on_a_real_volume(shared_data: Path) -> None:
    import nibabel

    files = sorted((shared_data / "Task04_Hippocampus" / "imagesTr").glob("*.nii*"))
    image = np.asarray(nibabel.load(files[0]).dataobj, dtype=np.float64)
    image = (image - image.min()) / np.ptp(image)
    assert_close(guide(image), np.maximum(oracle(image, True), oracle(image, False)))


def test_gamma_is_the_images_own() -> None:
    image = pictures()["odd"]
    batch = torch.from_numpy(np.stack([image, 0.1 * image + 0.3, image[::-1]])).float()[:, None]
    together = hessian_guide(batch)
    for row in range(3):
        assert torch.allclose(together[row], hessian_guide(batch[row : row + 1])[0], atol=1e-6)
    # Frangi measures an image against itself; the fixed gamma of the other kind does not.
    assert torch.allclose(together[1], together[0], atol=2e-3)
    fixed = hessian_guide(batch, kind="hessian")
    assert float(fixed[1].mean()) < 0.2 * float(fixed[0].mean())


def test_straight_ridges_answer_to_their_own_polarity_only() -> None:
    """A straight line has an eigenvalue that is exactly 0."""
    for shape in ((21, 21), (15, 21, 13)):
        image = np.zeros(shape)
        image[(slice(None),) * (len(shape) - 2) + (slice(None), shape[-1] // 2)] = 1
        if len(shape) == 3:
            image[: shape[0] // 2] = 0
            image[shape[0] // 2 + 1 :] = 0
        middle = tuple(size // 2 for size in shape)
        bright, dark, both = (guide(image, kind=kind_of("frangi", ridges)) for ridges in ("bright", "dark", "both"))
        assert bright[middle] > 0.8
        assert dark[middle] == 0
        assert np.allclose(both, np.maximum(bright, dark), atol=1e-6)
        assert np.allclose(guide(1 - image, kind="frangi_dark"), bright, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 33), (1, 1), (1, 50), (12, 9, 15), (1, 1, 1), (7, 1, 9)])
@pytest.mark.parametrize("kind", ["frangi", "hessian"])
def test_constant_images_give_zeros_even_with_rounding_noise(shape: tuple[int, ...], kind: str) -> None:
    x = torch.full((2, 1, *shape), 0.7)
    assert (hessian_guide(x, kind=kind) == 0).all()
    x[1] += 6e-8 * torch.randint(-1, 2, x[1].shape, generator=torch.Generator().manual_seed(0))
    found = hessian_guide(x, kind=kind)
    assert found.isfinite().all()
    assert float(found.max()) < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (1, 1, 30), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("ridges", ["dark", "bright", "both"])
def test_thin_images_give_numbers_between_0_and_1(shape: tuple[int, ...], ridges: str) -> None:
    found = hessian_guide(
        torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)), kind=kind_of("frangi", ridges)
    )
    assert found.isfinite().all()
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


def test_colour_is_taken_as_luminance() -> None:
    image = data.astronaut()[100:160, 150:210] / 255
    x = torch.from_numpy(image).float().permute(2, 0, 1)[None]
    assert np.allclose(luminance(x)[0].numpy(), rgb2gray(image), atol=1e-6)
    assert torch.equal(hessian_guide(x), hessian_guide(luminance(x)[:, None]))
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(luminance(grey), grey[:, 0])
    assert torch.allclose(luminance(grey.expand(2, 3, 8, 8)), grey[:, 0])
    assert torch.allclose(luminance(torch.cat([grey, grey + 1], 1)), grey[:, 0] + 0.5)


def test_none_is_zeros_and_the_input_is_left_alone() -> None:
    x = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    found = hessian_guide(x, kind="none")
    assert found.shape == (2, 1, 10, 12)
    assert (found == 0).all()
    hessian_guide(x[:, :1])
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(64, 50), (16, 18, 20)])
def test_float32_under_autocast_and_no_gradient(shape: tuple[int, ...]) -> None:
    x = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = hessian_guide(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hessian_guide(x)
    assert not found.requires_grad
    assert torch.equal(found, expected)
    half = x.detach().to(torch.float16)
    assert torch.equal(hessian_guide(half), hessian_guide(half.float()))


def test_wrong_options_are_refused() -> None:
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(InputError, match="Did you mean frangi"):
        hessian_guide(x, kind="frangy")
    with pytest.raises(InputError, match="Did you mean frangi_dark"):
        hessian_guide(x, kind="frangi_drak")
    for name in ("frangi:", "frangi:1-x", "frangi:0", "frangi:-1", "none:1", "frangi:nan"):
        with pytest.raises(InputError, match=r"frangi_dark:1-2-3"):
            hessian_guide(x, kind=name)
    for options in ({"sigmas": ()}, {"sigmas": (0.0,)}, {"beta": 0.0}, {"gamma": -1.0}):
        with pytest.raises(InputError, match="positive"):
            hessian_guide(x, **options)
