"""SimMIM and MFM against NumPy: where the loss looks, what the encoder is shown, the removed part of the spectrum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frepa.corruption.circle import circle_mask
from frepa.draws import Draws
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError
from frepa.pretraining.methods.contract import Batch, Setting
from frepa.pretraining.methods.masked import MFM, MFMMethod, SimMIM, SimMIMMethod, removed_distance

ENCODERS = {
    "vit": ("timm:test_vit", 2, {"image_size": 64}),
    "swin": ("swin_tiny", 2, {"image_size": 64}),
    "convnext": ("timm:test_convnext", 2, {"image_size": 64}),
    "vit3d": ("vit3d_tiny", 3, {"image_size": 32, "patch_size": 8, "depth": 1}),
    "mednext": ("mednext_tiny", 3, {}),
}


def _setting(key: str, **more) -> tuple[Setting, Batch]:
    torch.manual_seed(0)
    name, dims, options = ENCODERS[key]
    encoder = build_encoder(name, dims=dims, guide="none", **options)
    size = 64 if dims == 2 else 32
    torch.manual_seed(1)
    images = torch.rand(2, 1, *(size,) * dims)
    setting = Setting(encoder=encoder, channels=1, image_size=size, fit="crop", seed=0, **more)
    return setting, Batch(images, torch.ones(2, dtype=torch.bool), [0, 1])


@pytest.mark.parametrize("key", sorted(ENCODERS))
def test_simmim_is_the_mean_absolute_error_of_hidden_pixels(key):
    setting, batch = _setting(key)
    method = SimMIMMethod(SimMIM(augment=False, patch=16), setting).eval()
    told: list[torch.Tensor] = []
    method.decoder.register_forward_hook(lambda module, inputs, output: told.append(output))
    result = method(batch._replace(shown=2))
    hidden = (result.pictures.corrupted != batch.images).numpy()
    patches = hidden.reshape(2, -1).mean(1)
    count = 2**3 if batch.images.ndim == 5 else 4**2
    assert np.allclose(patches, round(0.6 * count) / count, atol=1e-3)  # as many in each image
    size = batch.images.shape[2]
    prediction = told[0].detach()[(..., *(slice(0, size),) * (batch.images.ndim - 2))].double().numpy()
    error = np.abs(prediction - batch.images.double().numpy())[hidden].mean()
    assert result.loss.item() == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("key", ["vit", "swin", "vit3d"])
def test_hidden_places_are_the_token_and_nothing_of_the_image(key):
    setting, batch = _setting(key)
    method = SimMIMMethod(SimMIM(augment=False, patch=16), setting).eval()
    mask = torch.zeros_like(batch.images, dtype=torch.bool)
    mask[..., :16] = True
    encoder = method.encoder
    one, other = (encoder.prepare_input(torch.where(mask, value, batch.images)) for value in (0.1, 0.9))
    with torch.no_grad():
        first, second = (encoder.masked(x, mask, method.token).dense for x in (one, other))
        plain = encoder(one).dense
        further = encoder.masked(one, mask, method.token + 1).dense
    assert torch.equal(first, second)
    assert not torch.allclose(first, plain)
    assert not torch.allclose(first, further)
    assert torch.equal(encoder(one).dense, plain)  # nothing of the hiding is left behind


def test_an_encoder_without_patches_to_hide_is_shown_the_mean():
    setting, batch = _setting("convnext")
    method = SimMIMMethod(SimMIM(augment=False, patch=16), setting).eval()
    assert method.token is None
    pictures = method(batch._replace(shown=2)).pictures
    for row in range(2):
        hidden = pictures.corrupted[row] != batch.images[row]
        assert torch.allclose(pictures.corrupted[row][hidden], batch.images[row][~hidden].mean(), atol=1e-6)


@pytest.mark.parametrize("size", [(24, 24), (23, 18), (8, 9, 10)])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_mfm_looks_at_the_removed_frequencies_alone(size, exponent):
    torch.manual_seed(0)
    target, prediction = torch.rand(3, 2, *size), torch.rand(3, 2, *size)
    _, removed, is_low = circle_mask(target, Draws([1, 2, 3]), radius=3)
    axes = tuple(range(2, 2 + len(size)))
    distance = np.stack(np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in size], indexing="ij"))
    inside = np.sqrt((distance**2).sum(0)) < 3
    values = []
    for row in range(3):
        difference = np.fft.fftn(
            (prediction - target)[row].double().numpy(), axes=tuple(a - 1 for a in axes), norm="ortho"
        )
        gone = ~inside if is_low[row] else inside
        values.append((np.abs(difference) ** exponent)[:, gone].mean())
    found = removed_distance(prediction, target, removed, exponent)
    assert found.item() == pytest.approx(np.mean(values), rel=1e-4)


@pytest.mark.parametrize("key", ["vit", "convnext", "vit3d", "mednext"])
def test_mfm_trains_any_encoder_and_ignores_what_was_kept(key):
    setting, batch = _setting(key)
    method = MFMMethod(MFM(augment=False), setting)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    for _ in range(2):  # the decoder begins with zeros, which let no gradient through at first
        optimizer.zero_grad()
        result = method(batch._replace(shown=2))
        result.loss.backward()
        optimizer.step()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.encoder.parameters())
    assert set(result.pictures.labels) <= {"low kept", "high kept"}
    shown = method.positions_to_show(100, 4)
    low = [method.draws(batch._replace(positions=[p])).host_uniform("circle")[0] < 0.5 for p in shown]
    assert low == [True, False, True, False]


def test_the_guide_as_target_adds_its_error_over_all_pixels():
    for cls, options in ((SimMIMMethod, SimMIM(augment=False)), (MFMMethod, MFM(augment=False))):
        setting, batch = _setting("convnext", guide_target="frangi_dark")
        method = cls(options, setting)
        result = method(batch)
        own = next(value for name, value in result.terms.items() if name != "guide")
        assert result.loss.item() == pytest.approx((own + result.terms["guide"]).item(), rel=1e-5)
        assert method.encoder.guide == "none"


def test_what_cannot_be_is_said():
    for ratio in (0.0, 1.0, 1.5):
        with pytest.raises(InputError, match="mask-ratio"):
            SimMIM(mask_ratio=ratio)
    with pytest.raises(InputError, match="radius"):
        MFM(radius=0)
    with pytest.raises(InputError, match="exponent"):
        MFM(exponent=0)
