"""The choice between the two strategies, and that each row gets what it would get alone."""

from __future__ import annotations

import math

import pytest
import torch

from frepa.corruption.circle import circle_mask
from frepa.corruption.dual import Corrupted, Corruption
from frepa.corruption.frequency import frequency_corrupt
from frepa.corruption.histogram import histogram_mask
from frepa.corruption.inputs import check_images
from frepa.corruption.patches import patch_mask
from frepa.draws import Draws, sample_keys
from frepa.errors import InputError

SHAPES = [(48, 40), (33, 21), (1, 30), (1, 1), (20, 17, 18), (1, 1, 24)]


def images(shape: tuple[int, ...], batch: int = 6, channels: int = 1) -> torch.Tensor:
    return torch.rand(batch, channels, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_row_gets_one_strategy_whole(shape: tuple[int, ...], channels: int) -> None:
    x, draws = images(shape, 8, channels), Draws(sample_keys(0, range(8), 0))
    image, mask, is_frequency = Corruption()(x, draws)
    assert image.shape == x.shape
    assert image.dtype == mask.dtype == torch.float32
    assert is_frequency.dtype == torch.bool
    assert 0 < int(is_frequency.sum()) < 8
    assert image.isfinite().all()
    in_frequency = frequency_corrupt(x, draws)
    in_image, masked = histogram_mask(x, draws)
    for row in range(8):
        if is_frequency[row]:
            assert torch.allclose(image[row], in_frequency[row], atol=1e-6)
            assert (mask[row] == 1).all()
        else:
            assert torch.equal(image[row], in_image[row])
            assert torch.equal(mask[row], masked[row].float())


def test_the_choice_is_made_per_image_and_per_view_with_the_given_probability() -> None:
    x, count = torch.zeros(1, 1, 1, 1).expand(4000, 1, 1, 1), 4000
    chosen = [Corruption(noise="zero")(x, Draws(sample_keys(0, range(count), view))).is_frequency for view in (0, 1)]
    for view in chosen:
        assert float(view.float().mean()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(count))
    both = float((chosen[0] & chosen[1]).float().mean())
    assert both == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / count))
    draws = Draws(sample_keys(0, range(count), 0))
    assert Corruption(frequency_probability=1.0)(x, draws).is_frequency.all()
    assert not Corruption(frequency_probability=0.0)(x, draws).is_frequency.any()


def test_rows_do_not_depend_on_the_batch() -> None:
    x, keys = images((40, 36)), sample_keys(5, range(6), 0)
    whole = Corruption()(x, Draws(keys))
    for row in range(6):
        alone = Corruption()(x[row : row + 1], Draws(keys[row : row + 1]))
        assert torch.allclose(whole.image[row], alone.image[0], atol=1e-6)
        assert torch.equal(whole.mask[row], alone.mask[0])
        assert whole.is_frequency[row] == alone.is_frequency[0]


def test_options_reach_the_strategies() -> None:
    x, draws = images((48, 48)), Draws(sample_keys(0, range(6), 0))
    options = {"patch": 8, "mask_ratio": 0.25, "exact": True, "noise": "zero"}
    found = Corruption(frequency_probability=0.0, **options)(x, draws)
    assert torch.equal(found.image, histogram_mask(x, draws, **options)[0])
    assert (found.mask.flatten(1).sum(1) == 9 * 64).all()
    found = Corruption(frequency_probability=1.0, frequency_patch=4, cutoff=0.5, sigma=0.01, low_noise=False)(x, draws)
    expected = frequency_corrupt(x, draws, patch=4, cutoff=0.5, sigma=0.01, low_noise=False)
    assert torch.equal(found.image, expected)
    found = Corruption(frequency_probability=1.0, high_mask=False)(x, draws)
    assert torch.equal(found.image, frequency_corrupt(x, draws, high_mask=False))


def test_newer_options_reach_the_spectrum() -> None:
    x, draws = images((48, 48)), Draws(sample_keys(0, range(6), 0))
    for options in ({"mask_centre": True}, {"scale_sigma": False}, {"perturbation": "complex"}, {"adaptive": True}):
        found = Corruption(frequency_probability=1.0, cutoff=0.1, **options)(x, draws).image
        assert torch.equal(found, frequency_corrupt(x, draws, cutoff=0.1, **options))
        assert not torch.allclose(found, frequency_corrupt(x, draws, cutoff=0.1), atol=1e-4)


def test_outside_a_field_of_view_nothing_changes_and_nothing_counts() -> None:
    fov = torch.zeros(6, 1, 48, 40, dtype=torch.bool)
    fov[..., 6:40, 9:33] = True
    x, draws = images((48, 40), channels=3), Draws(sample_keys(0, range(6), 0))
    image, mask, is_frequency = Corruption()(x, draws, fov)
    outside = ~fov.expand_as(x)
    assert torch.equal(image[outside], x[outside])
    assert (mask[~fov] == 0).all()
    assert torch.equal(mask[is_frequency], fov[is_frequency].float())
    whole = frequency_corrupt(x, draws)
    chosen = is_frequency.view(-1, 1, 1, 1) & fov
    assert torch.allclose(image[chosen.expand_as(x)], whole[chosen.expand_as(x)], atol=1e-6)
    everything = Corruption()(x, draws, torch.ones_like(fov))
    plain = Corruption()(x, draws)
    assert torch.allclose(everything.image, plain.image, atol=1e-6)
    assert torch.equal(everything.mask, plain.mask)


def test_large_batches_are_worked_on_in_pieces_with_the_same_result() -> None:
    x = images((200, 220), 9)
    keys = sample_keys(0, range(9), 0)
    whole = Corruption()(x, Draws(keys)).image
    parts = [Corruption()(x[row : row + 1], Draws(keys[row : row + 1])).image for row in range(9)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


@pytest.mark.parametrize(
    "option",
    [{"noise": "salt"}, {"mask_ratio": 1.5}, {"patch": 0}, {"cutoff": 0.0}, {"frequency_probability": 2.0}],
)
def test_wrong_options_are_refused_before_any_image_is_seen(option: dict[str, object]) -> None:
    with pytest.raises(InputError, match=str(next(iter(option)))):
        Corruption(**option)


def test_bad_images_are_refused_in_plain_words() -> None:
    with pytest.raises(InputError, match=r"expected \(batch, channels"):
        check_images(torch.rand(3, 4, 4))
    with pytest.raises(InputError, match="uint8"):
        check_images(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="empty axis"):
        check_images(torch.zeros(1, 1, 0, 4))
    for value in (math.nan, math.inf, -math.inf):
        x = images((6, 6), 3)
        x[1, 0, 2, 2] = value
        with pytest.raises(InputError, match=r"rows \[1\]"):
            Corruption()(x, Draws(sample_keys(0, range(3), 0)))
    x = images((6, 6), 2)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = math.inf, -math.inf
    with pytest.raises(InputError, match=r"rows \[0, 1\]"):
        check_images(x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(64, 48), (24, 20, 16)])
def test_nothing_waits_for_the_device(shape: tuple[int, ...]) -> None:
    x, keys = images(shape).cuda(), sample_keys(0, range(6), 0)
    draws = Draws(keys, "cuda")
    fov = torch.ones(6, 1, *shape, dtype=torch.bool, device="cuda")

    def corrupt() -> Corrupted:
        circle_mask(x, draws)
        patch_mask(x, draws)
        Corruption(adaptive=True, perturbation="complex", exact=True)(x, draws, fov)
        return Corruption()(x, draws)

    corrupt()  # fills the index tables, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = corrupt()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.image.isfinite().all()
