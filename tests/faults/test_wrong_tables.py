"""Promise: a column of a manifest that holds no text, or is there twice, is named in one sentence."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from faults_helpers import command

_CELLS: dict[str, Any] = {
    "lists": lambda text: [text],
    "records": lambda text: {"a": text},
    "bytes": lambda text: text.encode(),
}


@pytest.mark.parametrize("kind", _CELLS)
@pytest.mark.parametrize("column", ["path", "label", "group", "dim", "mask"])
def test_columns_of_a_manifest_that_are_no_text(sets, tmp_path, said, kind, column):
    names = [str(path) for path in sorted((sets / "scans").iterdir())]
    columns = {"path": names, "label": ["a", "b"] * 6, "mask": names}
    columns[column] = [_CELLS[kind](str(cell)) for cell in columns.get(column, ["2"] * 12)]
    parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    for verb in ("check", "pretrain", "classify", "prepare"):
        found = said(*command(verb, sets, tmp_path / "m.parquet"), f"--out={tmp_path / 'out'}")
        assert f"the column {column!r} holds" in found
    if column in ("mask", "group"):
        parquet.write_table(pa.table({"image": names, **columns}), tmp_path / "m.parquet")
        found = said(*command("segment", sets, tmp_path / "m.parquet"), f"--out={tmp_path / 'out'}")
        assert f"the column {column!r} holds" in found


def test_columns_that_are_there_twice(sets, tmp_path, said):
    names = [str(path) for path in sorted((sets / "scans").iterdir())]
    twice = pa.Table.from_arrays([pa.array(names)] * 2, names=["path", "path"])
    parquet.write_table(twice, tmp_path / "p.parquet")
    for file, header in (
        ("p", "path,path"),
        ("l", "path,label,label"),
        ("i", "image,mask,mask"),
        ("b", "path,X min,x_min"),
    ):
        (tmp_path / f"{file}.csv").write_text(header + "\n" + f"{names[0]},{names[0]},{names[0]}\n" * 3)
    out = f"--out={tmp_path / 'out'}"
    for verb, file in (("check", "p.parquet"), ("pretrain", "p.csv"), ("classify", "l.csv"), ("segment", "i.csv")):
        if file == "p.csv":
            (tmp_path / file).write_text("path,path\n" + f"{names[0]},{names[1]}\n")
        assert "2 columns are called" in said(*command(verb, sets, tmp_path / file), out)
    assert "2 columns are called 'xmin'" in said(*command("detect", sets, tmp_path / "b.csv"), out)
