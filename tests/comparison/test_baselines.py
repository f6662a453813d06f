"""Floors and ceilings of a comparison: the guide alone, a second observer, networks trained end to end."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage.filters import frangi

import tiny_encoders  # noqa: F401 (registers them)
from frepa.encoders.files import load_encoder, save_encoder
from frepa.encoders.reference import open_encoder, reopen_encoder
from frepa.encoders.registry import encoder_names
from frepa.errors import InputError
from frepa.heads.classifier import ClassificationHead
from frepa.heads.segmenter import SegmentationHead
from frepa.images.angiograms import angiogram
from frepa.pretraining.starting import starting_encoder
from frepa.verbs.classify import classify
from frepa.verbs.compare import compare
from frepa.verbs.segment import segment
from tiny_runs import masked_set


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """It is slow, and test_compare.py has one."""
    monkeypatch.setattr("frepa.comparison.run.write_page", lambda *given: None)


def table_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(folder: Path, study: dict[str, Any]) -> Path:
    (folder / "study.yaml").write_text(yaml.safe_dump({"resamples": 200, **study}))
    return Path(compare(str(folder / "study.yaml"), out=str(folder / "out"), quiet=True, threads=1))


def dsc(truth: np.ndarray, found: np.ndarray) -> float:
    return 2 * float((truth & found).sum()) / float(truth.sum() + found.sum())


def chase(root: Path, count: int = 14) -> Path:
    """The layout of CHASE_DB1 with its two observers; the second one's lines are a pixel to the right."""
    root.mkdir(parents=True)
    for number in range(1, count + 1):
        image, mask = angiogram(64, number)
        for eye in "LR":
            name = f"Image_{number:02d}{eye}"
            Image.fromarray((np.repeat(image[..., None], 3, -1) * 255).astype(np.uint8)).save(root / f"{name}.jpg")
            for which, drawn in (("1stHO", mask), ("2ndHO", np.roll(mask, 1, 1))):
                Image.fromarray(drawn.astype(bool)).save(root / f"{name}_{which}.png")
    return root


def test_guide_and_observer_stand_beside_the_encoders(tmp_path):
    """The observer by NumPy; the guide by scikit-image's filter with what was chosen."""
    root = chase(tmp_path / "CHASE_DB1")
    scales = {"guide": {"scales": ["1-2"], "channels": ["green"]}, "observer": None}
    study = {"encoders": {"tiny": "random:tiny_for_tests"}, "tasks": {"eyes": {"segment": str(root), "crop_size": 64}},
             "baselines": scales}  # fmt: skip
    out = run(tmp_path, study)
    entries = {(r["row"], r["measure"]): r for r in table_of(out / "table.csv")}
    assert entries["guide", "dsc"]["head"] == entries["observer", "dsc"]["head"] == "none"
    cells = {r["row"]: r["cell"] for r in table_of(out / "cells.csv")}
    chosen = json.loads((out / "cells" / cells["guide"] / "results.json").read_text())["chosen"][0]
    assert chosen["guide"] in ("frangi_dark:1-2", "frangi:1-2")  # the vessels are dark
    for row in table_of(out / "cells" / cells["guide"] / "cases.csv"):
        truth = np.asarray(Image.open(root / f"{row['case']}_1stHO.png"))
        green = np.asarray(Image.open(root / f"{row['case']}.jpg"))[..., 1] / 255
        options = {"sigmas": (1, 2), "alpha": 0.5, "beta": 0.5, "mode": "nearest"}
        measure = frangi(green, black_ridges=True, **options)
        if chosen["guide"].startswith("frangi:"):
            measure = np.maximum(measure, frangi(green, black_ridges=False, **options))
        assert float(row["dsc"]) == pytest.approx(dsc(truth, measure > chosen["threshold"]), abs=0.03)
    for row in table_of(out / "cells" / cells["observer"] / "cases.csv"):
        first, second = (np.asarray(Image.open(root / f"{row['case']}_{k}HO.png")) for k in ("1st", "2nd"))
        assert float(row["dsc"]) == pytest.approx(dsc(first, second), abs=1e-6)
    pairs = {frozenset((r["a"], r["b"])) for r in table_of(out / "tests.csv")}
    assert frozenset(("tiny", "guide")) in pairs
    assert "| observer | none |" in (out / "table.md").read_text()


def test_baselines_that_do_not_suit_are_marked(tmp_path):
    masked_set(tmp_path / "balls")
    study = {"encoders": {"tiny": "random:tiny_for_tests"}, "baselines": ["observer"],
             "tasks": {"balls": {"segment": str(tmp_path / "balls"), "crop_size": 32}}}  # fmt: skip
    row = next(r for r in table_of(run(tmp_path, study) / "cells.csv") if r["row"] == "observer")
    assert (row["status"], "no masks of a second observer" in row["reason"]) == ("does not fit", True)


