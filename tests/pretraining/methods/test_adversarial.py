"""The patch adversary: its losses against MONAI's, where gradients go, and when it takes part."""

from __future__ import annotations

import pytest
import torch
from monai.losses import PatchAdversarialLoss

from frepa.errors import InputError
from frepa.pretraining.methods.adversarial import Adversary


def _adversary(dims: int, **options) -> Adversary:
    torch.manual_seed(0)
    return Adversary(dims, 1, features=4, **options)


def _images(dims: int, side: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 1, *[side] * dims, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dims", [2, 3])
def test_losses_are_the_least_squares_losses_of_monai(dims):
    adversary = _adversary(dims)
    real, fake = _images(dims), _images(dims, seed=1)
    monai = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)
    scores = {name: adversary.discriminator(x)[-1] for name, x in (("real", real), ("fake", fake))}
    step = [monai(scores[name], target_is_real=name == "real", for_discriminator=True).item() for name in scores]
    generator = monai(scores["fake"], target_is_real=True, for_discriminator=False).item()
    assert adversary.discriminator_step_loss(real, fake).item() == pytest.approx(sum(step) / 2, rel=1e-6)
    assert adversary(real, fake).item() == pytest.approx(sum(step) / 2, rel=1e-6)
    assert adversary.generator_loss(fake).item() == pytest.approx(generator, rel=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_generators_gradient_reaches_the_images_and_not_the_discriminator(dims):
    adversary = _adversary(dims)
    fake = _images(dims).requires_grad_()
    adversary.generator_loss(fake).backward()
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in adversary.parameters())
    assert all(parameter.requires_grad for parameter in adversary.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_the_discriminators_gradient_reaches_every_weight_and_not_the_images(dims):
    adversary = _adversary(dims)
    real, fake = _images(dims).requires_grad_(), _images(dims, seed=1).requires_grad_()
    adversary(real, fake).backward()
    assert real.grad is None
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in adversary.parameters())


def test_the_discriminator_learns_to_tell_noise_from_flat_images_and_the_generator_loss_notices():
    adversary = _adversary(2)
    real = torch.full((2, 1, 24, 24), 0.5) + torch.linspace(-0.3, 0.3, 24)
    fake = _images(2)
    optimizer = torch.optim.Adam(adversary.parameters(), lr=2e-3)
    before = adversary(real, fake).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = adversary(real, fake)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * before
    assert adversary.generator_loss(fake) > 4 * adversary.generator_loss(real)


def test_an_images_score_does_not_depend_on_its_batch():
    adversary, x = _adversary(2), _images(2)
    torch.testing.assert_close(adversary.discriminator(x)[-1][:1], adversary.discriminator(x[:1])[-1])
    assert not list(adversary.buffers())


def test_it_takes_part_from_its_start_epoch():
    adversary = _adversary(2)
    assert [adversary.active(epoch) for epoch in (0, 4, 5, 6)] == [False, False, True, True]
    assert _adversary(2, start_epoch=0).active(0)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_size_is_the_smallest_that_works(layers):
    adversary = _adversary(2, layers=layers)
    assert torch.isfinite(adversary.generator_loss(_images(2, side=adversary.smallest_size)))
    with pytest.raises(InputError, match=f"at least {adversary.smallest_size} pixels"):
        adversary.generator_loss(_images(2, side=adversary.smallest_size - 1))
    with pytest.raises((RuntimeError, ValueError)):
        adversary.discriminator(_images(2, side=adversary.smallest_size - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_images_are_taken_under_autocast_and_the_loss_is_float32(dtype):
    adversary = _adversary(2)
    fake = _images(2).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = adversary.generator_loss(fake)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(fake.grad).all()


def test_true_half_precision_weights_take_float32_predictions():
    adversary = _adversary(2).bfloat16()
    assert torch.isfinite(adversary.generator_loss(_images(2)))
