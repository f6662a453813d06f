"""Histogram-equalized masking: which patches, and that their histogram is kept."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from frepa.corruption.histogram import from_patches, histogram_mask, patch_moments, to_patches
from frepa.draws import Draws, sample_keys
from frepa.errors import InputError

CASES = [((64, 96), 16), ((45, 37), 8), ((20, 33, 18), 8), ((1, 50), 32), ((16, 16, 16), 16), ((1, 1), 1)]


def images(shape: tuple[int, ...], batch: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, channels, *shape, generator=torch.Generator().manual_seed(0))


def draws(batch: int, seed: int = 0) -> Draws:
    return Draws(sample_keys(seed, range(batch), 0))


def patches(shape: tuple[int, ...], patch: int) -> list[tuple[slice, ...]]:
    """Every patch as slices, tiled from the origin, partial at the far edges."""
    return list(itertools.product(*[[slice(i, min(i + patch, n)) for i in range(0, n, patch)] for n in shape]))


@pytest.mark.parametrize(("shape", "patch"), CASES)
@pytest.mark.parametrize("noise", ["gaussian", "permute", "zero"])
def test_whole_patches_are_masked_and_the_rest_is_untouched(shape: tuple[int, ...], patch: int, noise: str) -> None:
    x = images(shape)
    before = x.clone()
    y, mask = histogram_mask(x, draws(2), patch=patch, mask_ratio=0.5, noise=noise)
    assert torch.equal(x, before)
    assert mask.dtype == torch.bool
    assert mask.shape == (2, 1, *shape)
    assert y.dtype == torch.float32
    for where in patches(shape, patch):
        assert (mask[(..., *where)].flatten(1).float().mean(1) % 1 == 0).all()
    kept = ~mask.expand_as(x)
    assert torch.equal(y[kept], x[kept])
    if noise == "zero":
        assert (y[~kept] == 0).all()


@pytest.mark.parametrize(("shape", "patch"), CASES)
def test_permuting_keeps_each_patch_exactly_and_its_channels_together(shape: tuple[int, ...], patch: int) -> None:
    x = images(shape)
    y, mask = histogram_mask(x, draws(2), patch=patch, mask_ratio=1.0, noise="permute")
    assert mask.all()
    for where in patches(shape, patch):
        before, after = x[(..., *where)].flatten(2), y[(..., *where)].flatten(2)
        for row in range(2):
            # Sorting whole pixels (all their channels) gives the same list: nothing but their order has changed.
            assert sorted(map(tuple, before[row].T.tolist())) == sorted(map(tuple, after[row].T.tolist()))
        if before.shape[2] > 20:
            assert not torch.equal(before, after)
            assert not torch.equal(before[0].argsort(1), before[1].argsort(1))


@pytest.mark.parametrize(("shape", "patch"), [((64, 64), 32), ((50, 41), 32), ((20, 33, 18), 16)])
def test_gaussian_noise_has_the_mean_and_variance_of_the_patch(shape: tuple[int, ...], patch: int) -> None:
    count = 200
    ramp = torch.linspace(0.2, 0.8, math.prod(shape)).view(1, 1, *shape)
    x = torch.cat([ramp, 0.3 * images(shape, 1, 1)], 1).expand(count, 2, *shape)
    y, _ = histogram_mask(x, draws(count), patch=patch, mask_ratio=1.0)
    for where in patches(shape, patch):
        true, found = x[(0, slice(None), *where)].flatten(1), y[(..., *where)].flatten(2)
        pixels = true.shape[1]
        variance = true.var(1, correction=0)
        assert torch.allclose(
            found.mean((0, 2)), true.mean(1), atol=5 * float((variance.max() / pixels / count).sqrt())
        )
        spread = (found - true.mean(1)[:, None]).square().mean((0, 2))
        assert torch.allclose(spread, variance, rtol=6 * math.sqrt(2 / pixels / count))
    # Channels get noise of their own.
    centred = (y - x.mean()).flatten(2)
    assert (
        float(torch.corrcoef(torch.stack([(centred - centred.mean(0))[:, c].flatten() for c in (0, 1)]))[0, 1]) < 0.02
    )


def test_noise_is_gaussian() -> None:
    x = torch.cat([torch.zeros(1, 1, 64, 32), torch.ones(1, 1, 64, 32)], 3).roll(16, 3)
    y, _ = histogram_mask(x, draws(1), patch=64, mask_ratio=1.0)
    z = (y - y.mean()) / y.std()
    assert abs(float((z**3).mean())) < 0.2
    assert abs(float((z**4).mean()) - 3) < 0.4  # the two-valued image itself has 1


@pytest.mark.parametrize(("shape", "patch"), CASES)
def test_moments_of_partial_patches_count_real_pixels_only(shape: tuple[int, ...], patch: int) -> None:
    x = images(shape)
    mean, deviation = patch_moments(x, patch)
    for place, where in enumerate(patches(shape, patch)):
        part = x[(..., *where)].flatten(2)
        assert torch.allclose(mean.flatten(2)[..., place], part.mean(2), atol=1e-6)
        assert torch.allclose(deviation.flatten(2)[..., place], part.std(2, correction=0), atol=1e-6)


def test_constant_image_stays_constant() -> None:
    x = torch.full((1, 1, 70, 70), 0.37)
    y, _ = histogram_mask(x, draws(1), mask_ratio=1.0)
    assert torch.allclose(y, x, atol=1e-6)


def test_share_of_masked_patches() -> None:
    x = torch.zeros(2000, 1, 6, 5)
    _, mask = histogram_mask(x, draws(2000), patch=1, mask_ratio=0.7, noise="zero")
    counts = mask.flatten(1).float().sum(1)
    assert float(mask.float().mean()) == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / 60000))
    assert float(counts.var()) == pytest.approx(30 * 0.21, rel=0.2)  # binomial: patches are independent
    per_place = mask.float().mean(0).flatten()
    assert float((per_place - 0.7).abs().max()) < 5 * math.sqrt(0.21 / 2000)
    _, mask = histogram_mask(x, draws(2000), patch=1, mask_ratio=0.7, exact=True, noise="zero")
    assert (mask.flatten(1).sum(1) == 21).all()
    assert float((mask.float().mean(0) - 0.7).abs().max()) < 5 * math.sqrt(0.21 / 2000)


def test_default_patch_is_the_papers_at_the_papers_size() -> None:
    for shape, patch in (((512, 512), 32), ((128, 128, 128), 16)):
        _, mask = histogram_mask(images(shape, 1, 1), draws(1), mask_ratio=0.5, exact=True)
        assert int(mask.sum()) == math.prod(shape) // 2
        tile = mask[0, 0][tuple(slice(0, patch) for _ in shape)]
        assert len(tile.unique()) == 1
        edges = (mask[0, 0].float().diff(dim=-1) != 0).nonzero()[:, -1] + 1
        assert math.gcd(*edges.tolist()) == patch


def test_ratios_0_and_1() -> None:
    x = images((20, 20))
    for exact in (False, True):
        y, mask = histogram_mask(x, draws(2), patch=8, mask_ratio=0.0, exact=exact)
        assert torch.equal(x, y)
        assert not mask.any()
        assert histogram_mask(x, draws(2), patch=8, mask_ratio=1.0, exact=exact)[1].all()


@pytest.mark.parametrize("noise", ["gaussian", "permute"])
def test_rows_do_not_depend_on_the_batch(noise: str) -> None:
    x, keys = images((40, 30), 4), sample_keys(3, range(4), 1)
    whole, mask = histogram_mask(x, Draws(keys), patch=16, noise=noise)
    alone, own = histogram_mask(x[2:3], Draws(keys[2:3]), patch=16, noise=noise)
    assert torch.equal(whole[2:3], alone)
    assert torch.equal(mask[2:3], own)


def test_half_precision_input_under_autocast_gives_float32() -> None:
    x = images((30, 22)).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = histogram_mask(x, draws(2), patch=8)
    assert found.dtype == torch.float32
    assert torch.equal(found, histogram_mask(x.float(), draws(2), patch=8)[0])


@pytest.mark.parametrize(("shape", "patch"), CASES)
def test_patches_and_back(shape: tuple[int, ...], patch: int) -> None:
    x = images(shape)
    assert torch.equal(from_patches(to_patches(x, patch), shape, patch), x)


def test_wrong_options_are_refused() -> None:
    x = images((8, 8))
    with pytest.raises(InputError, match="Did you mean gaussian"):
        histogram_mask(x, draws(2), noise="gausian")
    with pytest.raises(InputError, match="between 0 and 1"):
        histogram_mask(x, draws(2), mask_ratio=70)
    with pytest.raises(InputError, match="patch=0"):
        histogram_mask(x, draws(2), patch=0)


def field_of_view(shape: tuple[int, ...], batch: int) -> torch.Tensor:
    """A disc (a ball) that reaches into some patches and leaves others out: bool ``(B, 1, *shape)``."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in shape], indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    return torch.stack([radius < 0.9 - 0.2 * row for row in range(batch)])[:, None]