def bars(root: Path, count: int = 16) -> Path:
    """Upright and lying bars of one brightness; the upright ones alone are labelled: no pixel tells by itself."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        image, mask = rng.normal(60, 5, (32, 32)), np.zeros((32, 32), np.uint8)
        x, y = rng.integers(2, 28, 2)
        image[y : y + 3] = 180
        image[:, x : x + 3] = 180
        mask[:, x : x + 3] = 255
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


def test_a_supervised_network_learns_what_pixels_do_not_tell(tmp_path):
    root = bars(tmp_path / "bars")
    task = {"segment": str(root), "crop_size": 32, "augment": False}  # bars that are turned lie
    how = {"max_steps": 60, "batch_size": 4, "lr": 0.005}
    study = {"encoders": {"pixels": "pixels:2d"}, "baselines": {"supervised": how}, "tasks": {"bars": task}}
    scores = {
        r["row"]: float(r["value"]) for r in table_of(run(tmp_path, study) / "table.csv") if r["measure"] == "dsc"
    }
    assert scores["pixels"] < 0.75  # lying bars are as bright: at best half of what is marked is right
    assert scores["supervised"] > 0.9


def test_a_supervised_resnet_learns_what_brightness_does_not_tell(tmp_path):
    for kind, axis in (("lying", 0), ("upright", 1)):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(24):
            rng = np.random.default_rng(i)
            wave = np.sin(np.arange(24) * 0.8 + rng.uniform(0, 6))
            image = 120 + 60 * (wave[:, None] if axis == 0 else wave[None]) + rng.normal(0, 5, (24, 24))
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(tmp_path / "set" / kind / f"{i}.png")
    how = {"image_size": 24, "max_steps": 30, "batch_size": 16, "quiet": True, "num_workers": 0}
    aucs = {}
    for head in ("linear", "resnet"):
        done = classify(str(tmp_path / "set"), encoder="pixels:2d", out=str(tmp_path / head), head=head, **how)
        aucs[head] = done.results["test"]["auc"]["value"]
    assert aucs["resnet"] > 0.95
    assert aucs["linear"] < 0.9


def test_networks_begin_as_the_linear_head():
    torch.manual_seed(0)
    shapes = [(4, (1, 1))]
    net, linear = (SegmentationHead(shapes, 3, kind=kind) for kind in ("unet", "linear"))
    net.direct.load_state_dict({k: torch.randn_like(v) for k, v in linear.direct.state_dict().items()})
    linear.direct.load_state_dict(net.direct.state_dict())
    x = [torch.randn(2, 4, 20, 36)]
    assert torch.allclose(net(x, (20, 36)), linear(x, (20, 36)))
    volume = SegmentationHead([(1, (1, 1, 1))], 2, kind="unet")
    assert volume([torch.randn(1, 1, 8, 20, 16)], (8, 20, 16)).shape == (1, 2, 8, 20, 16)
    head = ClassificationHead(1, 4, hidden=0, network=3).eval()
    assert torch.equal(head(torch.randn(2, 1, 8, 12, 12)), torch.zeros(2, 4))
    with pytest.raises(InputError, match="needs every pixel: give --encoder pixels:2d"):
        SegmentationHead([(4, (2, 2))], 2, kind="unet")


def test_pixels_are_the_input():
    encoder, reference = open_encoder("pixels:2d")
    x = encoder.prepare_input(torch.rand(1, 1, 5, 7))
    assert torch.equal(encoder(x).dense, x[:, :3])
    assert reference.parameters == 0
    assert load_encoder("pixels:2d,guide=frangi_dark").channels == 4
    assert load_encoder("pixels:3d").channels == 1
    for wrong in ("pixels:4d", "pixels:2d,guid=none"):
        with pytest.raises(InputError, match=r"pixels:"):
            load_encoder(wrong)


def test_pixels_are_an_encoder_file_too(tmp_path):
    """As a bundle has it, and a head that somebody mailed: no file of theirs is opened."""
    for name in ("pixels:2d", "pixels:3d,guide=frangi"):
        save_encoder(tmp_path / "bundle", load_encoder(name))
        again, reference = open_encoder(str(tmp_path / "bundle"))
        x = torch.rand(1, 2, *[6] * again.dims) if again.dims == 3 else torch.rand(1, 4, 6, 6)
        assert torch.equal(again(x).dense, load_encoder(name)(x).dense)
        assert reference.weights == open_encoder(name)[1].weights
    assert reopen_encoder(replace(open_encoder("pixels:2d")[1], seal="")).dims == 2
    assert not [name for dims in (2, 3) for name in encoder_names(dims) if name.startswith("pixels")]
    with pytest.raises(InputError, match="--encoder pixels:2d: it has no weights"):
        starting_encoder("pixels:2d", None, dims=2, guide="none", uses_guide=True, tell=print)


def test_a_supervised_run_predicts_on_new_images(tmp_path):
    """It is a run as others are: its head file is opened again."""
    from frepa.downstream.trained import load_head

    root = bars(tmp_path / "bars", 12)
    done = segment([str(root)], encoder="pixels:2d", head="unet", features="last", crop_size=32, max_steps=2,
                   batch_size=2, out=str(tmp_path / "run"), quiet=True, num_workers=0)  # fmt: skip
    assert load_head(done).predict(root / "images/3.png").mask.shape == (32, 32)
