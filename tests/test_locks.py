"""One process at a time: who is told what, and what happens to locks of the dead."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from frepa import locks
from frepa.errors import InputError
from frepa.locks import Lock

_HOLD = """
import sys, time
from pathlib import Path
from frepa.locks import Lock
with Lock(Path(sys.argv[1]), "x"):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_and_takes_over_when_it_is_dead(tmp_path):
    path = tmp_path / "lock"
    process = _holder(path)
    try:
        words = rf"--out runs/a: process {process.pid} on {socket.gethostname()} has been at work there since 20\d\d-"
        for patience in (0.0, 30.0):  # a living process is not waited for
            since = time.monotonic()
            with pytest.raises(InputError, match=words), Lock(path, "--out runs/a", patience=patience):
                pass
            assert time.monotonic() - since < 5
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.exists()
    with Lock(path, "x"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_the_same_process_does_not_take_it_twice(tmp_path):
    path = tmp_path / "lock"
    with Lock(path, "x"):
        with pytest.raises(InputError, match=f"process {os.getpid()}"), Lock(path, "y"):
            pass
        done = subprocess.run([sys.executable, "-c", _HOLD, str(path)], capture_output=True, text=True)
        assert f"process {os.getpid()} on" in done.stderr  # the refused second attempt has not lost it
    with Lock(path, "x"):
        pass


@pytest.mark.parametrize("alive", [False, True])
def test_another_machine_is_watched_before_its_lock_is_taken(tmp_path, monkeypatch, alive):
    monkeypatch.setattr(locks, "WATCH", 0.6)
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "yesterday"}))
    end = threading.Event()

    def beat() -> None:
        while not end.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    if alive:
        thread.start()
    try:
        if alive:
            with pytest.raises(InputError, match="process 1 on elsewhere"), Lock(path, "x"):
                pass
        else:
            with Lock(path, "x"):
                assert json.loads(path.read_text())["host"] == socket.gethostname()
    finally:
        end.set()
        if alive:
            thread.join()


def test_without_locks_of_the_file_system_a_living_process_is_still_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_lock", lambda handle, *, inherited: None)
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": process.pid, "since": "now"}))
    with pytest.raises(InputError, match=f"process {process.pid}"), Lock(path, "x"):
        pass
    process.kill()
    process.wait()
    with Lock(path, "x"):
        pass


def test_many_at_once_and_only_one_holds_it(tmp_path):
    """Each process adds to a number without any care but the lock's: none is lost."""
    code = """
import sys, time
from pathlib import Path
from frepa.errors import InputError
from frepa.locks import Lock
number, done = Path(sys.argv[2]), 0
while done < 20:
    try:
        with Lock(Path(sys.argv[1]), "x"):
            number.write_text(str(int(number.read_text()) + 1))
            done += 1
    except InputError:
        time.sleep(0.001)
"""
    (tmp_path / "number").write_text("0")
    words = [sys.executable, "-c", code, str(tmp_path / "lock"), str(tmp_path / "number")]
    processes = [subprocess.Popen(words) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "number").read_text() == "80"
