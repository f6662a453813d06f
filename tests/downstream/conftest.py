"""These tests train on tiny images: handing work to a second thread costs more than the work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def _one_thread_for_runs() -> Iterator[None]:
    """For fixtures that outlive a test."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _one_thread(_few_threads: None) -> None:
    torch.set_num_threads(1)
