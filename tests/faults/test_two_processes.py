"""Promise: one process at a time writes a run or a store, and a second one is told who does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import yaml

from faults_helpers import ENCODER, PRETRAIN, write_images, write_labelled
from frepa.cli import main
from frepa.images.store.layout import StoreFolder
from frepa.locks import Lock
from frepa.run_folders import LOCK


@pytest.mark.parametrize("verb", ["pretrain", "segment", "classify", "detect", "check", "demo", "prepare", "compare"])
@pytest.mark.parametrize("how", [[], ["--overwrite"]])
def test_a_second_command_is_told_who_is_at_work(tmp_path, capsys, verb, how):
    scans, labelled = write_images(tmp_path / "scans"), write_labelled(tmp_path / "labelled")
    out = tmp_path / "out"
    study = {"encoders": {"one": ENCODER}, "tasks": {"vessels": {"segment": str(labelled)}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    head = [f"--encoder={ENCODER}", "--max-steps=1", "--quiet"]
    words = {
        "pretrain": ["pretrain", str(scans), *PRETRAIN],
        "segment": ["segment", str(labelled), *head],
        "classify": ["classify", str(labelled), *head],
        "detect": ["detect", str(labelled), *head],
        "check": ["check", str(scans), "--quiet", "--num-workers=0"],
        "demo": ["demo", "--quiet"],
        "compare": ["compare", str(tmp_path / "study.yaml"), "--quiet"],
        "prepare": ["prepare", str(scans), "--quiet", "--num-workers=0"],
    }[verb]
    out.mkdir()
    place = out / LOCK
    if verb == "prepare":
        place = StoreFolder(out).lock
        place.parent.mkdir()
    with Lock(place, "the first"):
        assert main([*words, f"--out={out}", *how]) == 2
    said = capsys.readouterr().err
    assert f"process {os.getpid()} on {socket.gethostname()} has been at work there since" in said
    assert not [path for path in out.rglob("*") if path.is_file() and path.name != "plan.json"]


@pytest.mark.slow
def test_of_two_runs_into_one_folder_one_trains(tmp_path):
    scans, run = write_images(tmp_path / "scans"), tmp_path / "run"
    words = ["pretrain", str(scans), f"--out={run}", *PRETRAIN, "--max-steps=8", "--num-workers=0", "--resume"]
    both = [
        subprocess.Popen([sys.executable, "-m", "frepa.cli", *words], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    # The slower one may find the run finished, and then has nothing to do
    assert codes in ([0, 0], [0, 2]), errors
    if codes == [0, 2]:
        assert any("has been at work there since" in error for error in errors)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8
