"""Damaged files of every format: none may crash, hang or exhaust memory, and each is reported or read.

A short run in every suite; a long one with ``FREPA_FAULTS=2000 pytest -m slow`` or ``python -m tests.faults.mutate``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mutate import run, summary

LONG = int(os.environ.get("FREPA_FAULTS", "500"))


def judged(folder: Path, count: int, seed: int) -> None:
    outcomes = run(folder, count, seed, whole=True)
    assert [(outcome.name, outcome.kind, outcome.wrong()) for outcome in outcomes if outcome.wrong()] == []
    spoilt = [outcome for outcome in outcomes if outcome.kind != "whole"]
    assert len(spoilt) == count
    for outcome in outcomes:
        if outcome.kind == "whole":
            assert "read" in outcome.said, outcome
        if outcome.kind == "empty" and not outcome.name.endswith("gz"):
            assert all("empty" in text or "No " in text for text in outcome.said), outcome
    assert sum("read" not in outcome.said for outcome in spoilt) > 0.3 * count
    print(summary(outcomes))


def test_damaged_files_of_every_format(tmp_path: Path) -> None:
    judged(tmp_path, 40, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [11, 12])
def test_many_damaged_files_of_every_format(tmp_path: Path, seed: int) -> None:
    judged(tmp_path, LONG, seed)