@pytest.mark.parametrize(("shape", "patch"), [((64, 60), 8), ((24, 20, 22), 6)])
@pytest.mark.parametrize("noise", ["gaussian", "permute", "zero"])
def test_masks_stay_inside_the_field_of_view(shape: tuple[int, ...], patch: int, noise: str) -> None:
    fov = field_of_view(shape, 2)
    x = images(shape) * fov  # black outside, as in a photograph of the retina
    for exact in (False, True):
        y, mask = histogram_mask(x, draws(2), patch=patch, mask_ratio=0.6, exact=exact, noise=noise, fov=fov)
        assert not (mask & ~fov).any()
        assert torch.equal(y[~mask.expand_as(x)], x[~mask.expand_as(x)])
        for row in range(2):
            seen, masked = 0, 0
            for where in patches(shape, patch):
                inside, hidden = fov[(row, 0, *where)], mask[(row, 0, *where)]
                seen += int(inside.any())
                masked += int(hidden.any())
                assert torch.equal(hidden, inside) or not hidden.any()
                if noise == "permute" and hidden.any():
                    before, after = x[(row, slice(None), *where)], y[(row, slice(None), *where)]
                    assert torch.equal(before[:, inside].sort(1).values, after[:, inside].sort(1).values)
            assert not exact or masked == round(0.6 * seen)


