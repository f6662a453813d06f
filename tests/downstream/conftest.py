"""Trained runs that several files of tests put on scans."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_runs import segmenting


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmenting(tmp_path_factory.mktemp("flat"), folds=2)


@pytest.fixture(scope="module")
def solid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmenting(tmp_path_factory.mktemp("solid"), (8, 16, 16))
