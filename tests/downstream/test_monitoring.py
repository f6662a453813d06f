"""The probe of a run in training gives what the verbs give for the same encoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import frepa
from frepa.downstream.monitoring import ClassificationMonitor, SegmentationMonitor, open_monitor
from frepa.encoders.files import save_encoder
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError
from frepa.images.angiograms import angiogram


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Vessels with masks; two classes in folders."""
    root = tmp_path_factory.mktemp("sets")
    for kind in ("vessels/images", "vessels/masks", "classes/dark", "classes/bright"):
        (root / kind).mkdir(parents=True)
    for seed in range(12):
        image, mask = angiogram(48, seed)
        grey = (image * 255).astype(np.uint8)
        Image.fromarray(grey).save(root / "vessels/images" / f"{seed}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "vessels/masks" / f"{seed}.png")
        noise = np.random.default_rng(seed).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(np.where(np.arange(40) % 4 < 2, noise, grey[:40, :40])).save(
            root / "classes" / ("dark", "bright")[seed % 2] / f"{seed}.png"
        )
    return root


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return build_encoder("timm:test_convnext", dims=2).train()


def test_the_score_of_masks_is_that_of_the_linear_head_on_the_validation_part(sets, encoder, tmp_path):
    monitor = open_monitor(str(sets / "vessels"), 2, size=32, resized=False)
    assert isinstance(monitor, SegmentationMonitor)
    cases = [len(part) for part in monitor.cases]
    assert monitor.cost == pytest.approx(sum(cases) * (48 / 32) ** 2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    first = monitor(encoder)
    assert encoder.training
    assert all(p.requires_grad for p in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    save_encoder(tmp_path / "encoder", encoder, {})
    run = frepa.segment(
        [str(sets / "vessels")], encoder=str(tmp_path / "encoder"), out=str(tmp_path / "run"), head="linear",
        features="last", crop_size=32, overlap=0.25, augment=False, num_workers=0, quiet=True,
    )  # fmt: skip
    training = json.loads((run / "results.json").read_text())["training"][0]
    assert first == {"probe": pytest.approx(training["probe"]["val_dsc"], abs=1e-6)}
    # It follows the weights, and gives the same for the same
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(0.0)
    assert monitor(encoder)["probe"] < first["probe"]
    encoder.load_state_dict(before)
    assert monitor(encoder) == first


def test_the_score_of_classes_is_that_of_the_linear_head_on_the_validation_part(sets, encoder, tmp_path):
    monitor = open_monitor(str(sets / "classes"), 2, size=32, resized=True)
    assert isinstance(monitor, ClassificationMonitor)
    found = monitor(encoder)
    save_encoder(tmp_path / "encoder", encoder, {})
    run = frepa.classify(
        str(sets / "classes"), encoder=str(tmp_path / "encoder"), out=str(tmp_path / "run"), head="linear",
        image_size=32, num_workers=0, quiet=True,
    )  # fmt: skip
    training = json.loads((run / "results.json").read_text())["training"][0]
    expected = training["val_auc"] if training["val_auc"] is not None else training["val_acc"]
    assert found["probe"] == pytest.approx(expected, abs=1e-6)


def test_a_source_that_is_no_labelled_set_is_told_what_it_lacks(sets, tmp_path):
    (tmp_path / "plain").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "plain" / "a.png")
    with pytest.raises(InputError, match=r"plain: not a labelled set\. As images with masks: .*As images with classes"):
        open_monitor(str(tmp_path / "plain"), 2, size=32, resized=True)
    with pytest.raises(InputError, match="not a labelled set"):
        open_monitor(str(sets / "vessels"), 3, size=32, resized=True)
