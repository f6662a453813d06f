"""A local copy against the catalogue's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from catalogue_trees import Case, write
from frepa.datasets.catalogue.entry import Entry, load_entry, read_entry
from frepa.datasets.catalogue.verify import verify
from frepa.errors import InputError


def _entry(tmp_path: Path, **changes: object) -> Entry:
    about = {
        "id": "mine", "name": "Mine", "summary": "A set.", "modality": "CT", "dims": 2, "role": "extra",
        "access": "open", "licence": {"name": "CC0", "status": "verified"}, "confidence": "high",
        "read": [
            {"files": {"patterns": ["**/{split:train,test}/{label:cat,dog}/{name}.png"]}},
            {"masks": {"outline": "**/masks/{name}.png"}},
        ],
        **changes,
    }  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(about))
    return read_entry(path)


_FILES = """
train/cat/1.png
train/cat/2.png
train/dog/3.png
test/dog/4.png
masks/1.png
masks/2.png
masks/4.png
other/5.jpg
"""


def test_found_expected_missing_unexpected(tmp_path: Path) -> None:
    Case(_FILES, {}).build(tmp_path / "data")
    entry = _entry(
        tmp_path,
        counts=[
            {"of": "images", "n": 4},
            {"of": "images", "n": 9, "where": {"split": "test"}},
            {"of": "masks", "n": 3},
        ],
    )
    result = verify(entry, tmp_path / "data")
    lines = {line.part: (line.found, line.expected, line.differs) for line in result.lines}
    assert lines["images"] == (4, 4, False)
    assert lines["images, split test"] == (1, 9, True)
    assert lines["masks"] == (3, 3, False)
    assert lines["images, label cat"] == (2, None, False)
    assert lines["images, label dog"] == (2, None, False)
    assert result.missing == ["1 of 4 images have no outline mask: data/train/dog/3.png"]
    assert result.unexpected == ["data/other/5.jpg"]
    assert not result.complete
    text = str(result)
    for words in ("9   differs", "data/train/dog/3.png", "data/other/5.jpg", "differs from a complete one"):
        assert words in text


def test_a_recalled_number_is_shown_and_never_held_against_a_copy(tmp_path: Path) -> None:
    Case(_FILES.replace("other/5.jpg", "masks/3.png"), {}).build(tmp_path / "data")
    entry = _entry(tmp_path, counts=[{"of": "images", "n": 999, "status": "recalled"}])
    result = verify(entry, tmp_path / "data")
    assert result.complete
    assert "about 999 (not verified)" in str(result)


def test_an_optional_part_may_be_absent_but_not_half_there(tmp_path: Path) -> None:
    counts = [{"of": "images", "n": 2, "where": {"split": "test"}, "optional": True}]
    Case("train/cat/1.png\nmasks/1.png", {}).build(tmp_path / "data")
    assert verify(_entry(tmp_path, counts=counts), tmp_path / "data").complete
    Case("test/cat/2.png\nmasks/2.png", {}).build(tmp_path / "data")
    assert not verify(_entry(tmp_path, counts=counts), tmp_path / "data").complete


def test_files_of_the_release_that_are_not_read_are_expected(tmp_path: Path) -> None:
    Case("train/cat/1.png\nmasks/1.png\nextra/a.png\nextra/b.png\nodd/c.png\nodd/d.png", {}).build(tmp_path / "data")
    result = verify(_entry(tmp_path, ignore=["**/extra/*.png"]), tmp_path / "data")
    assert result.unexpected == ["data/odd/c.png", "data/odd/d.png"]
    assert "data/odd/: 2 files, such as c.png" in str(result)
    assert result.complete  # unexpected files are named, not held against the copy


def test_an_unusable_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder"):
        verify(load_entry("drive"), tmp_path / "none")
    write(tmp_path / "a.png")
    with pytest.raises(InputError, match="No image of drive was found"):
        verify(load_entry("drive"), tmp_path)
