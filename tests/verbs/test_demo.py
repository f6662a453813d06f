"""`frepa demo` end to end, shortened; and that it never touches a folder of the user's."""

from __future__ import annotations

import json
import re

import pytest

import frepa
from frepa.errors import InputError


def test_the_page_tells_what_the_runs_measured(tmp_path, monkeypatch):
    from frepa.verbs import _demo, _demo_page

    small = {
        "STEPS": 4, "HEAD_STEPS": 2, "SIZE": 64, "UNLABELLED": 8, "ENCODER": "timm:test_vit,patch_size=8",
        "LABELLED": {"train": 4, "val": 1, "test": 2},
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(_demo, name, value)
    monkeypatch.setattr(_demo_page, "_BATCH", 4)
    out = frepa.demo(out=str(tmp_path / "demo"), quiet=True)
    page = (out / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']https?://""", page)
    for kind, head in (("probe", "linear"), ("segmentation", "conv")):
        guides = []
        for number in (1, 2, 3):
            result = json.loads((out / f"{kind}-{number}" / "results.json").read_text())
            score = next(iter(result["sets"].values()))["test"]["dsc"]
            guides.append(result["guide"])
            assert result["head"] == head
            assert f"{100 * score['mean']:.2f}" in page
            assert score["cases"] == 2
        assert guides == ["frangi_dark", "frangi_dark", "none"]
    kept = json.loads((out / "frequencies.json").read_text())
    assert list(kept)[-1] == _demo_page.NULL
    assert len(kept) == 4
    for one in kept.values():
        assert f"{one['bands']['medium']:.2f}" in page
    with pytest.raises(InputError, match="--overwrite"):
        frepa.demo(out=str(out), quiet=True)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(InputError, match="no list of what a run wrote"):
        frepa.demo(out=str(tmp_path), overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "three years"
