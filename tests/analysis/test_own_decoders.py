"""Reconstructions by the decoder of pretraining: against the pictures that methods make themselves, and from runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from frepa import cli
from frepa.analysis.corruptions import corrupted, masked, masked_places
from frepa.analysis.own_decoders import NoDecoder, own_decoder
from frepa.checkpoints import Checkpoints
from frepa.encoders.contract import Encoder
from frepa.encoders.reference import EncoderReference, open_encoder
from frepa.encoders.registry import build_encoder
from frepa.pretraining.methods.contract import Batch, Setting
from frepa.pretraining.methods.registry import METHODS, build_method
from frepa.verbs.pretrain import pretrain
from tiny_studies import write_textures

# Method, axes, encoder with options, and the guide as a target
CASES = {
    "frepa": ("frepa", 2, "timm:test_convnext", {}, "none"),
    "mfm": ("mfm", 2, "timm:test_convnext", {}, "frangi"),
    "simmim": ("simmim", 2, "timm:test_vit", {"image_size": 32}, "frangi"),
    "simmim without token": ("simmim", 2, "timm:test_convnext", {}, "none"),
    "mae": ("mae", 2, "timm:test_vit", {"image_size": 32}, "none"),
    "mae in 3D": ("mae", 3, "vit3d_tiny", {"image_size": 32, "patch_size": 8, "depth": 1}, "frangi"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_told_is_what_the_method_itself_shows(case: str) -> None:
    """Of the images and patches that the method drew, and with their guide."""
    name, dims, architecture, more, target = CASES[case]
    guide, side = "none" if target != "none" else "frangi", 32
    torch.manual_seed(0)
    encoder = build_encoder(architecture, dims=dims, guide=guide, **more)
    method = build_method(name, METHODS.options(name)(augment=False), Setting(
        encoder, 1, side, "crop", 0, guide_target=target)).eval()  # fmt: skip
    images = torch.rand(3, 1, *(side,) * dims, generator=torch.Generator().manual_seed(1))
    batch = Batch(images, torch.ones(3, dtype=torch.bool), [0, 1, 2], augment=False, shown=3)
    with torch.no_grad():
        shown = method(batch).pictures
        assert shown is not None
        rows = shown.rows
        hidden = None
        if name in ("mae", "simmim"):
            hidden = (shown.corrupted != shown.original).any(1, keepdim=True)
            assert 0 < hidden.float().mean() < 1
        seen = torch.where(hidden, 0.5, shown.corrupted) if hidden is not None else shown.corrupted
        told = method.reconstruct(seen, encoder.make_guide(images)[rows], hidden, shown.original)
    assert told.shape == shown.reconstruction.shape
    assert torch.allclose(told, shown.reconstruction, atol=1e-5)


def test_nothing_hidden_and_nothing_seen() -> None:
    """MAE of an image all of whose patches are hidden sees one of them; of one without, each patch is told."""
    encoder = build_encoder("timm:test_vit", dims=2, guide="none", image_size=32)
    method = build_method("mae", METHODS.options("mae")(), Setting(encoder, 1, 32, "crop", 0)).eval()
    images, guide = torch.rand(2, 1, 32, 32), torch.zeros(2, 1, 32, 32)
    with torch.no_grad():
        blind = method.reconstruct(images, guide, torch.ones(2, 1, 32, 32, dtype=torch.bool), images)
        whole = method.reconstruct(images, guide, None, images)
    step = method.stride[0]
    assert torch.equal(blind[..., :step, :step], images[..., :step, :step])
    assert not torch.isclose(blind[..., step:, step:], images[..., step:, step:]).any(dim=(1, 2, 3)).all()
    assert (whole != images).flatten(1).float().mean(1).min() > 0.9
    # The mean of each patch was put back
    off = whole - images
    assert whole.isfinite().all()
    assert off.abs().mean() < 1


def test_places_are_those_that_are_masked() -> None:
    images = torch.rand(5, 3, 32, 32)
    images[2:4] = images[2:4, :1]  # grey among colour
    changed = (corrupted(masked("zero", 0.5), images, 3, 7) != images).any(1, keepdim=True)
    assert torch.equal(masked_places(images, 3, 7, "zero", 0.5), changed)
    assert 0.1 < changed.float().mean() < 0.9


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    source = write_textures(root / "images", 12, 32)
    common = {"image_size": 32, "batch_size": 2, "num_workers": 0, "quiet": True, "encoder": "timm:test_convnext"}
    pretrain(str(source), out=str(root / "frepa"), max_steps=2, ema_decay=0.9, checkpoint_every=1, **common)
    pretrain(str(source), out=str(root / "mfm"), method="mfm", max_steps=1, guide_as="target", **common)
    return root


def opened(run: Path) -> tuple[Encoder, EncoderReference]:
    return open_encoder(str(run))


def test_the_decoder_is_that_of_the_state_with_this_encoder(runs: Path, tmp_path: Path) -> None:
    """Averaged weights: what is kept of the run is the average, and so is the decoder."""
    run = tmp_path / "run"
    shutil.copytree(runs / "frepa", run)
    found = own_decoder(*opened(run))
    step, state = Checkpoints(run / "checkpoints").load_newest(print) or (0, {})
    assert found.words == f"the decoder of frepa itself, of step {step}"
    own = found.method.decoder.state_dict()
    assert all(torch.equal(own[n], state["states"]["ema"][f"module.decoder.{n}"]) for n in own)
    assert not all(torch.equal(own[n], state["states"]["method"][f"decoder.{n}"]) for n in own)
    grey = torch.rand(2, 1, 32, 32)
    encoder, reference = opened(run)
    guide = encoder.make_guide(grey)
    told = found(grey, guide, None, grey)
    by_hand = found.method.decoder(encoder(encoder.prepare_input(grey, guide)).dense, (32, 32))[:, :1]
    assert torch.equal(told, by_hand)
    assert found(grey.expand(-1, 3, -1, -1), guide, None, grey).shape == (2, 3, 32, 32)
    # An encoder that was trained further has no decoder there
    with torch.no_grad():
        next(encoder.parameters()).add_(1)
    with pytest.raises(NoDecoder, match="its states are of another encoder than it keeps"):
        own_decoder(encoder, reference)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(NoDecoder, match="it holds no state any more"):
        own_decoder(*opened(run))
    (run / "config.yaml").unlink()
    with pytest.raises(NoDecoder, match="does not say how it was pretrained"):
        own_decoder(*opened(run))
    with pytest.raises(NoDecoder, match="it is no folder of a run"):
        own_decoder(*open_encoder("random:tiny_for_tests"))


def test_by_the_verb(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["analyze", "reconstructions", str(runs / "images"), "--quiet", "--num-workers=0", "--crop-size=32"]
    encoders = ["--encoder", f"F={runs / 'frepa'}", "--encoder", f"M={runs / 'mfm'}"]
    encoders += ["--encoder", "R=random:tiny_for_tests"]
    assert cli.main([*words, *encoders, "--out", str(tmp_path / "own"), "--kind.own-decoder", "--kind.shown=1"]) == 0
    assert "R has no decoder of its own (it is no folder of a run), and one is fitted." in capsys.readouterr().err
    assert cli.main([*words, *encoders, "--out", str(tmp_path / "fitted"), "--kind.shown=1"]) == 0
    own, fitted = (json.loads((tmp_path / name / "results.json").read_text())["numbers"] for name in ("own", "fitted"))
    for kind in ("masked", "low-passed"):
        assert own[kind]["F"]["told_by"] == "the decoder of frepa itself, of step 2"
        assert own[kind]["M"]["told_by"] == "the decoder of mfm itself, of step 1"
        assert own[kind]["R"] == fitted[kind]["R"]
        assert fitted[kind]["F"]["told_by"] == own[kind]["R"]["told_by"] == "ridge regression"
        assert own[kind]["F"]["rmse"] != fitted[kind]["F"]["rmse"]
        assert np.isfinite(own[kind]["M"]["rmse"]["mean"])
    page = (tmp_path / "own/report.html").read_text()
    assert "F and M: told by the decoder that the run was pretrained with" in page
    assert "told by the decoder that the run" not in (tmp_path / "fitted/report.html").read_text()
