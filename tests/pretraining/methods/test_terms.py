"""The objective's terms against NumPy and SciPy, on full complex planes where the code uses half ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from frepa.corruption.spectrum import high_pass
from frepa.pretraining.methods import terms

SHAPES = [(8, 8), (7, 9), (6, 5), (1, 9), (8, 1), (1, 1), (4, 6, 5), (5, 1, 4)]


def _residual(
    shape: tuple[int, ...], channels: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.randn(3, channels, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _radius(shape: tuple[int, ...]) -> np.ndarray:
    """Distance from the zero frequency in bins, full plane, zero frequency first."""
    axes = np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in shape], indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes))


def _gradient(term, *inputs: torch.Tensor) -> torch.Tensor:
    first = inputs[0].clone().requires_grad_()
    term(first, *inputs[1:]).backward()
    return first.grad


# ---- RMSE, Eq. 7


@pytest.mark.parametrize("shape", SHAPES)
def test_rmse_is_the_mean_over_images_of_each_images_own_root(shape):
    r = _residual(shape)
    expected = np.mean([np.sqrt(np.mean(image**2)) for image in r.numpy()])
    assert terms.rmse(r).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_rmse_counts_masked_pixels_only_and_all_of_them_where_the_mask_is_empty(dtype):
    r = _residual((6, 5))
    mask = torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(1)) < 0.4
    mask[1] = False
    chosen = [image[:, m[0]] if m.any() else image for image, m in zip(r.numpy(), mask.numpy())]
    expected = np.mean([np.sqrt(np.mean(values**2)) for values in chosen])
    assert terms.rmse(r, mask.to(dtype)).item() == pytest.approx(expected, rel=1e-6)


def test_rmse_of_a_masked_image_has_no_gradient_outside_its_mask():
    mask = torch.zeros(3, 1, 6, 5)
    mask[..., :2] = 1
    gradient = _gradient(terms.rmse, _residual((6, 5)), mask)
    assert (gradient[..., :2] != 0).all()
    assert (gradient[..., 2:] == 0).all()


def test_rmse_of_a_perfect_image_has_zero_gradient_and_leaves_the_others_alone():
    r = _residual((4, 4))
    r[1] = 0
    gradient = _gradient(terms.rmse, r)
    assert torch.isfinite(gradient).all()
    assert (gradient[1] == 0).all()
    norms = gradient.flatten(1).norm(dim=1)  # d sqrt(mean r^2) has norm 1/sqrt(N), here shared by three images
    assert norms[[0, 2]].tolist() == pytest.approx([1 / (3 * math.sqrt(32))] * 2, rel=1e-5)


# ---- Gradient, Eq. 8


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_l1_is_the_sum_over_axes_of_the_mean_absolute_difference(shape):
    r = _residual(shape)
    expected = sum(np.abs(np.diff(r.numpy(), axis=axis + 2)).mean() for axis, n in enumerate(shape) if n > 1)
    assert terms.gradient_l1(r).item() == pytest.approx(expected, rel=1e-6)


def test_gradient_l1_of_a_ramp_is_the_sum_of_its_slopes():
    depth, rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), torch.arange(5.0), indexing="ij")
    ramp = (0.5 * depth - 2 * rows + 3 * columns).expand(2, 1, 3, 4, 5)
    assert terms.gradient_l1(ramp).item() == pytest.approx(5.5)


# ---- HFL, Eq. 9


def _hfl_oracle(r: np.ndarray, cutoffs=terms.HFL_CUTOFFS) -> float:
    shape, axes = r.shape[2:], tuple(range(2, r.ndim))
    total = 0.0
    for cutoff in cutoffs:
        transfer = 1 - np.exp(-(_radius(shape) ** 2) / (cutoff * min(shape)) ** 2)
        total += np.abs(np.fft.ifftn(transfer * np.fft.fftn(r, axes=axes), axes=axes).real).mean()
    return total / len(cutoffs)


@pytest.mark.parametrize("shape", SHAPES)
def test_hfl_equals_the_full_complex_plane(shape):
    r = _residual(shape, dtype=torch.float64)
    assert terms.hfl(r).item() == pytest.approx(_hfl_oracle(r.numpy()), rel=1e-5, abs=1e-7)
    assert terms.hfl(r.float()).item() == pytest.approx(_hfl_oracle(r.numpy()), rel=1e-5, abs=1e-6)


def test_hfl_takes_its_own_cutoffs():
    r = _residual((9, 8), dtype=torch.float64)
    assert terms.hfl(r, (0.25, 0.7)).item() == pytest.approx(_hfl_oracle(r.numpy(), (0.25, 0.7)), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_hfl_has_the_gradient_of_plain_autograd(shape):
    def plain(r: torch.Tensor) -> torch.Tensor:
        axes = tuple(range(2, r.ndim))
        spectrum = torch.fft.rfftn(r, dim=axes)
        filters = [high_pass(shape, cutoff).to(r.dtype) for cutoff in terms.HFL_CUTOFFS]
        return sum(torch.fft.irfftn(spectrum * h, s=shape, dim=axes).abs().mean() for h in filters) / len(filters)

    r = _residual(shape, dtype=torch.float64)
    if r[0, 0].numel() > 1:  # a single pixel has no detail: sign(0) is noise in both
        torch.testing.assert_close(_gradient(terms.hfl, r), _gradient(plain, r), rtol=1e-9, atol=1e-12)


def test_hfl_ignores_brightness():
    """The zero frequency is removed, so a constant error costs nothing and the gradient cannot change the mean."""
    assert terms.hfl(torch.full((2, 1, 16, 12), 0.7)).item() == pytest.approx(0, abs=1e-6)
    gradient = _gradient(terms.hfl, _residual((16, 12)))
    assert gradient.sum((2, 3)).abs().max() < 1e-6
    assert gradient.abs().max() > 1e-5


def test_hfl_gradient_scales_with_what_follows():
    r = _residual((6, 6))
    torch.testing.assert_close(_gradient(lambda x: 3 * terms.hfl(x), r), 3 * _gradient(terms.hfl, r))


def test_hfl_needs_no_gradient_to_be_evaluated():
    r = _residual((6, 6))
    with torch.no_grad():
        value = terms.hfl(r)
    assert value.item() == pytest.approx(_hfl_oracle(r.numpy()), rel=1e-5)
    assert not value.requires_grad


# ---- Consistency, Eq. 10


@pytest.mark.parametrize("shape", [(4, 4), (1, 1), (3, 1, 2)])
def test_consistency_is_the_jensen_shannon_divergence_of_each_position(shape):
    a, b = 2 * _residual(shape, channels=6), 2 * _residual(shape, channels=6, seed=1)
    p, q = (torch.softmax(x.double(), 1).movedim(1, -1).reshape(-1, 6).numpy() for x in (a, b))
    expected = np.mean([jensenshannon(one, other) ** 2 for one, other in zip(p, q)])
    assert terms.consistency(a, b).item() == pytest.approx(expected, rel=1e-5)
    assert terms.consistency(b, a).item() == pytest.approx(expected, rel=1e-5)


def test_consistency_runs_from_zero_to_ln_2():
    a = _residual((4, 4), channels=300)
    assert 0 <= terms.consistency(a, a.clone()).item() < 1e-6
    assert 0 <= terms.consistency(a, a + 5).item() < 1e-6  # softmax forgets a constant
    peak, other = torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)
    peak[:, 0], other[:, 1] = 1e4, 1e4
    assert terms.consistency(peak, other).item() == pytest.approx(math.log(2), rel=1e-6)
    assert terms.consistency(peak, other) <= torch.tensor(math.log(2))  # ln 2 as float32 holds it
    assert torch.isfinite(_gradient(terms.consistency, peak, other)).all()


@pytest.mark.parametrize("shape", [(4, 4), (1, 1), (3, 1, 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("standardise", [False, True])
def test_every_reading_of_the_consistency_against_scipy(shape, reduction, temperature, standardise):
    a, b = 2 * _residual(shape, channels=6) + 3, 2 * _residual(shape, channels=6, seed=1) + 3
    both = np.stack([a.double().numpy(), b.double().numpy()])
    if standardise:
        axes = (0, 1, *range(3, both.ndim))
        both = (both - both.mean(axes, keepdims=True)) / both.std(axes, keepdims=True)
    p, q = softmax(both / temperature, axis=2).swapaxes(2, -1).reshape(2, -1, 6)
    each = [jensenshannon(one, other) ** 2 for one, other in zip(p, q)]
    expected = np.mean(each) if reduction == "mean" else np.sum(each) / len(a)
    found = terms.consistency(a, b, reduction=reduction, temperature=temperature, standardise=standardise)
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("options", [{"reduction": "sum"}, {"temperature": 0.3}, {"standardise": True}])
def test_every_reading_of_the_consistency_has_the_right_gradient(options):
    a, b = (_residual((2, 3), channels=4, seed=seed, dtype=torch.float64).requires_grad_() for seed in (5, 6))
    assert torch.autograd.gradcheck(lambda x, y: terms.consistency(x, y, **options), (a, b))


def test_standardised_embeddings_cannot_agree_by_becoming_small():
    a, b = _residual((4, 4), channels=6), _residual((4, 4), channels=6, seed=1)
    small = terms.consistency(0.01 * a + 2, 0.01 * b + 2)
    assert small < 1e-3 * terms.consistency(a, b)
    full = terms.consistency(a, b, standardise=True)
    assert terms.consistency(0.01 * a + 2, 0.01 * b + 2, standardise=True).item() == pytest.approx(
        full.item(), rel=1e-3
    )


def test_a_channel_without_variance_is_left_out_of_standardised_embeddings():
    a, b = _residual((4, 4), channels=3), _residual((4, 4), channels=3, seed=1)
    a[:, 1] = b[:, 1] = 0.7
    first, second = terms.standardised(a, b)
    assert (first[:, 1] == 0).all()
    assert (second[:, 1] == 0).all()
    gradient = _gradient(lambda x, y: terms.consistency(x, y, standardise=True), a, b)
    assert torch.isfinite(gradient).all()


# ---- Focal frequency loss


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5])
def test_focal_frequency_equals_the_full_complex_plane(shape, alpha):
    r = _residual(shape, dtype=torch.float64)
    r[1] = 0  # an image without error: its weights are 0 / 0 before they are defined as 0
    axes = tuple(range(2, r.ndim))

    def oracle(x: torch.Tensor) -> torch.Tensor:
        distance = torch.fft.fftn(x, dim=axes, norm="ortho").abs()
        weight = distance.detach() ** alpha
        largest = weight.amax(axes, keepdim=True)
        return (torch.where(largest > 0, weight / largest, 0) * distance**2).mean()

    assert terms.focal_frequency_loss(r, alpha).item() == pytest.approx(oracle(r).item(), rel=1e-9)
    clear = r[[0, 2]]
    torch.testing.assert_close(
        _gradient(terms.focal_frequency_loss, clear, alpha), _gradient(oracle, clear), rtol=1e-7, atol=1e-10
    )
    assert torch.isfinite(_gradient(terms.focal_frequency_loss, r, alpha)).all()


# ---- All of them


@pytest.mark.parametrize("shape", [(4, 5), (5, 4), (1, 4), (3, 2, 3)])
def test_every_gradient_is_right_by_finite_differences(shape):
    r = _residual(shape, seed=5, dtype=torch.float64)[:2].requires_grad_()
    mask = (torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(2)) < 0.6).double()
    other = _residual(shape, seed=6, dtype=torch.float64)[:2].requires_grad_()
    check = torch.autograd.gradcheck
    assert check(terms.rmse, (r,))
    assert check(lambda x: terms.rmse(x, mask), (r,))
    assert check(terms.gradient_l1, (r,))
    assert check(terms.hfl, (r,))
    assert check(terms.consistency, (r, other))
    # alpha 0 is the plain squared distance: the weight, held constant, does not vary with the input.
    assert check(lambda x: terms.focal_frequency_loss(x, 0.0), (r,))


RESIDUAL_TERMS = [terms.rmse, terms.gradient_l1, terms.hfl, terms.focal_frequency_loss]


@pytest.mark.parametrize("term", RESIDUAL_TERMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(term, dtype):
    r = _residual((16, 15)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(r)
        gradient = _gradient(term, r)
    assert value.dtype == torch.float32
    assert value.item() == term(r.float()).item()
    torch.testing.assert_close(gradient.float(), _gradient(term, r.float()), rtol=1e-2, atol=1e-4)


def test_consistency_of_half_precision_embeddings_is_computed_in_float32():
    a, b = _residual((4, 4)).bfloat16(), _residual((4, 4), seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = terms.consistency(a, b)
    assert value.dtype == torch.float32
    assert value.item() == terms.consistency(a.float(), b.float()).item()


@pytest.mark.parametrize("term", RESIDUAL_TERMS)
@pytest.mark.parametrize("shape", [(8, 8), (1, 7), (1, 1), (4, 4, 4)])
def test_a_perfect_reconstruction_costs_nothing_and_has_a_finite_gradient(term, shape):
    zero = torch.zeros(2, 1, *shape)
    assert term(zero).item() == 0
    gradient = _gradient(term, zero)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("term", RESIDUAL_TERMS)
def test_terms_are_invariant_to_the_order_of_images_and_pool_them_as_a_mean(term):
    r = _residual((9, 8))
    each = torch.stack([term(image[None]) for image in r]).mean()
    assert term(r).item() == pytest.approx(each.item(), rel=1e-5)


@pytest.mark.parametrize("term", RESIDUAL_TERMS)
def test_non_contiguous_residuals_are_taken(term):
    r = _residual((8, 6))
    turned = r.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(term(turned), term(r))
    torch.testing.assert_close(_gradient(term, turned), _gradient(term, r))
