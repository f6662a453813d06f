from __future__ import annotations

import sys

import pytest
import torch

from frepa.encoders.files import load_encoder, save_encoder
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError

PACKAGE = "dynamic_network_architectures"


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.startswith(PACKAGE)] or [PACKAGE]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(InputError, match=r"pip install 'frepa\[nnunet\]'"):
        build_encoder("resenc_tiny")


@pytest.mark.parametrize("size", [(32, 32, 32), (9, 20, 17), (8, 8, 8)])
def test_forward_and_backward(size: tuple[int, ...]) -> None:
    pytest.importorskip(PACKAGE)
    encoder = build_encoder("resenc_tiny")
    features = encoder(torch.rand(1, 2, *size))
    assert features.dense.shape == (1, encoder.channels, *(-(-length // 8) * 8 for length in size))
    assert features.embedding.shape[:2] == (1, encoder.embedding_channels)
    features.dense.square().mean().backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []


def test_it_is_nnunets_network_without_its_output_layers() -> None:
    unet = pytest.importorskip(f"{PACKAGE}.architectures.unet")
    torch.manual_seed(0)
    encoder = build_encoder("resenc_tiny").eval()
    whole = unet.ResidualEncoderUNet(
        2,
        4,
        (8, 16, 32, 64),
        torch.nn.Conv3d,
        3,
        (1, 2, 2, 2),
        (1, 1, 1, 1),
        1,
        1,
        True,
        torch.nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    ).eval()
    missing, unexpected = whole.load_state_dict(encoder.trunk.state_dict(), strict=False)
    assert unexpected == []
    assert all("seg_layers" in key or key.startswith("decoder.encoder.") for key in missing)
    whole.decoder.seg_layers[-1] = torch.nn.Identity()
    x = torch.rand(1, 2, 16, 24, 16)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x).dense, whole(x))


def test_saved_and_loaded(tmp_path) -> None:
    pytest.importorskip(PACKAGE)
    encoder = build_encoder("resenc_tiny").eval()
    save_encoder(tmp_path, encoder)
    size = (tmp_path / "encoder.safetensors").stat().st_size
    assert size < 1.3 * 4 * sum(p.numel() for p in encoder.parameters()), "a layer held under two names is stored twice"
    x = torch.rand(1, 2, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path)(x).dense, encoder(x).dense)


def test_large_has_the_size_of_nnunets_preset() -> None:
    pytest.importorskip(PACKAGE)
    with torch.device("meta"):
        count = sum(p.numel() for p in build_encoder("resenc_large").parameters())
    # nnU-Net counts about 102 million for ResEnc-L.
    assert count == pytest.approx(102e6, rel=0.01)
