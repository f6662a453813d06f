from __future__ import annotations

import math

import pytest
import torch

from frepa.encoders.registry import build_encoder, encoder_names
from frepa.errors import InputError

SMALL = ("vit_tiny", "swin_tiny", "convnext_atto")
SIZES = [(64, 64), (45, 70)]


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "count"), [("vit_base", 86_631_168), ("swin_base", 86_895_864), ("convnext_base", 87_568_512)]
)
def test_base_encoders_have_the_papers_size(build_light, name: str, count: int) -> None:
    assert parameters(build_light(name, image_size=512)) == count


@pytest.mark.parametrize("name", encoder_names(2))
def test_declared_channels_and_stride_of_every_name(build_light, name: str) -> None:
    encoder = build_light(name)
    with torch.no_grad():
        features = encoder(torch.zeros(1, encoder.in_channels, 96, 50, device=next(encoder.parameters()).device))
    assert features.dense.shape == (1, encoder.channels, -(-96 // encoder.stride), -(-50 // encoder.stride))
    assert features.embedding.shape[:2] == (1, encoder.embedding_channels)
    assert (encoder.dims, encoder.in_channels, encoder.image_channels, encoder.intensity) == (2, 4, 3, "unit")


@pytest.mark.parametrize("name", SMALL)
def test_small_encoders_forward_and_backward(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name)
    for size in SIZES:
        x = torch.rand(2, encoder.in_channels, *size, requires_grad=True)
        features = encoder(x)
        assert features.dense.shape[2:] == tuple(math.ceil(length / encoder.stride) for length in size)
        assert features.dense is features.embedding
        assert torch.isfinite(features.dense).all()
        encoder.zero_grad()
        features.dense.square().mean().backward()
        # Distributed training stops at a parameter without a gradient.
        assert [key for key, value in encoder.named_parameters() if value.grad is None] == []
        assert x.grad is not None
        assert x.grad.abs().amax((0, 2, 3)).min() > 0, "an input channel is not used"


@pytest.mark.parametrize(
    ("name", "options", "stride"),
    [
        ("convnext_atto", {"output_stride": 8}, 8),
        ("convnext_atto", {"output_stride": 16}, 16),
        ("vit_tiny", {"patch_size": 8}, 8),
        ("timm:resnet10t", {"output_stride": 8}, 8),
    ],
)
def test_options_give_a_finer_map(name: str, options: dict[str, int], stride: int) -> None:
    encoder = build_encoder(name, **options)
    assert encoder.stride == stride
    assert encoder(torch.rand(1, 4, 45, 70)).dense.shape[2:] == (math.ceil(45 / stride), math.ceil(70 / stride))


@pytest.mark.parametrize("name", [*SMALL, "timm:resnet10t"])
def test_answers_do_not_depend_on_what_was_seen_before(name: str) -> None:
    """Attention masks and positions made for one size must not leak into the next."""
    torch.manual_seed(0)
    encoder = build_encoder(name).eval()
    for key, value in encoder.named_parameters():
        # SwinV2 starts with its blocks switched off: switch them on, or the test would see nothing.
        if "norm" in key and key.endswith("weight"):
            torch.nn.init.ones_(value)
    images = [torch.rand(2, 4, *size) for size in [(64, 32), (33, 70)]]
    with torch.no_grad():
        first = [encoder(x).dense for x in images]
        again = [encoder(x).dense for x in reversed(images)][::-1]
        alone = encoder(images[0][:1]).dense
    for before, after in zip(first, again):
        assert torch.equal(before, after)
    torch.testing.assert_close(alone, first[0][:1], rtol=1e-4, atol=1e-5)


def test_the_map_is_normalised_at_the_end() -> None:
    torch.manual_seed(0)
    for name in SMALL:
        dense = build_encoder(name).eval()(torch.rand(1, 4, 64, 64)).dense
        torch.testing.assert_close(dense.mean(1), torch.zeros_like(dense[:, 0]), rtol=0, atol=1e-4)
        torch.testing.assert_close(dense.var(1, unbiased=False), torch.ones_like(dense[:, 0]), rtol=0, atol=0.02)


def test_grey_encoders() -> None:
    encoder = build_encoder("convnext_atto", image_channels=1)
    assert encoder.in_channels == 2
    assert encoder(torch.rand(1, 2, 32, 32)).dense.shape == (1, 320, 1, 1)


def test_checkpointing_does_not_change_gradients() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("convnext_atto")
    x = torch.rand(1, 4, 32, 32)
    grads = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        encoder(x).dense.square().mean().backward()
        grads.append([parameter.grad.clone() for parameter in encoder.parameters()])
    for plain, recomputed in zip(*grads):
        torch.testing.assert_close(plain, recomputed)


def test_a_trunk_of_one_size_says_so() -> None:
    encoder = build_encoder("timm:levit_128s", image_size=128).eval()
    assert encoder.input.size == 128
    assert encoder(torch.rand(1, 4, 128, 128)).dense.shape == (1, encoder.channels, 2, 2)
    with pytest.raises(InputError, match="128 x 128 only"):
        encoder(torch.rand(1, 4, 64, 128))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_bsae", {}, "Did you mean vit_base"),
        ("vit_tiny", {"dims": 3}, "is a 2D one"),
        ("vit_tiny", {"dims": 4}, "2 or 3 axes"),
        ("vit_tiny", {"output_stride": 8}, "no option 'output_stride'"),
        ("vit_tiny", {"patchsize": 8}, "Did you mean patch_size"),
        ("timm:resnet_18", {}, "Did you mean"),
        ("vit_tiny", {"guide": "frangy"}, "Did you mean frangi"),
    ],
)
def test_wrong_requests_are_named(name: str, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_encoder(name, **options)


def test_the_authors_vit_has_a_neck_of_128_channels(build_light) -> None:
    plain, necked = (build_light("vit_base", image_size=512, **options) for options in ({}, {"neck": 128}))
    assert parameters(necked) - parameters(plain) == 768 * 128 + 128 * 128 * 9 + 4 * 128
    assert (necked.channels, necked.embedding_channels, necked.stride) == (128, 128, 16)


def test_a_neck_is_the_last_map_normalised_over_channels_and_comes_back_from_its_options() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny", image_size=64, neck=24).eval()
    x = torch.rand(2, 4, 48, 64)
    with torch.no_grad():
        dense = encoder(x).dense
        stages = encoder.stages(x)
    assert dense.shape == (2, 24, 3, 4)
    torch.testing.assert_close(dense.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(dense.var(1, unbiased=False), torch.ones(2, 3, 4), atol=1e-3, rtol=0)
    assert torch.equal(stages[-1], dense)
    assert [(shape.channels, item.shape[1]) for shape, item in zip(encoder.stage_shapes, stages)] == [
        (192, 192), (192, 192), (192, 192), (24, 24)
    ]  # fmt: skip
    again = build_encoder(**encoder.config)
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x).dense, dense)


def test_a_neck_without_channels_is_refused() -> None:
    with pytest.raises(InputError, match="neck=0"):
        build_encoder("vit_tiny", neck=0)
