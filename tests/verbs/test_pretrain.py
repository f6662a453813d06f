"""`frepa pretrain` from source to run folder, on a tiny encoder, and every wrong input a person may give it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import frepa
from frepa.errors import InputError
from frepa.images.angiograms import angiogram
from frepa.pretraining.methods.frepa import Frepa
from frepa.pretraining.validation import Validation

SMALL = {"name": "frepa", "spectrum_patch": 4, "image_patch": 8}
TINY = {"encoder": "timm:test_convnext", "image_size": 32, "batch_size": 4, "method": SMALL,
        "num_workers": 0, "quiet": True, "val_images": 2}  # fmt: skip


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(6):
        image, _ = angiogram(40 + 8 * (seed % 2), seed)  # mixed sizes
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / f"{seed}.png")
    return folder


def test_a_run_explains_itself_and_its_encoder_loads(images, tmp_path):
    out = frepa.pretrain(str(images), out=str(tmp_path / "run"), max_steps=3, **TINY)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [1, 2, 3]
    weights = {"rmse": 1, "gradient": 1, "hfl": 1}  # Frepa Eq. 11 without its consistency
    for row in trained:
        assert row["loss"] == pytest.approx(sum(w * row[name] for name, w in weights.items()), rel=1e-5)
    assert any("val_loss" in row for row in rows)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["encoder"] == "timm:test_convnext"
    assert config["precision"] in ("fp32", "bf16")  # resolved, not "auto"
    assert "Reconstructions" in (out / "report.html").read_text()
    assert list((out / "reconstructions").glob("epoch-*.png"))
    encoder = frepa.load_encoder(out)
    with torch.no_grad():
        features = encoder(torch.rand(1, encoder.in_channels, 40, 56))
    assert features.dense.shape[1] == encoder.channels
    assert encoder.guide == "frangi"


def test_an_unreadable_file_is_skipped_and_listed(images, tmp_path):
    whole = (images / "0.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    out = frepa.pretrain(str(images), out=str(tmp_path / "run"), max_steps=4, **TINY)
    listed = (out / "skipped.csv").read_text()
    assert "cut.png" in listed
    assert "0.png" not in listed


def test_more_options_train_too(images, tmp_path):
    out = frepa.pretrain(
        str(images), out=str(tmp_path / "run"), max_steps=4, accumulate=2, ema_decay=0.5, guide="none", fit="crop",
        **(TINY | {"method": Frepa(
            adversarial_weight=0.1, adversarial_start_epoch=0, focal_frequency_weight=0.1, consistency_weight=0.0,
            mask_noise="permute", spectrum_patch=4, image_patch=8,
        )}),
    )  # fmt: skip
    row = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line][-1]
    assert {"adversarial", "discriminator", "focal_frequency"} <= set(row)
    assert "consistency" not in row
    assert frepa.load_encoder(out).guide == "none"


def test_training_lowers_the_loss_on_held_out_images(images, tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "_draw", lambda *args: None)  # forty pictures take longer than the training
    out = frepa.pretrain(str(images), out=str(tmp_path / "run"), max_steps=60, lr=2e-3, **TINY)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val_rmse"] for row in rows if "val_rmse" in row]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "vit_bsae"}, "vit_base"),
        ({"method": "frepaa"}, "frepa"),
        ({"batch_size": 3, "accumulate": 2}, "batch-size 3"),
        ({"lr": 0.0}, "lr"),
        ({"image_size": 0}, "image-size"),
        ({"epochs": 0.0}, "epochs 0.0: expected a number above 0"),
        ({"clip": -1.0}, "clip -1.0: expected 0 or more"),
        ({"ema_decay": 1.0}, "ema-decay 1.0"),
        ({"num_workers": -1}, "num-workers -1"),
        ({"devices": "two"}, "devices two"),
        ({"warmup_steps": 50}, "warmup-steps"),
        ({"method": {"name": "frepa", "rmse_weight": -1.0}}, "rmse"),
        ({"method": {"name": "frepa", "mask_ratio": 1.5}}, "1.5"),
        ({"mask_ratio": 0.5}, r"belongs to the method: method=Frepa\(mask_ratio=\.\.\.\)"),
        ({"method": {"name": "frepa", "mask_rate": 0.5}}, "Did you mean mask_ratio"),
        ({"method": object()}, "not the options of a pretraining method"),
        ({"preset": "papr", "method": "frepa"}, "Did you mean paper"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing(images, tmp_path, change, message):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=message):
        frepa.pretrain(str(images), out=str(out), max_steps=4, **(TINY | change))
    assert not out.exists()


def test_wrong_sources_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        frepa.pretrain(str(tmp_path / "nowhere"), out=str(tmp_path / "run"), **TINY)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="empty"):
        frepa.pretrain(str(empty), out=str(tmp_path / "run"), **TINY)
    assert not (tmp_path / "run").exists()


def test_one_pixel_image_trains_beside_others(images, tmp_path):
    Image.fromarray(np.full((1, 1), 128, np.uint8)).save(images / "dot.png")
    out = frepa.pretrain(str(images), out=str(tmp_path / "run"), max_steps=4, **TINY)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert np.all(np.isfinite(losses))
