"""Half-spectrum filters against plain complex transforms of the full plane in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frepa.corruption import spectrum

SHAPES = [(16, 16), (15, 9), (8, 21), (1, 12), (12, 1), (1, 1), (8, 8, 8), (5, 7, 9), (6, 1, 10), (4, 9, 1)]


def full_distance(shape: tuple[int, ...]) -> np.ndarray:
    """Distance from the zero-frequency bin on the full plane, in transform order."""
    axes = [np.fft.fftfreq(size) * size for size in shape]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_is_the_kept_half_of_the_plane(shape: tuple[int, ...]) -> None:
    distance = spectrum.frequency_distance(shape)
    assert tuple(distance.shape) == spectrum.half_shape(shape)
    assert np.allclose(distance.numpy(), full_distance(shape)[..., : shape[-1] // 2 + 1], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_filters_against_the_complex_plane(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    image = generator.random((2, 3, *shape))
    axes = tuple(range(2, image.ndim))
    square = full_distance(shape) ** 2

    def response(cutoff: float) -> np.ndarray:
        return np.exp(-square / (cutoff * min(shape)) ** 2)

    for transfer, oracle in (
        (spectrum.low_pass(shape, 0.2), response(0.2)),
        (spectrum.high_pass(shape, 0.3), 1 - response(0.3)),
    ):
        expected = np.fft.ifftn(np.fft.fftn(image, axes=axes) * oracle, axes=axes)
        assert np.abs(expected.imag).max() < 1e-12
        found = spectrum.apply_transfer(torch.from_numpy(image).float(), transfer)
        assert found.shape == image.shape
        assert np.allclose(found.numpy(), expected.real, atol=2e-6)


def test_what_one_filter_keeps_the_other_removes() -> None:
    shape = (24, 18)
    total = spectrum.low_pass(shape, 0.3) + spectrum.high_pass(shape, 0.3)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


def test_high_pass_removes_a_constant_exactly_and_keeps_digits_near_zero_frequency() -> None:
    assert float(spectrum.high_pass((512, 512), 0.5)[0, 0]) == 0
    # 1 - exp(-e) keeps no digit of a small e in float32 when it is taken literally.
    exact = -np.expm1(-1.0 / (0.5 * 512) ** 2)
    assert np.isclose(float(spectrum.high_pass((512, 512), 0.5)[0, 1]), exact, rtol=1e-6)


def test_volume_constant_along_an_axis_is_filtered_as_its_slice() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.rand(2, 1, 20, 17, generator=generator)
    sliced = spectrum.apply_transfer(plane, spectrum.high_pass((20, 17), 0.2))
    for axis, shape in ((2, (23, 20, 17)), (3, (20, 23, 17)), (4, (20, 17, 23))):
        volume = plane.unsqueeze(axis).expand(2, 1, *shape)
        filtered = spectrum.apply_transfer(volume, spectrum.high_pass(shape, 0.2))
        assert torch.allclose(filtered, sliced.unsqueeze(axis).expand_as(filtered), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_float32_whatever_the_input_and_under_autocast(dtype: torch.dtype) -> None:
    x = torch.rand(1, 1, 12, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    transfer = spectrum.low_pass((12, 10), 0.3)
    expected = spectrum.apply_transfer(x.float(), transfer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = spectrum.apply_transfer(x, transfer)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_gradient_is_that_of_the_linear_filter() -> None:
    x = torch.rand(1, 2, 9, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.rand(1, 2, 9, 8, generator=torch.Generator().manual_seed(1))
    transfer = spectrum.high_pass((9, 8), 0.25)
    (spectrum.apply_transfer(x, transfer) * weight).sum().backward()
    # A symmetric real transfer function is a self-adjoint filter.
    assert torch.allclose(x.grad, spectrum.apply_transfer(weight, transfer), atol=1e-6)


def test_factors_made_in_inference_mode_still_enter_a_backward_pass() -> None:
    shape = (11, 13)  # of no other test: the factors must be made here
    with torch.inference_mode():
        spectrum.high_pass(shape, 0.11)
    x = torch.rand(1, 1, *shape).requires_grad_()
    spectrum.apply_transfer(x, spectrum.high_pass(shape, 0.11)).square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) > 0
