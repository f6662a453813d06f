"""The corruption shares its work between threads: here there are always two, however the tests are run."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _two_threads(_few_threads: None) -> None:
    torch.set_num_threads(2)
