"""Promise: no success without data. A source that is lost ends the run, with its state saved and the reason named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from frepa.checkpoints import Checkpoints
from frepa.cli import main
from frepa.images.angiograms import angiogram
from frepa.pretraining.journal import Journal
from frepa.pretraining.loop import _for_method


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed in range(12):
        image, _ = angiogram(32, seed)
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / f"{seed:02d}.png")
    return folder


def _words(scans: Path, run: Path) -> list[str]:
    return ["pretrain", str(scans), f"--out={run}", "--encoder=timm:test_convnext", "--image-size=32", "--guide=none",
            "--batch-size=4", "--max-steps=14", "--method.spectrum-patch=4", "--method.image-patch=8", "--val-images=0",
            "--num-workers=0", "--quiet", "--resume"]  # fmt: skip


def test_a_lost_mount_ends_the_run_and_it_goes_on_when_it_is_back(scans, tmp_path, monkeypatch, capsys):
    run, away = tmp_path / "run", tmp_path / "away"
    whole = Journal.step

    def step(self, number, *args, **kwargs):
        whole(self, number, *args, **kwargs)
        if number == 3 and not away.exists():
            scans.rename(away)
            scans.mkdir()

    monkeypatch.setattr(Journal, "step", step)
    assert main(_words(scans, run)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "20 of the last 32 samples could not be read, and 20% are allowed" in said.err
    assert "--resume" in said.err
    assert not (run / "encoder.safetensors").exists()
    assert Checkpoints(run / "checkpoints").steps() == [8]
    skipped = (run / "skipped.csv").read_text().splitlines()
    assert len(skipped) > 5
    assert main(_words(scans, run)) == 2  # nothing is there
    scans.rmdir()
    away.rename(scans)
    (scans / "new.png").write_bytes((scans / "00.png").read_bytes())
    capsys.readouterr()
    assert main(_words(scans, run)) == 2
    assert "1 added (new.png) (12 records then, 13 now)" in capsys.readouterr().err
    (scans / "new.png").unlink()
    away.mkdir()
    assert main(_words(scans, run)) == 0
    assert (run / "encoder.safetensors").exists()
    # What was found before the state is still listed
    assert (run / "skipped.csv").read_text().splitlines() == skipped
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert all(("loss" in row) == (not 3 < row["step"] <= 8) for row in rows)


def test_what_is_missing_counts_the_same_however_a_batch_is_spread():
    """The gradient of a weighted mean of w * x: by hand, over one rank of four images, two of two, four of one."""
    images = torch.tensor([1.0, 2.0, 4.0, 8.0])
    for unreadable in ([], [2], [0, 3], [0, 1], [1, 2, 3], [0, 1, 2, 3]):
        readable = [place for place in range(4) if place not in unreadable]
        expected = images[readable].sum().item() / 4
        for ranks in (1, 2, 4):
            share, gradients = 4 // ranks, []
            for rank in range(ranks):
                own = [place for place in range(rank * share, (rank + 1) * share) if place in readable]
                image, grey = images[own].reshape(-1, 1, 1, 1), torch.ones(len(own))
                loaded = {"image": image, "grey": grey, "position": own, "inside": None, "told": None}
                batch, weight = _for_method(loaded, torch.device("cpu"), 0, 0, None, share)
                parameter = torch.zeros(1, requires_grad=True)
                ((parameter * batch.images).mean() * weight).backward()
                gradients.append(parameter.grad.item())
            assert sum(gradients) / ranks == pytest.approx(expected)


@pytest.mark.slow
def test_two_ranks_list_what_either_could_not_read_and_train_as_one(scans, tmp_path):
    for name in ("03.png", "08.png"):
        data = (scans / name).read_bytes()
        (scans / name).write_bytes(data[:60] + bytes(len(data) - 60))
    rows, skipped = {}, {}
    for devices in (1, 2):
        run = tmp_path / f"run{devices}"
        words = [*_words(scans, run), f"--devices={devices}", "--method.consistency-weight=0.5"]
        words.remove("--max-steps=14")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "frepa.cli", *words, "--max-steps=6"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        rows[devices] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        skipped[devices] = (run / "skipped.csv").read_text()
    assert skipped[1] == skipped[2]
    assert len(skipped[1].splitlines()) == 3
    for one, two in zip(rows[1], rows[2]):
        for name in ("loss", "rmse", "gradient", "hfl", "consistency", "gradient_norm"):
            assert two[name] == pytest.approx(one[name], rel=5e-3), (one["step"], name)
