"""`frepa demo` end to end, shortened; and that it never touches a folder of the user's."""

from __future__ import annotations

import json
import re

import pytest

import frepa
from frepa.errors import InputError


def test_the_page_tells_what_the_runs_measured(tmp_path, monkeypatch):
    from frepa.verbs import _demo

    small = {"_STEPS": 4, "_HEAD_STEPS": 4, "_SIZE": 64, "_UNLABELLED": 8, "_ENCODER": "timm:test_convnext"}
    for name, value in small.items():
        monkeypatch.setattr(_demo, name, value)
    out = frepa.demo(out=str(tmp_path / "demo"), quiet=True)
    page = (out / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']https?://""", page)
    guides = []
    for number in (1, 2, 3):
        result = json.loads((out / f"segmentation-{number}" / "results.json").read_text())
        score = next(iter(result["sets"].values()))["test"]["dsc"]
        guides.append(result["guide"])
        assert f"{100 * score['mean']:.2f}" in page
        assert score["cases"] == 6
    assert guides == ["frangi", "frangi", "none"]
    with pytest.raises(InputError, match="--overwrite"):
        frepa.demo(out=str(out), quiet=True)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(InputError, match="no list of what a run wrote"):
        frepa.demo(out=str(tmp_path), overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "three years"
