"""Promise: stopping never loses work. The group's SIGTERM and Ctrl-C save, say how to go on, and end with code 3."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults_helpers import PRETRAIN, contents, write_images
from frepa.checkpoints import Checkpoints
from frepa.cli import main
from frepa.pretraining.journal import Journal

_STEPS = ["--max-steps=12", "--checkpoint-every=50"]
_TIMES = ("speed.jsonl", "report.html", "config.yaml", ".frepa-run.jsonl")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def whole(scans, tmp_path_factory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(["pretrain", str(scans), f"--out={run}", *PRETRAIN, *_STEPS, "--num-workers=0"]) == 0
    return contents(run, *_TIMES)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_workers_do_not_hear_it_and_the_parent_saves(scans, whole, tmp_path, monkeypatch, capsys, number):
    run, step = tmp_path / "run", Journal.step
    words = ["pretrain", str(scans), f"--out={run}", *PRETRAIN, *_STEPS, "--num-workers=2", "--resume"]

    def signalled(self, count, *args, **kwargs):
        step(self, count, *args, **kwargs)
        if count == 3:
            workers = multiprocessing.active_children()
            assert len(workers) == 2
            # From another process: what the parent itself sends is meant
            pids = [str(pid) for pid in (*(worker.pid for worker in workers), os.getpid())]
            subprocess.run(["kill", f"-{int(number)}", *pids], check=True)
            time.sleep(0.2)
            assert all(worker.is_alive() for worker in workers)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "step", signalled)
        assert main(words) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "Stopped on request after saving the state. Continue with the same command and --resume" in said.err
    assert Checkpoints(run / "checkpoints").steps() == [3]
    assert not multiprocessing.active_children()
    assert main(words) == 0
    assert contents(run, *_TIMES) == whole


_WORKERS = """
import multiprocessing, sys, time
from frepa.stopping import end_with_parent
def work(ready):
    end_with_parent()
    ready.set()
    time.sleep(60)
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    events = [context.Event() for _ in range(2)]
    workers = [context.Process(target=work, args=(event,)) for event in events]
    for worker in workers: worker.start()
    for event in events: event.wait()
    print(*(worker.pid for worker in workers), flush=True)
    if sys.argv[1] == "terminate":
        time.sleep(1)
        for worker in workers: worker.terminate()
        for worker in workers: worker.join(20)
        print([worker.exitcode for worker in workers])
    time.sleep(60)
"""


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_a_parent_that_is_killed_takes_its_workers_along(tmp_path, context):
    """Of a worker that a server started, which is the way of Python 3.14, the server is not the parent."""
    script = tmp_path / "workers.py"  # a file, since a server's workers read the program again
    script.write_text(_WORKERS)
    for how in ("terminate", "kill"):
        words = [sys.executable, str(script), how, context]
        parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        pids = [int(word) for word in parent.stdout.readline().split()]
        for pid in pids:  # from outside: not heard
            os.kill(pid, signal.SIGTERM)
        if how == "terminate":
            assert parent.stdout.readline().strip() == "[1, 1]"
        parent.kill()
        parent.wait()
        end = time.monotonic() + 20
        while any(_runs(pid) for pid in pids):
            assert time.monotonic() < end
            time.sleep(0.05)


def test_packing_by_processes_of_a_server_is_the_same(tmp_path, monkeypatch):
    import processes  # noqa: F401 - lets the server import the package once, not every worker

    server = multiprocessing.get_context("forkserver")
    monkeypatch.setattr("frepa.images.store.packing.multiprocessing.get_context", lambda: server)
    scans = write_images(tmp_path / "scans", count=32)
    for workers in (0, 2):
        words = ["prepare", str(scans), f"--out={tmp_path / str(workers)}", f"--num-workers={workers}", "--quiet"]
        assert main(words) == 0
    found = [contents(tmp_path / name, "store.json", ".frepa-lock") for name in "02"]
    assert len([name for name in found[0] if name.startswith("shards")]) > 1
    assert found[0] == found[1]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(6))
def test_a_group_that_is_signalled_at_random_moments_loses_nothing(scans, whole, tmp_path, seed):
    run, draw = tmp_path / "run", random.Random(seed)
    words = ["pretrain", str(scans), f"--out={run}", *PRETRAIN, *_STEPS, "--num-workers=2", "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-m", "frepa.cli", *words], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        if draw.random() < 0.8:
            try:
                process.wait(draw.uniform(1, 25))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL]))
        _, err = process.communicate(timeout=240)
        assert process.returncode in (0, 3, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL), err
        assert "Traceback" not in err
        if process.returncode == 0:
            break
    assert contents(run, *_TIMES) == whole
