"""One thread throughout: runs are compared bit by bit, and another number of threads adds in another order."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Instead of the fixture of this name for all other tests."""
    torch.set_num_threads(1)
