"""Path patterns against a table of paths, and the index of a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from frepa.datasets.catalogue.patterns import FileIndex, fill, path_fields, pattern
from frepa.errors import InputError


@pytest.mark.parametrize(
    ("text", "path", "parts"),
    [
        ("**/*.png", "a.png", {}),
        ("**/*.png", "a/b/c.PNG", {}),
        ("*.png", "a/b.png", None),
        ("a/**/b.png", "a/b.png", {}),
        ("a/**/b.png", "a/x/y/b.png", {}),
        ("a/**/b.png", "ab.png", None),
        ("x[0-9]?.{jpg,jpeg}", "x12.jpeg", {}),
        ("x[!0-9].jpg", "x1.jpg", None),
        ("x[!0-9].jpg", "xa.jpg", {}),
        ("OCTA(FULL)/{id}.bmp", "OCTA(FULL)/10301.bmp", {"id": "10301"}),
        ("OCTA(*)/+.bmp", "OCTA(ILM)/+.bmp", {}),
        ("{split:train,val}/{name}.png", "val/a b.png", {"split": "val", "name": "a b"}),
        ("{split:train,val}/{name}.png", "test/a.png", None),
        ("{id}/{id}_x.png", "7/7_x.png", {"id": "7"}),
        ("{id}/{id}_x.png", "7/8_x.png", None),
        ("{id}.png", "a/b.png", None),
        ("a{tail:,_*}.png", "a.png", {"tail": ""}),
        ("a{tail:,_*}.png", "a_b.png", {"tail": "_b"}),
        ("{case}.{nii,nii.gz}", "x.nii.gz", {"case": "x"}),
        ("{case}.{nii,nii.gz}", "x.nii", {"case": "x"}),
    ],
)
def test_match(text: str, path: str, parts: dict | None) -> None:
    assert pattern(text).match(path) == parts


def test_an_open_brace_is_named() -> None:
    with pytest.raises(InputError, match="never closed"):
        pattern("a{b,c")


def test_fill_needs_every_field() -> None:
    assert fill("{a}-{b}", {"a": "1", "b": ""}) == "1-"
    assert fill("{a}-{b}", {"a": "1"}) is None
    assert path_fields("x/y/z.nii.gz") == {"file": "z.nii.gz", "stem": "z", "parent": "y", "relative": "x/y/z.nii.gz"}


def test_index_follows_links_once_and_skips_clutter(tmp_path: Path) -> None:
    root = tmp_path / "Set"
    (root / "in").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("in/a.png", "in/._a.png", ".hidden", "../elsewhere/b.png"):
        (root / name).touch()
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "a.png").touch()
    os.symlink(tmp_path / "elsewhere", root / "linked")
    os.symlink(root, root / "in" / "up")
    assert FileIndex(root).paths == ["Set/in/a.png", "Set/linked/b.png"]
    assert FileIndex(root).absolute("Set/in/a.png") == str(root / "in" / "a.png")


def test_index_of_one_file_and_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.npz").touch()
    assert FileIndex(tmp_path / "a.npz").paths == ["a.npz"]
    with pytest.raises(InputError, match="no folder"):
        FileIndex(tmp_path / "b")
