"""Frepa's variants, off by default: a clean teacher, the image-adaptive mask, masks within the field of view."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from frepa.draws import Draws, sample_keys
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError
from frepa.pretraining.methods.augment import Augmentation
from frepa.pretraining.methods.contract import Batch, Setting
from frepa.pretraining.methods.frepa import Frepa, FrepaMethod
from frepa.pretraining.methods.teaching import Predictor, Teacher, disagreement


def _method(dims: int = 2, **options) -> FrepaMethod:
    torch.manual_seed(0)
    name, own = ("timm:test_convnext", {}) if dims == 2 else ("vit3d_tiny", {"image_size": 32, "depth": 1})
    encoder = build_encoder(name, dims=dims, guide="none", **own)
    setting = Setting(encoder=encoder, channels=1, image_size=32, fit="resize", seed=0)
    weight = {"consistency_weight": 0.5} if options.get("teacher") else {}
    return FrepaMethod(Frepa(**({"augment": False} | weight | options)), setting)


def _batch(dims: int = 2, count: int = 3, **more) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, *(32,) * dims, generator=generator)
    return Batch(images, torch.ones(count, dtype=torch.bool), list(range(count)), **more)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_student_sees_one_corrupted_view_and_the_teacher_the_clean_image(dims):
    method, batch = _method(dims, teacher=True), _batch(dims)
    assert method.teacher is not None
    seen: dict[str, list] = {"student": [], "teacher": []}
    method.encoder.register_forward_hook(lambda module, x, y: seen["student"].append((x[0], y)))
    method.teacher.average.register_forward_hook(lambda module, x, y: seen["teacher"].append((x[0], y)))
    result = method(batch)
    ((shown, features),) = seen["student"]
    ((clean, taught),) = seen["teacher"]
    assert len(shown) == len(batch.images)
    assert torch.equal(clean, method.encoder.prepare_input(batch.images))
    assert not torch.allclose(shown, clean)
    assert not taught.embedding.requires_grad
    told = method.predictor(features.embedding).detach().double().numpy()
    other = taught.embedding.double().numpy()
    cosine = (told * other).sum(1) / np.linalg.norm(told, axis=1) / np.linalg.norm(other, axis=1)
    assert result.terms["consistency"].item() == pytest.approx(1 - cosine.mean(), abs=1e-5)
    weights = {"rmse": 1, "gradient": 1, "hfl": 1, "consistency": 0.5}
    assert result.loss.item() == pytest.approx(sum(w * result.terms[n].item() for n, w in weights.items()), rel=1e-5)
    result.loss.backward()
    assert all(p.grad is None for p in method.teacher.average.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.predictor.parameters())
    assert not any(p is q for p in method.parameters() for q in method.teacher.average.parameters())


def test_the_teacher_is_the_average_that_it_says():
    encoder = build_encoder("timm:test_convnext", dims=2)
    teacher = Teacher(encoder, 0.9)
    name, weight = next(iter(encoder.named_parameters()))
    values = []
    for step in range(4):
        with torch.no_grad():
            weight.fill_(float(step + 1))
        teacher.follow(encoder)
        values.append(dict(teacher.average.module.named_parameters())[name].flatten()[0].item())
    expected, average = [], 1.0  # after the first step it is the encoder
    for step in range(4):
        average = 0.9 * average + 0.1 * (step + 1)
        expected.append(average)
    assert values == pytest.approx(expected, rel=1e-5)
    assert not teacher.average.training


def test_a_step_moves_the_teacher_and_before_its_epoch_every_parameter_takes_part():
    method = _method(teacher=True, consistency_start_epoch=1, teacher_decay=0.5)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    early = method(_batch())
    assert "consistency" not in early.terms
    assert early.loss.item() == pytest.approx(sum(early.terms[n].item() for n in ("rmse", "gradient", "hfl")), rel=1e-5)
    early.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    optimizer.step()
    method.after_step(0, 0.1)
    assert "consistency" in method(_batch(epoch=1)).terms
    before = {n: p.clone() for n, p in method.teacher.average.named_parameters()}
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    method.after_step(1, 0.1)
    for name, parameter in method.teacher.average.named_parameters():
        assert torch.allclose(parameter, before[name] + 0.5, atol=1e-5)
    assert set(method.states()) == {"teacher"}
    assert copy.deepcopy(method).teacher is method.teacher  # as an average of the whole method's weights has it


def test_agreement_is_one_less_the_cosine():
    a, b = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4, requires_grad=True)
    assert disagreement(a, 3 * a).item() == pytest.approx(0, abs=1e-6)
    assert disagreement(a, -a).item() == pytest.approx(2, abs=1e-6)
    a.requires_grad_()
    disagreement(a, b).backward()
    assert a.grad is not None
    assert b.grad is None
    layers = [layer for layer in Predictor(5).modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [10, 5]


def test_masks_stay_within_the_field_of_view():
    """Outside of it nothing is changed and nothing counts; a dark surround is left out where that is asked for."""
    inside = torch.zeros(3, 1, 32, 32, dtype=torch.bool)
    inside[..., 6:26, :] = True
    images = (0.3 + 0.7 * _batch().images) * inside
    images[..., :8] = 0  # a dark surround within what was recorded
    for fov, field in (("scan", inside), ("lit", inside & (torch.arange(32) >= 8))):
        for frequency in (0.0, 1.0):
            method = _method(fov=fov, frequency_probability=frequency, image_patch=8, mask_ratio=1.0)
            assert method.wants_inside
            made: list = []
            method.corruption = _Listening(method.corruption, made)
            result = method(_batch()._replace(images=images, inside=inside, shown=3))
            corrupted = made[0]
            assert torch.equal(corrupted.mask > 0, field.expand(3, -1, -1, -1))
            changed = corrupted.image != images
            assert not (changed & ~field).any()
            shown = field & (images > 0)
            assert (changed & shown).float().sum() > 0.9 * shown.float().sum()
            assert result.loss.isfinite()
    assert not _method().wants_inside


class _Listening:
    """Stands for a corruption, and keeps what it gave."""

    def __init__(self, corruption, made: list) -> None:
        self.corruption, self.made = corruption, made

    def __call__(self, *args, **kwargs):
        self.made.append(self.corruption(*args, **kwargs))
        return self.made[-1]

    def __getattr__(self, name):
        return getattr(self.corruption, name)


def test_the_field_moves_with_the_image():
    images = torch.zeros(6, 1, 32, 40)
    images[..., 5:25, 8:30] = 1.0
    draws = [Draws(sample_keys(0, list(range(6)), 0)) for _ in range(2)]
    augmentation = Augmentation(histogram=0.0)
    moved, followed = augmentation(images, draws[0]), augmentation.follow(images > 0.5, draws[1])
    assert not torch.equal(moved, images)
    assert ((moved > 0.5) != followed).float().mean() < 0.001


def test_the_adaptive_mask_spares_what_the_image_is_not_made_of():
    """The strongest tile of a ring goes with Eq. 2's probability, the others with less of it."""
    x = torch.arange(64)
    stripes = 0.5 + 0.4 * torch.sin(2 * torch.pi * 20 * x / 64)
    images = stripes + 0.01 * torch.randn(200, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    before = torch.fft.rfft2(images).abs()
    gone = {}
    for adaptive in (False, True):
        corruption = Frepa(adaptive=adaptive, low_noise=False, frequency_probability=1.0).corruption("resize")
        found = corruption(images, Draws(sample_keys(0, list(range(200)), 1))).image
        zero = (torch.fft.rfft2(found).abs() < 1e-3 * before)[:, 0]
        gone[adaptive] = zero[:, 0, 20].float().mean().item(), zero.float().mean().item()
    assert gone[True][0] == pytest.approx(gone[False][0], abs=0.05)
    assert gone[True][1] < 0.65 * gone[False][1]


def test_what_does_nothing_is_refused():
    with pytest.raises(InputError, match="nothing to agree on"):
        Frepa(teacher=True, consistency_weight=0.0)
    with pytest.raises(InputError, match="teacher-decay 1"):
        _method(teacher=True, teacher_decay=1.0)
    with pytest.raises(InputError, match=r"fov lti.*Did you mean lit"):
        Frepa(fov="lti")
