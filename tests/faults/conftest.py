"""One thread throughout: runs are compared bit by bit, and another number of threads adds in another order."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Instead of the fixture of this name for all other tests."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """A shell that starts the tests in the background lets them ignore Ctrl-C, which is not what is tested."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
