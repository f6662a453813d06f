from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets import SwinUNETR

from frepa.encoders.files import load_encoder, save_encoder
from frepa.encoders.registry import build_encoder, encoder_names
from frepa.errors import InputError

TINY = ["vit3d_tiny", "swinunetr_tiny", "mednext_tiny"]


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "millions"), [("vit3d_base", 32.0), ("swinunetr_base", 35.07), ("mednext_large", 34.6)]
)
def test_full_size_encoders_have_the_papers_size(build_light, name: str, millions: float) -> None:
    assert parameters(build_light(name)) == pytest.approx(millions * 1e6, rel=0.01)


def test_vit_count_is_the_arithmetic_that_is_documented(build_light) -> None:
    embedding, positions, last_norm = 2 * 16**3 * 1024 + 1024, 8**3 * 1024, 2 * 1024
    block = 4 * 1024**2 + 1024 + 2049 * 768 + 1024 + 4 * 1024
    assert parameters(build_light("vit3d_base")) == embedding + positions + last_norm + 4 * block


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(32, 32, 32), (9, 20, 40)])
def test_small_encoders_forward_and_backward(name: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name)
    x = torch.rand(1, 2, *size, requires_grad=True)
    features = encoder(x)
    padded = [math.ceil(length / encoder.size_multiple) * encoder.size_multiple for length in size]
    assert features.dense.shape == (1, encoder.channels, *(length // encoder.stride for length in padded))
    assert features.embedding.shape[1] == encoder.embedding_channels
    assert features.embedding.ndim == 5
    assert torch.isfinite(features.dense).all()
    assert torch.isfinite(features.embedding).all()
    (features.dense.square().mean() + features.embedding.square().mean()).backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []
    assert x.grad is not None
    assert x.grad.abs().amax((0, 2, 3, 4)).min() > 0, "an input channel is not used"


# Other tests register encoders of their own, so the file that defines these says which they are.
MONAI_3D = [name for name in encoder_names(3) if name.startswith(("vit3d", "swinunetr", "mednext"))]


@pytest.mark.parametrize("name", MONAI_3D)
def test_declared_contract_of_every_name(build_light, name: str) -> None:
    encoder = build_light(name, guide="none")
    assert (encoder.name, encoder.dims, encoder.in_channels, encoder.guide) == (name, 3, 2, "none")
    assert (encoder.stride == 1) == (encoder.embedding_channels != encoder.channels)
    if next(encoder.parameters()).is_meta and encoder.size_multiple == 16:
        features = encoder(torch.empty(1, 2, 32, 32, 48, device="meta"))
        step = encoder.stride
        assert features.dense.shape == (1, encoder.channels, 32 // step, 32 // step, 48 // step)
        assert features.embedding.shape == (1, encoder.embedding_channels, 2, 2, 3)


@pytest.mark.parametrize("name", ["swinunetr_tiny", "mednext_tiny"])
def test_u_shaped_encoders_are_monais_network_without_its_output(name: str) -> None:
    """One pass gives the map that MONAI's own forward hands to its output convolution."""
    torch.manual_seed(0)
    encoder = build_encoder(name).eval()
    x = torch.rand(1, 2, 64, 32, 32)
    if name.startswith("swin"):
        whole = SwinUNETR(2, 1, feature_size=12, downsample="mergingv2").eval()
        output = "out"
    else:
        from monai.networks.nets import MedNeXt

        ones, twos = (1, 1, 1, 1), (2, 2, 2, 2)
        whole = MedNeXt(
            3,
            8,
            2,
            1,
            twos,
            twos,
            2,
            3,
            use_residual_connection=True,
            blocks_down=ones,
            blocks_bottleneck=1,
            blocks_up=ones,
        ).eval()
        output = "out_0"
    setattr(whole, output, torch.nn.Identity())
    whole.load_state_dict(encoder.trunk.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(encoder(x).dense, whole(x))


def test_vit_is_monais_network_at_its_own_size() -> None:
    from monai.networks.nets import ViT

    torch.manual_seed(0)
    encoder = build_encoder("vit3d_tiny", image_size=48).eval()
    whole = ViT(2, 48, 16, hidden_size=192, mlp_dim=384, num_layers=4, num_heads=3).eval()
    missing, unexpected = whole.load_state_dict(encoder.trunk.state_dict(), strict=False)
    assert unexpected == []
    assert all("cross_attn" in key for key in missing), "only what MONAI builds and never calls may be left out"
    x = torch.rand(1, 2, 48, 48, 48)
    with torch.no_grad():
        tokens = whole(x)[0]
        torch.testing.assert_close(encoder(x).dense, tokens.transpose(1, 2).reshape(1, 192, 3, 3, 3))


def test_vit_knows_which_axis_is_which() -> None:
    """Positions are interpolated per axis: swapping two axes of the input is not swapping them in the features."""
    torch.manual_seed(0)
    encoder = build_encoder("vit3d_tiny").eval()
    x = torch.rand(1, 2, 32, 64, 64)
    with torch.no_grad():
        plain, swapped = encoder(x).dense, encoder(x.transpose(3, 4)).dense.transpose(3, 4)
    assert (plain - swapped).abs().max() > 1e-3


@pytest.mark.parametrize("name", TINY)
def test_checkpointing_does_not_change_gradients(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name)
    x = torch.rand(1, 2, 32, 32, 32)
    grads = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        encoder(x).dense.square().mean().backward()
        grads.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for plain, recomputed in zip(*grads):
        torch.testing.assert_close(plain, recomputed, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_saved_and_loaded(name: str, tmp_path) -> None:
    encoder = build_encoder(name, guide="hessian").eval()
    save_encoder(tmp_path, encoder)
    loaded = load_encoder(tmp_path)
    x = torch.rand(1, 2, 32, 32, 32)
    with torch.no_grad():
        for mine, theirs in zip(encoder(x), loaded(x)):
            assert torch.equal(mine, theirs)


def test_wrong_requests_are_named() -> None:
    with pytest.raises(InputError, match="is a 3D one"):
        build_encoder("vit3d_tiny", dims=2)
    with pytest.raises(InputError, match="no multiple of patch_size 16"):
        build_encoder("vit3d_tiny", image_size=100)
    with pytest.raises(InputError, match="Did you mean mednext_large"):
        build_encoder("mednext_larg", dims=3)


def test_mednext_stays_in_float32_on_a_cpu_whatever_is_asked_for() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("mednext_tiny", dims=3).eval()
    x = torch.rand(1, 2, 16, 16, 32)
    with torch.no_grad():
        plain = encoder(x).dense
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder(x).dense, plain)
