"""MAE against direct computations: what the encoder sees, what the loss looks at, and what the target is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from frepa.encoders.registry import build_encoder
from frepa.errors import InputError
from frepa.heads.token_decoder import TokenDecoder, grid_positions
from frepa.pretraining.methods.contract import Batch, Setting
from frepa.pretraining.methods.mae import MAE, MAEMethod

NAMES = {2: ("timm:test_vit", {"image_size": 64}), 3: ("vit3d_tiny", {"image_size": 32, "patch_size": 8, "depth": 1})}


def _method(dims: int, guide_target: str = "none", **options) -> MAEMethod:
    torch.manual_seed(0)
    name, own = NAMES[dims]
    encoder = build_encoder(name, dims=dims, guide="none", **own)
    size = own["image_size"]
    setting = Setting(encoder=encoder, channels=1, image_size=size, fit="crop", seed=0, guide_target=guide_target)
    return MAEMethod(MAE(augment=False, **options), setting)


def _batch(dims: int, count: int = 2, shown: int = 0) -> Batch:
    torch.manual_seed(1)
    size = NAMES[dims][1]["image_size"]
    images = torch.rand(count, 1, *(size,) * dims)
    return Batch(images, torch.ones(count, dtype=torch.bool), list(range(count)), shown=shown)


def _patches(images: np.ndarray, step: int) -> np.ndarray:
    """(B, C, *S) to (B, N, C * step^n) by slicing."""
    grid = [length // step for length in images.shape[2:]]
    rows = []
    for place in np.ndindex(*grid):
        cut = tuple(slice(p * step, (p + 1) * step) for p in place)
        rows.append(images[(slice(None), slice(None), *cut)].reshape(len(images), -1))
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_mean_square_over_dropped_patches_alone(dims, normalise):
    method, batch = _method(dims, normalise_target=normalise), _batch(dims)
    told: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []

    def listen(module, inputs, output) -> None:
        seen.append(inputs[1])
        told.append(output)

    method.decoder.register_forward_hook(listen)
    result = method(batch)
    step = method.stride[0]
    target = _patches(batch.images.double().numpy(), step)
    if normalise:
        target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, keepdims=True) + 1e-6)
    errors = ((told[0].detach().double().numpy() - target) ** 2).mean(-1)
    count = errors.shape[1]
    dropped = [sorted(set(range(count)) - set(row)) for row in seen[0].tolist()]
    assert {len(row) for row in dropped} == {round(0.75 * count)}
    assert dropped[0] != dropped[1]
    assert result.loss.item() == pytest.approx(
        np.mean([errors[i, row].mean() for i, row in enumerate(dropped)]), rel=1e-4
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_the_encoder_sees_the_visible_patches_alone(dims):
    method, batch = _method(dims), _batch(dims)
    method.eval()
    keep, mask = method._choose(batch, math.prod(n // method.stride[0] for n in batch.images.shape[2:]))
    hidden = mask.view(2, *(n // method.stride[0] for n in batch.images.shape[2:]))[:, None]
    for axis in range(2, 2 + dims):
        hidden = hidden.repeat_interleave(method.stride[0], axis)
    other = torch.where(hidden > 0, torch.rand_like(batch.images), batch.images)
    assert not torch.equal(other, batch.images)
    with torch.no_grad():
        first, second = (
            method.encoder.tokens(method.encoder.prepare_input(images), keep) for images in (batch.images, other)
        )
    assert torch.equal(first, second)


@pytest.mark.parametrize("dims", [2, 3])
def test_all_tokens_are_the_full_pass_in_any_order(dims):
    encoder = _method(dims).encoder.eval()
    x = torch.rand(2, encoder.in_channels, *(NAMES[dims][1]["image_size"] - 5,) * dims)  # padded inside
    with torch.no_grad():
        dense = encoder(x).dense.flatten(2).transpose(1, 2)
        order = torch.stack([torch.randperm(dense.shape[1]) for _ in range(2)])
        assert torch.allclose(encoder.tokens(x), dense, atol=1e-5)
        picked = encoder.tokens(x, order)
    for row in range(2):
        assert torch.allclose(picked[row], dense[row, order[row]], atol=1e-4)


def test_pictures_show_the_visible_patches_as_they_are():
    method, batch = _method(2), _batch(2, shown=2)
    method.eval()
    pictures = method(batch).pictures
    visible = pictures.corrupted != 0
    assert visible.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(pictures.reconstruction[visible], batch.images[visible])


def test_the_guide_is_told_beside_the_image():
    method = _method(2, guide_target="frangi")
    result = method(_batch(2))
    assert set(result.terms) == {"mse", "guide"}
    assert result.loss.item() == pytest.approx((result.terms["mse"] + result.terms["guide"]).item(), rel=1e-5)


def test_positions_tell_every_place_apart_and_the_decoder_uses_them():
    for grid, width in (((4, 5), 32), ((2, 3, 4), 32)):
        table = grid_positions(grid, width, torch.device("cpu"))
        assert table.shape == (math.prod(grid), width)
        distance = torch.cdist(table, table) + 10 * torch.eye(len(table))
        assert distance.min() > 0.05
    torch.manual_seed(0)
    decoder = TokenDecoder(8, 4, width=32, depth=1).eval()
    with torch.no_grad():
        out = decoder(torch.rand(1, 1, 8), torch.tensor([[3]]), (2, 4))
    assert out.shape == (1, 8, 4)
    assert (out[0, 0] - out[0, 1]).abs().max() > 1e-4  # two dropped patches are told differently by their places


def test_what_cannot_be_is_said():
    encoder = build_encoder("convnext_atto", dims=2)
    setting = Setting(encoder=encoder, channels=1, image_size=64, fit="crop", seed=0)
    with pytest.raises(InputError, match=r"plain vision transformers.*simmim and mfm take any encoder"):
        MAEMethod(MAE(), setting)
    with pytest.raises(InputError, match="nothing is left to see"):
        MAE(mask_ratio=1.0)
    with pytest.raises(InputError, match="nothing is hidden"):
        MAE(mask_ratio=0.0)
    with pytest.raises(InputError, match="multiple of 32"):
        MAE(decoder_width=33)


def test_the_decoder_is_as_published_with_vit_b_and_small_beside_small_encoders():
    assert MAE().decoder_shape(768, 86_600_000) == (512, 8)
    assert MAE().decoder_shape(192, 5_500_000) == (128, 4)
    assert MAE().decoder_shape(384, 10_700_000) == (256, 2)  # the small 3D ViT: a fifth of its weights
    assert MAE().decoder_shape(1024, 32_000_000) == (672, 1)  # the paper's 3D ViT: four blocks
    assert MAE(decoder_depth=2).decoder_shape(1024, 32_000_000) == (672, 2)
