"""Names that are no UTF-8, hold control characters or begin like formulas: nothing ends, and nothing interprets them.

Promise: such files are read like others; terminals, pages, figures and tables show their names written out.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from frepa.cli import main
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.names import cell, shown

NAMES = [
    b"latin-\xe9\xff.png",
    b"$\\frac{1}{0}$.png",
    b"a $ b.png",
    b"line\nbreak.png",
    b"tab\tand\rreturn.png",
    b"\x1b[31mred\x1b]0;title\x07.png",
    b"=cmd|' C calc'!A0.png",
    b"+1.png",
    b"-2+3.png",
    b"@SUM(A1).png",
    "\u202egnp.exe.png".encode(),
    b"<script>alert(1).png",
    b"100%s{0}.png",
    b"a#b.png",
    b"`tick`.png",
    "日本語.png".encode(),
]


def hostile(folder: Path) -> Path:
    """A folder of readable images under such names, of broken ones, and a folder with such a name."""
    folder.mkdir()
    for number, name in enumerate(NAMES):
        picture = np.random.default_rng(number).integers(0, 255, (24, 24)).astype(np.uint8)
        target = os.fsencode(folder) + b"/" + name
        with open(target, "wb") as file:
            Image.fromarray(picture).save(file, "PNG")
        with open(os.fsencode(folder) + b"/broken " + name, "wb") as file:
            file.write(b"no image")
    inner = os.fsencode(folder) + b"/in\xffner\n$"
    os.mkdir(inner)
    with open(inner + b"/=x.png", "wb") as file:
        Image.fromarray(np.full((24, 24), 3, np.uint8)).save(file, "PNG")
    return folder


def plain(text: str) -> None:
    """No character that moves a cursor, changes a colour or cannot be written."""
    text.encode("utf-8")
    assert not set(text) & {chr(code) for code in (*range(9), *range(11, 32), 127, 0x202E)}


def test_shown_and_cell() -> None:
    assert shown("plain/日本語 é.png") == "plain/日本語 é.png"
    assert shown(os.fsdecode(b"a\xff\n\x1b\0")) == r"a\xff\n\x1b\0"
    assert shown("a\nb", keep="\n") == "a\nb"
    assert shown("\u202e\u2028") == r"\u202e\u2028"
    assert [cell(text) for text in ("=1", "+a", "-1.5", "@x", "\tx", "a=b", 3)] == [
        "'=1", "'+a", "-1.5", "'@x", r"'\tx", "a=b", "3",
    ]  # fmt: skip


def test_a_folder_of_such_names_is_read_and_survives_processes(tmp_path: Path) -> None:
    import pickle

    source = open_source(hostile(tmp_path / "scans"))
    assert len(source) == 2 * len(NAMES) + 1
    again = pickle.loads(pickle.dumps(source))
    names = [again.name(index) for index in range(len(again))]
    assert {os.fsencode(name) for name in names} >= set(NAMES)
    assert all(source.read(index).size == (24, 24) for index, name in enumerate(names) if "broken" not in name)
    assert source.fingerprint == again.fingerprint
    assert [name for name, _ in source.listing()] == [source.file(index) for index in range(len(source))]


def test_check_shows_them_written_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = hostile(tmp_path / "scans"), tmp_path / "report"
    assert main(["check", str(folder), "--out", str(out), "--num-workers", "0", "--quiet"]) == 0
    said = capsys.readouterr()
    plain(said.out)
    page = (out / "report.html").read_text("utf-8")
    plain(page)
    assert "<script>alert" not in page
    files = parquet.read_table(out / "findings.parquet")["file"].to_pylist()
    assert len(files) >= len(NAMES)
    for name in files:
        plain(name)


def test_prepare_lists_them_in_cells_that_no_spreadsheet_runs(tmp_path: Path) -> None:
    folder, out = hostile(tmp_path / "scans"), tmp_path / "store"
    assert main(["prepare", str(folder), "--out", str(out), "--keep-names", "--num-workers", "0", "--quiet"]) == 0
    assert len(open_source(out)) == len(NAMES) + 1
    with open(f"{out}.skipped.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(NAMES) + 1
    for path, reason in rows[1:]:
        plain(path + reason)
        assert path[0] not in "=+-@"


@pytest.mark.parametrize("text", ["", " ", "x\0y.png", "x" * 5000, "a/" * 3000 + "b", "no\nsuch", "\udcff.png", "loop"])
def test_wrong_sources_are_a_sentence(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError) as caught:
        open_source(text)
    plain(str(caught.value))


def test_manifest_rows_of_any_text(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to("loop")
    rows = ["path", "a.png", "x\0y.png", "loop", "loop/a.png", "", "y" * 3000 + ".png", "=a.png", "."]
    (tmp_path / "m.csv").write_bytes("\n".join(f'"{row}"' for row in rows).encode())
    source = open_source(tmp_path / "m.csv")
    assert [source.name(index) for index in range(len(source))] == ["a.png"]
    assert len(source.skipped) == 7
