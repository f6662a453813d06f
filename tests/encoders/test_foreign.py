from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from frepa.encoders.files import load_encoder, save_encoder
from frepa.errors import InputError

NAME = "convnext_atto"


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(5)
    return timm.create_model(NAME, num_classes=7).eval()


@pytest.fixture(scope="module")
def checkpoint(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


def expected(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What timm itself computes, from images that are normalised as its configuration says."""
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    features = model.forward_features((x - mean) / std)
    return model.head.norm(features)


def test_same_features_as_timm_and_the_guide_is_dropped(model: torch.nn.Module, checkpoint: Path) -> None:
    encoder = load_encoder(f"timm:{NAME}@{checkpoint}")
    assert (encoder.guide, encoder.in_channels, encoder.image_channels) == ("none", 4, 3)
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        dense = encoder(torch.cat([image, torch.rand(2, 1, 64, 96)], dim=1)).dense
        torch.testing.assert_close(dense, expected(model, image))


def test_saved_again_it_needs_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    encoder = load_encoder(f"timm:{NAME}@{checkpoint},mean=0.5/0.5/0.5,std=[0.2,0.2,0.2]")
    save_encoder(tmp_path, encoder)
    x = torch.rand(1, 4, 40, 40)
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path)(x).dense, encoder(x).dense)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder."])
def test_checkpoints_of_training_programs(
    model: torch.nn.Module, checkpoint: Path, tmp_path: Path, prefix: str
) -> None:
    state = {prefix + key: value for key, value in model.state_dict().items() if not key.startswith("head.fc")}
    state["decoder.weight"] = torch.zeros(3)
    path = tmp_path / "last.pth"
    torch.save({"epoch": 3, "state_dict": state}, path)
    x = torch.rand(1, 4, 40, 40)
    with torch.no_grad():
        theirs = load_encoder(f"timm:{NAME}@{path}")(x).dense
        assert torch.equal(theirs, load_encoder(f"timm:{NAME}@{checkpoint}")(x).dense)


def test_vit_positions_are_resampled(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    save_file(model.state_dict(), path)
    encoder = load_encoder(f"timm:vit_tiny_patch16_224@{path},image_size=224")
    image = torch.rand(1, 3, 224, 224)
    mean, std = encoder.input.mean, encoder.input.std
    with torch.no_grad():
        tokens = model.forward_features((image - mean) / std)[:, 1:]
        dense = encoder(encoder.prepare_input(image)).dense
    torch.testing.assert_close(dense, tokens.transpose(1, 2).reshape(1, 192, 14, 14))
    assert load_encoder(f"timm:vit_tiny_patch16_224@{path}").trunk.pos_embed.shape == (1, 32 * 32 + 1, 192)


def test_a_trunk_trained_with_a_guide_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "four.safetensors"
    save_file(timm.create_model(NAME, num_classes=0, in_chans=4).state_dict(), path)
    with pytest.raises(InputError, match=r"4 input channels.*guide=frangi"):
        load_encoder(f"timm:{NAME}@{path}")
    encoder = load_encoder(f"timm:{NAME}@{path},guide=frangi")
    assert (encoder.guide, encoder.uses_guide, encoder.input.mean) == ("frangi", True, None)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(InputError, match="not safe"):
        load_encoder(f"timm:{NAME}@{path}")


def test_checkpoints_that_do_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names an architecture, not weights"):
        load_encoder(f"timm:{NAME}")
    with pytest.raises(InputError, match="is a folder: name the file in it"):
        load_encoder(f"timm:convnext_femto@{tmp_path}")
    with pytest.raises(InputError, match="was not found"):
        load_encoder(f"timm:{NAME}@{tmp_path / 'none.safetensors'}")
    with pytest.raises(InputError, match=r"does not fit timm:convnext_femto.*size mismatch"):
        load_encoder(f"timm:convnext_femto@{checkpoint}")
    with pytest.raises(InputError, match="it lacks"):
        load_encoder(f"timm:resnet10t@{checkpoint}")
    with pytest.raises(InputError, match="trained without a guide"):
        load_encoder(f"timm:{NAME}@{checkpoint},guide=frangi")
    deeper = timm.create_model(NAME, num_classes=0, depths=(2, 2, 7, 2)).state_dict()
    save_file(deeper, tmp_path / "deeper.safetensors")
    with pytest.raises(InputError, match=r"more than the trunk.*stages\.2\.blocks\.6"):
        load_encoder(f"timm:{NAME}@{tmp_path / 'deeper.safetensors'}")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(f"timm:{NAME}@{tmp_path / 'empty.pth'}")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    with pytest.raises(InputError, match="no state dict"):
        load_encoder(f"timm:{NAME}@{tmp_path / 'nothing.pth'}")
