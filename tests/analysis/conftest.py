"""Figures of analyses are drawn small and as PNG alone, but in the test of the verb that looks at both files."""

from __future__ import annotations

import functools

import pytest

from frepa.report.figures import png_bytes


@pytest.fixture(autouse=True)
def drawn_small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than everything else that these tests do."""
    if request.node.name != "test_the_verb_writes_numbers_figures_and_a_page":
        monkeypatch.setattr("frepa.analysis.contract.png_bytes", functools.partial(png_bytes, dpi=40))
        monkeypatch.setattr("frepa.analysis.contract.svg_bytes", lambda figure: b"<svg/>")
