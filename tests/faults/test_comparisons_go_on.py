"""Promise: a comparison that was killed goes on; finished cells are not computed again, and no half cell counts."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from faults_helpers import ENCODER, write_classes
from frepa.cli import main
from frepa.comparison.cells import Job, Record, compute
from frepa.locks import Lock
from frepa.run_folders import LOCK
from frepa.verbs import _comparing
from frepa.verbs.classify import classify

# Six steps of each head: the ninth is in the second of three cells
_KILLED = """
import os, signal, sys
from frepa.cli import main
from frepa.downstream.resuming import HeadState
original, steps = HeadState.after_step, [0]
def after_step(self, *args, **options):
    steps[0] += 1
    if steps[0] == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **options)
HeadState.after_step = after_step
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def words(tmp_path, monkeypatch) -> Callable[..., list[str]]:
    monkeypatch.setattr("frepa.comparison.run.write_page", lambda *given: None)  # slow
    task = {"classify": str(write_classes(tmp_path / "set")), "image_size": 32, "max_steps": 6, "batch_size": 4}
    study = {"encoders": {"one": ENCODER}, "tasks": {"it": task}, "heads": "trained", "seeds": 3, "resamples": 100}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))

    def compare(out: str, *more: str) -> list[str]:
        return ["compare", str(tmp_path / "study.yaml"), f"--out={tmp_path / out}", "--threads=1", "--quiet", *more]

    return compare


def test_a_comparison_killed_amid_a_cell_goes_on(tmp_path, words, monkeypatch, capsys):
    out = tmp_path / "killed"
    killed = subprocess.run([sys.executable, "-c", _KILLED, *words("killed")], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [record] = (out / "cells").glob("*.json")
    assert json.loads(record.read_text())["status"] == "done"
    half = [path for path in (out / "cells").iterdir() if path.is_dir() and path.name != record.stem]
    assert not any((path / "results.json").exists() for path in half)
    assert any((path / "metrics.jsonl").exists() for path in half)
    assert not (out / "table.csv").exists()
    kept = {path: path.stat().st_mtime_ns for path in [record, *(out / "cells" / record.stem).rglob("*")]}
    assert main(words("killed")) == 2
    assert "--resume" in capsys.readouterr().err

    called: list[str] = []

    @functools.wraps(classify)
    def counted(*args, **options):
        called.append(Path(options["out"]).name)
        return classify(*args, **options)

    monkeypatch.setattr(_comparing, "VERBS", {**_comparing.VERBS, "classify": counted})
    assert main(words("killed", "--resume")) == 0
    assert len(called) == len(set(called)) == 2
    assert record.stem not in called
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert main(words("whole")) == 0
    for name in ("table.csv", "cases.csv", "tests.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for path in (tmp_path / "whole/cells").glob("*/head.safetensors"):
        assert path.read_bytes() == (out / "cells" / path.parent.name / path.name).read_bytes()


@pytest.mark.slow
def test_a_comparison_whose_workers_are_killed_with_it_goes_on(tmp_path, words):
    """Two cells at a time, by workers, killed like the parent in the midst of them."""
    out, cells = tmp_path / "killed", tmp_path / "killed/cells"
    command = [sys.executable, "-m", "frepa.cli", *words("killed", "--jobs=2")]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240

    def halves() -> set[str]:
        """Cells that a worker has begun to train."""
        return {path.parent.name for path in cells.glob("*/metrics.jsonl")} - {
            path.stem for path in cells.glob("*.json")
        }

    try:
        # One is finished, and another one half
        while process.poll() is None and not (list(cells.glob("*.json")) and halves()):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    while _members(process.pid):
        assert time.monotonic() < until
        time.sleep(0.05)
    done = [path.stem for path in cells.glob("*.json")]
    assert 1 <= len(done) < 3
    assert halves()
    assert not (out / "table.csv").exists()
    kept = {path: path.stat().st_mtime_ns for key in done for path in (cells / key).rglob("*")}
    assert main(words("killed", "--jobs=2", "--resume")) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert main(words("whole")) == 0
    for name in ("table.csv", "cases.csv", "tests.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    heads = list((tmp_path / "whole/cells").glob("*/head.safetensors"))
    assert len(heads) == 3
    for path in heads:
        assert path.read_bytes() == (cells / path.parent.name / path.name).read_bytes()


def _members(group: int) -> bool:
    """Whether a process of the group lives: it takes a moment until the last one is gone."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_cell_that_somebody_is_at_work_on_is_tried_again(tmp_path):
    """A worker may live on for a moment when its study was killed; that says nothing of the encoder."""
    (tmp_path / "key").mkdir()
    job = Job("key", tmp_path / "key", classify, (str(write_classes(tmp_path / "set")),), {"encoder": ENCODER}, 1)
    with Lock(tmp_path / "key" / LOCK, "the first"):
        _, record = compute(job)
    assert record.status == "failed"
    assert f"process {os.getpid()} on" in record.reason
    assert Record.read(tmp_path, "key") is None
