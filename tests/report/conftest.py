"""Pictures as users get them."""

from __future__ import annotations

import pytest

from frepa.report import figures


@pytest.fixture(autouse=True)
def _pictures_of_full_size(_small_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures.png_bytes, "__defaults__", (150,))
