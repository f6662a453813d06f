from __future__ import annotations

import math

import pytest
import torch

from frepa.corruption.guide import hessian_guide
from frepa.encoders.contract import Encoder
from frepa.encoders.feature_cache import FeatureCache, fingerprint
from frepa.encoders.files import load_encoder, save_encoder
from frepa.encoders.registry import build_encoder
from frepa.encoders.slice_transfer import SliceTransfer, TransformerBlock, _positions, pad_stacks
from frepa.errors import InputError
from frepa.heads.segmenter import SegmentationHead


@pytest.fixture(scope="module")
def encoder2d() -> Encoder:
    torch.manual_seed(0)
    return build_encoder("convnext_atto", output_stride=8)


@pytest.fixture
def transfer(encoder2d: Encoder) -> SliceTransfer:
    torch.manual_seed(1)
    return SliceTransfer(encoder2d, width=32, heads=4, chunk=3)


def test_features_of_a_volume(transfer: SliceTransfer) -> None:
    features = transfer(torch.rand(2, 2, 5, 20, 33))
    assert transfer.stride == (1, 8, 8)
    assert features.dense.shape == (2, 32, 5, 3, 5)
    head = SegmentationHead(transfer.stage_shapes, 2)
    assert head([features.dense], (5, 20, 33)).shape == (2, 2, 5, 20, 33)


def test_frozen_and_trained_part_together_are_the_encoder(transfer: SliceTransfer, encoder2d: Encoder) -> None:
    for encoder, x in ((transfer, torch.rand(1, 2, 3, 20, 33)), (encoder2d, torch.rand(1, 4, 20, 33))):
        encoder.eval()
        parts = encoder.transform(encoder.encode_frozen(x).dense)
        assert torch.equal(parts.dense, encoder(x).dense)
    frozen = set(map(id, transfer.frozen_part.parameters()))
    asks = {id(parameter): parameter.requires_grad for parameter in transfer.freeze().parameters()}
    assert all(asks[key] == (key not in frozen) for key in asks)
    assert encoder2d.frozen_part is encoder2d


def test_slices_are_what_the_2d_encoder_sees(transfer: SliceTransfer, encoder2d: Encoder) -> None:
    volume = torch.rand(2, 2, 4, 16, 24)
    features = transfer.encode_slices(volume)
    with torch.no_grad():
        for row in range(2):
            for index in range(4):
                image, guide = volume[row, :1, index], volume[row, 1:, index]
                expected = encoder2d(torch.cat([image, image, image, guide])[None]).dense[0]
                torch.testing.assert_close(features[row, :, index], expected, rtol=1e-4, atol=1e-5)


def test_the_2d_encoder_never_changes() -> None:
    encoder2d = build_encoder("timm:resnet10t")  # has batch norm, whose statistics move in training mode
    before = {key: value.clone() for key, value in encoder2d.state_dict().items()}
    transfer = SliceTransfer(encoder2d, width=16, heads=2).train()
    assert transfer.training
    assert not any(module.training for module in encoder2d.modules())
    trainable = [parameter for parameter in transfer.freeze().parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(transfer.parameters(), 0.1)
    dense = transfer(torch.rand(2, 2, 3, 32, 32)).dense
    (dense * torch.randn_like(dense)).mean().backward()
    assert all(parameter.grad is not None for parameter in trainable)
    optimizer.step()
    for key, value in encoder2d.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_padding_slices_change_nothing(transfer: SliceTransfer) -> None:
    """A short volume gives the same features alone and beside a longer one, whatever fills its padding."""
    short, long = torch.rand(2, 3, 16, 16), torch.rand(2, 6, 16, 16)
    batch, mask = pad_stacks([short, long])
    assert mask.tolist() == [[True] * 3 + [False] * 3, [True] * 6]
    batch[0, :, 3:] = 7.0
    transfer.eval()
    with torch.no_grad():
        together = transfer(batch, mask).dense
        torch.testing.assert_close(together[:1, :, :3], transfer(short[None]).dense, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[1:], transfer(long[None]).dense, rtol=1e-4, atol=1e-5)
        assert together[0, :, 3:].abs().max() == 0


def test_slices_and_places_are_told_apart(transfer: SliceTransfer) -> None:
    """Without the two positions, permuting slices or places would only permute the features."""
    transfer.eval()
    features = torch.randn(1, transfer.encoder2d.channels, 4, 2, 3)
    with torch.no_grad():
        plain = transfer.transform(features).dense
        for axis in (2, 3, 4):
            assert (transfer.transform(features.flip(axis)).dense.flip(axis) - plain).abs().max() > 1e-2


def test_every_slice_and_place_reaches_every_other(transfer: SliceTransfer) -> None:
    features = torch.randn(1, transfer.encoder2d.channels, 4, 2, 3, requires_grad=True)
    weight = torch.randn(32)
    (transfer.transform(features).dense[0, :, 0, 0, 0] * weight).sum().backward()
    assert features.grad is not None
    assert features.grad.abs().amax((0, 1)).min() > 0


def test_block_against_torch_attention() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(16, 4)
    oracle = torch.nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    names = {
        "self_attn.in_proj_weight": "qkv.weight", "self_attn.in_proj_bias": "qkv.bias",
        "self_attn.out_proj.weight": "out.weight", "self_attn.out_proj.bias": "out.bias",
        "linear1.weight": "mlp.0.weight", "linear1.bias": "mlp.0.bias",
        "linear2.weight": "mlp.2.weight", "linear2.bias": "mlp.2.bias",
        "norm1.weight": "norm_attention.weight", "norm1.bias": "norm_attention.bias",
        "norm2.weight": "norm_mlp.weight", "norm2.bias": "norm_mlp.bias",
    }  # fmt: skip
    state = block.state_dict()
    oracle.load_state_dict({theirs: state[mine] for theirs, mine in names.items()})
    x = torch.randn(3, 5, 16)
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1]], dtype=torch.bool)
    torch.testing.assert_close(block(x), oracle(x))
    masked = block(x, real[:, None, None])
    torch.testing.assert_close(masked[real], oracle(x, src_key_padding_mask=~real)[real])


