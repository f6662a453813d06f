"""Fixtures every test may use. Real images are read from a folder beside the clone when there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# A clone made by a user has no such folder: tests that need it skip and say so.
_SHARED_DATA = Path(os.environ.get("FREPA_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes into the settings of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("FREPA_SECRET", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _small_pictures() -> Iterator[None]:
    """Runs draw their pictures with few dots per inch unless they ask for more: it takes longer than training them."""
    from frepa.report import figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures.png_bytes, "__defaults__", (80,))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real labelled images, or a skip where it is absent."""
    if not _SHARED_DATA.is_dir():
        pytest.skip(f"real images not found at {_SHARED_DATA}; set FREPA_TEST_DATA to a folder that holds them")
    return _SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests work on tiny arrays: a second thread costs more than it does, and adds in another order.

    Far more where tests run side by side: threads that wait for each other keep the cores from those that work.
    """
    import torch

    torch.set_num_threads(1)
