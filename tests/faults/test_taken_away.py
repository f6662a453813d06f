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

    _check_ends_and_goes_on(words, killing, 40, tmp_path / "run", said, monkeypatch)


def test_a_reader_killed_amid_a_step_is_a_sentence_too(sets, tmp_path, said, monkeypatch):
    """PyTorch's handler of SIGCHLD raises where the main thread happens to be, which need not be between two steps."""
    step = Journal.step

    def amid(self, count, *args, **kwargs):
        step(self, count, *args, **kwargs)
        if count == 3:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    words = [*command("pretrain", sets), "--max-steps=5", f"--out={tmp_path / 'run'}", "--resume"]
    found = _check_ends_and_goes_on(words, amid, 5, tmp_path / "run", said, monkeypatch)
    assert "What was saved before is as it was" in found


def _check_ends_and_goes_on(words, step, steps, run, said, monkeypatch):
    """What a run says whose reader is lost in ``step``, and that the same words bring it to its end."""
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "step", step)
        found = said(*words, code=1)
    assert "A process that reads images was ended from outside" in found
    assert "--resume" in found
    assert main(words) == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == steps
    return found


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
