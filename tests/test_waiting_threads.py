"""Threads of one step that wait for each other leave the cores to other programs before long."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SAID = "import os, sys, frepa; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_waiting_threads_sleep_soon_unless_told_otherwise(given, expected):
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", _SAID], capture_output=True, text=True, env=own | given, check=True)
    # PyTorch reads it when it is loaded, so it has to be there before
    assert done.stdout.split() == [expected, "False"]
