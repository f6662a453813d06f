"""The programs in benchmarks/ run: figures in the docs are made by them, and nothing else calls them."""

from __future__ import annotations

import argparse
import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
_TINY = ["--size", "32", "--batch", "2", "--steps", "2", "--look", "1", "--look-images", "2"]
_COMMANDS = {
    "consistency": ["{images}", *_TINY],
    "corruption": ["--size", "32", "--batch", "1", "--repeats", "1"],
    "corruption_profile": ["--images", "{images}", "--count", "1", "--draws", "1"],
    "decoder": ["{images}", *_TINY],
    "encoders_3d": ["mednext_tiny", "--size", "32"],
    "head_step": ["--batch", "1", "--size", "32", "--stages", "2", "--repeats", "1"],
    "long_lists": ["check", "prepare", "pretrain", "--files=20", "--rows=1100", "--repeats=1", "--work={work}"],
    "methods": ["--cases", "vit_tiny,patch_size=8,depth=1:32:1", "--repeats", "1"],
    "objective": ["--size", "32", "32", "--batch", "1", "--repeats", "1"],
    "store": ["--images", "4", "--volumes", "0", "--repeats", "1", "--steps", "1"],
    "training_step": ["--encoders", "convnext_atto", "--batch", "1", "--size", "32", "--repeats", "1"],
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of 64 x 64 with a bright square each, and its mask."""
    root = tmp_path_factory.mktemp("set")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number in range(12):
        image = np.random.default_rng(number).integers(0, 90, (64, 64), np.uint8)
        mask = np.zeros_like(image)
        mask[4 * number : 4 * number + 16, 20:40] = 255
        Image.fromarray(np.maximum(image, mask // 2)).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


def run(name: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_every_program_is_run_here():
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == {*_COMMANDS, "heads", "side_by_side"}


@pytest.mark.slow
@pytest.mark.parametrize("name", _COMMANDS)
def test_it_runs(name, labelled, tmp_path):
    done = run(name, [word.format(images=labelled / "images", work=tmp_path / "work") for word in _COMMANDS[name]])
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(character.isdigit() for character in done.stdout)


@pytest.mark.slow
def test_the_heads_curve_is_gone_on_with(labelled, tmp_path):
    words = [str(labelled), "--encoder", "random:vit_tiny,patch_size=8,depth=1", "--crop-size", "32", "--out"]
    out = tmp_path / "heads.csv"
    for steps in (["0"], ["0", "2"]):
        done = run("heads", [*words, str(out), "--steps", *steps])
        assert done.returncode == 0, done.stderr[-2000:]
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows] == ["0", "2"]
    assert all(0 <= float(row["test_dsc"]) <= 100 for row in rows)
    assert rows[0]["probe_val_dsc"] == rows[1]["probe_val_dsc"] == rows[0]["val_dsc"]


@pytest.mark.slow
def test_the_side_by_side_trains_and_reads(labelled, tmp_path):
    own = runpy.run_path(str(BENCHMARKS / "side_by_side.py"))
    options = argparse.Namespace(work=tmp_path, size=32, batch=2, steps=1, lr=1e-3, seed=0)
    (tmp_path / "images.csv").write_text(
        "path,modality\n" + "".join(f"{path},{('fundus', 'octa')[place % 2]}\n"
                                     for place, path in enumerate(sorted((labelled / "images").iterdir())))
    )  # fmt: skip
    encoder = "vit_tiny,patch_size=8,depth=1"
    run_folder, seconds = own["pretrained"](options, tmp_path / "images.csv", encoder, "mae", "none")
    assert seconds > 0
    assert own["pretrained"](options, tmp_path / "images.csv", encoder, "mae", "none") == (run_folder, 0.0)
    row = own["read"](options, run_folder, labelled, tmp_path / "reading")
    assert 0 <= row["dsc"] <= 100
    assert set(own["COLUMNS"]) >= set(row)
