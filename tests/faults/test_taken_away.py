"""Promise: what is taken away from a run while it works ends it with a sentence."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal

from faults_helpers import command
from frepa.cli import main
from frepa.pretraining.journal import Journal


def test_a_killed_reader_saves_and_is_a_sentence(sets, tmp_path, said, monkeypatch, capsys):
    words = [word for word in command("pretrain", sets) if "workers" not in word and "steps" not in word]
    words += ["--num-workers=1", "--max-steps=40", f"--out={tmp_path / 'run'}", "--resume"]
    step = Journal.step

    def killing(self, count, *args, **kwargs):
        step(self, count, *args, **kwargs)
        if count == 3:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "step", killing)
        found = said(*words, code=1)
    assert "A process that reads images was ended from outside" in found
    assert "--resume" in found
    assert main(words) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 40


def test_a_reader_killed_amid_a_step_is_a_sentence_too(sets, tmp_path, said, monkeypatch):
    """PyTorch's handler of SIGCHLD raises where the main thread happens to be, which need not be between two steps."""
    step = Journal.step

    def amid(self, count, *args, **kwargs):
        step(self, count, *args, **kwargs)
        if count == 3:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    words = [*command("pretrain", sets), "--max-steps=5", f"--out={tmp_path / 'run'}", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "step", amid)
        found = said(*words, code=1)
    assert "A process that reads images was ended from outside" in found
    assert "What was saved before is as it was" in found
    assert main(words) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_folder_that_is_removed_meanwhile_is_a_sentence(sets, tmp_path, said, monkeypatch):
    run, step = tmp_path / "run", Journal.step

    def removing(self, count, *args, **kwargs):
        if count == 2:
            shutil.rmtree(run)
        step(self, count, *args, **kwargs)

    monkeypatch.setattr(Journal, "step", removing)
    words = [*command("pretrain", sets), f"--out={run}", "--max-steps=4"]
    assert "removed or renamed meanwhile" in said(*words, code=1)
    assert not run.exists()
