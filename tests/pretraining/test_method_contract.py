"""A method from outside the package trains, resumes and reports by the contract alone; options are objects."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

import frepa
from frepa import cli
from frepa.errors import InputError
from frepa.pretraining.methods.frepa import Frepa
from frepa.verbs.pretrain import _with_preset
from toy_method import Toy

TINY = {"encoder": "timm:test_convnext", "image_size": 32, "batch_size": 4, "num_workers": 0, "quiet": True,
        "val_images": 2, "max_steps": 3}  # fmt: skip


@pytest.fixture
def manifest(tmp_path):
    """Eight images of two classes, one of them without a class."""
    rows = ["path,label"]
    for seed in range(8):
        values = np.random.default_rng(seed).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{seed}.png")
        rows.append(f"{seed}.png,{'' if seed == 3 else ('benign', 'malignant')[seed % 2]}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "list.csv"


def test_a_method_from_outside_trains_by_its_name_and_by_its_options(manifest, tmp_path):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if name != "quiet"]
    out = tmp_path / "typed"
    method = ["--method", "toy_method:toy", "--method.weight", "0.5"]
    assert cli.main(["pretrain", str(manifest), f"--out={out}", *words, *method, "--quiet"]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "loss" in row]
    assert [row["step_seen"] for row in trained] == [0, 1, 2]
    assert sum(row["labelled"] for row in trained) in (10, 11)  # of 12 samples; one image has no class
    for row in trained:
        assert row["loss"] == pytest.approx(0.5 * row["mean_error"], rel=1e-6)
    assert yaml.safe_load((out / "config.yaml").read_text())["method"] == {"name": "toy_method:toy", "weight": 0.5}
    assert not (out / "reconstructions").exists()  # it shows none
    assert "toy_method:toy on 8 images" in (out / "report.html").read_text()
    again = frepa.pretrain(str(manifest), out=str(tmp_path / "called"), method=Toy(weight=0.5), **TINY)
    assert (again / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()
    copy = tmp_path / "copied"
    assert cli.main(["pretrain", "--config", str(out / "config.yaml"), f"--out={copy}", "--quiet"]) == 0
    assert (copy / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()


def test_resuming_with_other_options_of_the_method_is_refused(manifest, tmp_path):
    run = str(tmp_path / "run")
    frepa.pretrain(str(manifest), out=run, method=Toy(), **TINY)
    with pytest.raises(InputError, match=r"method\.weight: was 1\.0, now 2\.0"):
        frepa.pretrain(str(manifest), out=run, method=Toy(weight=2.0), resume=True, **TINY)


def test_a_method_that_is_not_there_is_named(manifest, tmp_path):
    for method, message in (
        ("no_such_module:toy", "cannot be imported"),
        ("toy_method:tyo", "registers no pretraining method"),
    ):
        with pytest.raises(InputError, match=message):
            frepa.pretrain(str(manifest), out=str(tmp_path / "run"), method=method, **TINY)


def test_a_preset_lies_beneath_what_is_given():
    whole = _with_preset({"preset": "paper", "lr": 0.1, "method": {"name": "frepa", "mask_ratio": 0.2}})
    assert (whole["lr"], whole["epochs"]) == (0.1, 100)
    assert (whole["method"]["mask_ratio"], whole["method"]["consistency_weight"]) == (0.2, 0.5)
    assert Frepa(**{k: v for k, v in whole["method"].items() if k != "name"}).objective.consistency == 0.5
    with pytest.raises(InputError, match="by its name"):
        _with_preset({"preset": "paper", "method": Frepa()})
