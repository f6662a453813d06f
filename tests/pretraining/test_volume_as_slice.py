"""A volume that is constant along one axis behaves as its slice, wherever theory says so.

Its transform lives on the plane of zero frequency along that axis, where distances are those of the slice; filters have
the slice's cut-off as long as the axis is not the shortest one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from frepa.corruption.frequency import frequency_corrupt
from frepa.corruption.hessian import eigenvalues, hessian
from frepa.corruption.histogram import histogram_mask
from frepa.corruption.spectrum import apply_transfer, high_pass, low_pass, to_spectrum
from frepa.draws import Draws, sample_keys
from frepa.pretraining.methods import terms
from frepa.pretraining.methods.augment import map_intensity
from frepa.report.figures import log_spectrum

PLANE, DEPTH = (20, 17), 24
AXES = [2, 3, 4]


def _plane(seed: int = 0) -> Tensor:
    return torch.rand(3, 2, *PLANE, generator=torch.Generator().manual_seed(seed))


def _along(plane: Tensor, axis: int) -> Tensor:
    """The volume that is ``plane`` at every place along ``axis``."""
    return plane.unsqueeze(axis).repeat_interleave(DEPTH, axis)


@pytest.mark.parametrize("axis", AXES)
def test_its_spectrum_lives_on_the_zero_plane(axis: int) -> None:
    plane = _plane()
    spectrum = np.fft.fftn(_along(plane, axis).double().numpy(), axes=(2, 3, 4))
    zero = np.take(spectrum, 0, axis=axis)
    assert np.allclose(zero, DEPTH * np.fft.fftn(plane.double().numpy(), axes=(2, 3)))
    assert np.abs(np.delete(spectrum, 0, axis=axis)).max() < 1e-9 * np.abs(spectrum).max()
    # Ours is the half of it
    half = spectrum[..., : PLANE[1] // 2 + 1] if axis != 4 else spectrum[..., : DEPTH // 2 + 1]
    scale = np.abs(to_spectrum(_along(plane, axis)).numpy()).max() / np.abs(half).max()
    assert np.allclose(to_spectrum(_along(plane, axis)).numpy(), scale * half, atol=1e-5 * scale * np.abs(half).max())
    # and the picture's middle slice across the axis shows the slice's spectrum
    shown = np.expm1(np.take(log_spectrum(_along(plane, axis)[0, 0].numpy()), DEPTH // 2, axis=axis - 2))
    assert np.allclose(shown, DEPTH * np.expm1(log_spectrum(plane[0, 0].numpy())), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", AXES)
def test_filters_have_the_slices_cutoffs(axis: int) -> None:
    plane, volume = _plane(), _along(_plane(), axis)
    for make in (low_pass, high_pass):
        flat = apply_transfer(plane, make(PLANE, 0.3))
        deep = apply_transfer(volume, make(tuple(volume.shape[2:]), 0.3))
        assert torch.allclose(deep, _along(flat, axis), atol=1e-5)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("term", [terms.rmse, terms.gradient_l1, terms.hfl, terms.focal_frequency_loss])
def test_terms_of_the_objective_are_the_slices(term, axis: int) -> None:
    residual = _plane() - 0.5
    flat, deep = residual.clone().requires_grad_(), _along(residual, axis).requires_grad_()
    of_slice, of_volume = term(flat), term(deep)
    assert of_volume.item() == pytest.approx(of_slice.item(), rel=1e-5)
    of_slice.backward()
    of_volume.backward()
    # Moving all places along the axis together is moving the slice
    assert torch.allclose(deep.grad.sum(axis), flat.grad, atol=1e-5 * float(flat.grad.abs().max()))


@pytest.mark.parametrize("axis", AXES)
def test_rmse_under_a_mask_is_the_slices(axis: int) -> None:
    residual, mask = _plane() - 0.5, _plane(1)[:, :1] > 0.6
    assert terms.rmse(_along(residual, axis), _along(mask, axis)).item() == pytest.approx(
        terms.rmse(residual, mask).item(), rel=1e-6
    )


def test_consistency_is_the_slices() -> None:
    a, b = _plane(), _plane(1)
    assert terms.consistency(_along(a, 2), _along(b, 2)).item() == pytest.approx(
        terms.consistency(a, b).item(), rel=1e-5
    )


@pytest.mark.parametrize("axis", AXES)
def test_masked_frequencies_leave_it_constant_along_the_axis(axis: int) -> None:
    """Tiles can only take from a zero plane, never add to the others; the noise may."""
    volume, draws = _along(_plane(), axis), Draws(sample_keys(0, range(3), 0))
    masked = frequency_corrupt(volume, draws, patch=4, low_noise=False)
    assert float((masked - volume).abs().max()) > 0.05
    assert float(masked.std(dim=axis).max()) < 1e-5
    assert float(frequency_corrupt(volume, draws, patch=4).std(dim=axis).max()) > 1e-3


@pytest.mark.parametrize("axis", AXES)
def test_a_permuted_patch_has_the_histogram_of_the_slices_patch(axis: int) -> None:
    plane, draws = _plane(), Draws(sample_keys(0, range(3), 0))
    out, mask = histogram_mask(_along(plane, axis), draws, patch=8, mask_ratio=1.0, noise="permute")
    assert mask.all()
    out, compared = out.movedim(axis, 2), 0
    for row in range(3):
        for d in range(0, DEPTH, 8):
            for h in range(0, PLANE[0], 8):
                for w in range(0, PLANE[1], 8):
                    patch = out[row, 0, d : d + 8, h : h + 8, w : w + 8]
                    own = plane[row, 0, h : h + 8, w : w + 8]
                    assert torch.equal(patch.flatten().sort().values, own.repeat(8, 1, 1).flatten().sort().values)
                    compared += 1
    assert compared == 3 * 3 * 3 * 3


@pytest.mark.parametrize("axis", AXES)
def test_its_curvatures_are_the_slices_and_none_along_the_axis(axis: int) -> None:
    plane = _plane()[:, 0]
    flat = torch.stack(eigenvalues(hessian(plane, 1.5)))
    deep = torch.stack(eigenvalues(hessian(_along(plane, axis - 1), 1.5)))
    expected = torch.cat([flat, torch.zeros_like(flat[:1])]).sort(dim=0).values
    found = deep.sort(dim=0).values
    assert torch.allclose(found, expected.unsqueeze(axis).expand_as(found), atol=1e-5)


def test_a_histogram_shift_is_the_slices() -> None:
    points = np.sort(np.random.default_rng(0).random((3, 6)), axis=1)
    points[:, 0], points[:, -1] = 0, 1
    plane = _plane()
    assert torch.allclose(map_intensity(_along(plane, 2), points), _along(map_intensity(plane, points), 2), atol=1e-6)