def test_noise_at_the_edge_of_the_field_of_view_has_the_histogram_of_what_is_inside() -> None:
    count = 300
    fov = torch.zeros(count, 1, 16, 16, dtype=torch.bool)
    fov[..., 5:] = True
    x = torch.where(fov, 0.6, 0.0)
    x[..., ::2, 5:] += 0.1
    y, mask = histogram_mask(x, draws(count), patch=16, mask_ratio=1.0, fov=fov)
    assert torch.equal(mask, fov)
    inside = y[fov]
    assert float(inside.mean()) == pytest.approx(0.65, abs=0.002)
    assert float(inside.std()) == pytest.approx(0.05, rel=0.03)
    mean, deviation = patch_moments(x, 16, fov.float())
    assert torch.allclose(mean, torch.tensor(0.65))
    assert torch.allclose(deviation, torch.tensor(0.05))


def test_a_field_of_view_that_is_everything_changes_nothing_and_a_wrong_one_is_refused() -> None:
    x = images((40, 33))
    everything = torch.ones(2, 1, 40, 33, dtype=torch.bool)
    for noise, exact in itertools.product(("gaussian", "permute", "zero"), (False, True)):
        plain, mask = histogram_mask(x, draws(2), patch=8, noise=noise, exact=exact)
        found, own = histogram_mask(x, draws(2), patch=8, noise=noise, exact=exact, fov=everything)
        assert torch.equal(mask, own)
        assert torch.allclose(plain, found, atol=1e-6)
    for wrong in (everything.float(), everything[:1], everything[..., :-1]):
        with pytest.raises(InputError, match="field of view"):
            histogram_mask(x, draws(2), fov=wrong)