def test_positions_are_the_closed_form() -> None:
    table = _positions((3, 5), torch.zeros(1, 16)).view(3, 5, 16)
    for row, column in [(0, 0), (2, 1), (1, 4)]:
        for wave in range(4):
            rate = 10_000 ** (-2 * wave / 8)
            for offset, place in ((0, row), (8, column)):
                assert table[row, column, offset + wave] == pytest.approx(math.sin(place * rate), abs=1e-6)
                assert table[row, column, offset + 4 + wave] == pytest.approx(math.cos(place * rate), abs=1e-6)


def test_guide_is_filtered_slice_by_slice(transfer: SliceTransfer) -> None:
    volume = torch.rand(2, 1, 3, 16, 16)
    guide = transfer.make_guide(volume)
    assert guide.shape == volume.shape
    for row in range(2):
        for index in range(3):
            alone = hessian_guide(volume[row : row + 1, :, index], kind="frangi")[0]
            torch.testing.assert_close(guide[row, :, index], alone)
    assert build_encoder("vit3d_tiny").make_guide(volume).shape == volume.shape


def test_saved_whole_and_loaded_without_the_2d_run(transfer: SliceTransfer, tmp_path) -> None:
    save_encoder(tmp_path / "volume", transfer)
    loaded = load_encoder(tmp_path / "volume")
    x = torch.rand(1, 2, 3, 16, 16)
    transfer.eval()
    with torch.no_grad():
        assert torch.equal(loaded(x).dense, transfer(x).dense)
    assert loaded.stride == (1, 8, 8)


def test_specification(encoder2d: Encoder, tmp_path) -> None:
    save_encoder(tmp_path, encoder2d)
    transfer = load_encoder(f"slices:{tmp_path},rounds=1,width=16,heads=2")
    assert isinstance(transfer, SliceTransfer)
    assert (len(transfer.intra), transfer.channels) == (1, 16)
    assert fingerprint(transfer.encoder2d) == fingerprint(encoder2d)
    with pytest.raises(InputError, match="Did you mean rounds"):
        load_encoder(f"slices:{tmp_path},round=1")
    untrained = load_encoder("slices:random:convnext_atto,guide=none,width=16,heads=2")
    assert (untrained.guide, untrained.dims, untrained.in_channels) == ("none", 3, 2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cache_computes_once(transfer: SliceTransfer, tmp_path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    cache = FeatureCache(tmp_path, transfer, dtype=dtype)
    volume = torch.rand(2, 4, 16, 16)
    expected = transfer.encode_slices(volume[None])[0]
    first = cache.features(volume)
    monkeypatch.setattr(transfer, "encode_slices", lambda *_: pytest.fail("computed again"))
    again = cache.features(volume)
    assert torch.equal(first, again)
    assert torch.equal(again, expected.to(again.dtype))
    assert str(again.dtype) == f"torch.{dtype}"
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_cache_is_keyed_by_content_and_encoder(transfer: SliceTransfer, tmp_path) -> None:
    cache = FeatureCache(tmp_path, transfer)
    volume = torch.rand(2, 4, 16, 16)
    changed = volume.clone()
    changed[1, 0, 0, 0] += 1e-3  # the guide alone
    other = SliceTransfer(build_encoder("convnext_atto", output_stride=8), width=32, heads=4)
    paths = {
        cache.path(volume),
        cache.path(changed),
        cache.path(volume.reshape(2, 16, 4, 16)),
        FeatureCache(tmp_path, other).path(volume),
        FeatureCache(tmp_path, transfer, dtype="float16").path(volume),
    }
    assert len(paths) == 5
    assert cache.path(volume.clone()) == cache.path(volume)
    # The blocks are trained while the cache is used: they are no part of the key.
    with torch.no_grad():
        transfer.project.weight.add_(1)
    assert FeatureCache(tmp_path, transfer).path(volume) == cache.path(volume)


def test_cache_replaces_half_a_file(transfer: SliceTransfer, tmp_path) -> None:
    cache = FeatureCache(tmp_path, transfer)
    volume = torch.rand(2, 2, 16, 16)
    whole = cache.features(volume)
    path = cache.path(volume)
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(cache.features(volume), whole)
    assert torch.equal(cache.features(volume), whole)


def test_wrong_requests_are_named(transfer: SliceTransfer, encoder2d: Encoder, tmp_path) -> None:
    with pytest.raises(InputError, match="needs a 2D encoder"):
        SliceTransfer(build_encoder("vit3d_tiny"))
    with pytest.raises(InputError, match="multiple of 4 and of its 3 heads"):
        SliceTransfer(encoder2d, width=32, heads=3)
    with pytest.raises(InputError, match="3D images with 2 channels"):
        transfer(torch.rand(1, 4, 3, 16, 16))
    with pytest.raises(InputError, match="Did you mean float16"):
        FeatureCache(tmp_path, transfer, dtype="float61")
