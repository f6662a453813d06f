"""Folders in the layout of a dataset of the catalogue whose entry says how they are recognised."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from frepa.datasets.annotations import SCHEMA, facts_of
from frepa.datasets.catalogue.entry import Entry, load_entries
from frepa.datasets.catalogue.resolve import read_dataset
from frepa.datasets.layouts.registry import Listing, layout


@cache
def _recognisable() -> tuple[Entry, ...]:
    return tuple(entry for entry in load_entries() if entry.recognise)


def _entry(folder: Path) -> Entry | None:
    """The dataset whose entry recognises the folder: each of its patterns is there, whatever the capitals."""
    if not folder.is_dir():
        return None
    return next((one for one in _recognisable() if all(_there(folder, text) for text in one.recognise)), None)


def _there(folder: Path, text: str) -> bool:
    first, _, rest = text.lower().partition("/")
    found = (item for item in folder.iterdir() if fnmatch.fnmatchcase(item.name.lower(), first))
    return any(not rest or (item.is_dir() and _there(item, rest)) for item in found)


@layout(
    "published",
    column="mask",
    expects="the layout of DRIVE, CHASE_DB1, HRF or STARE",
    detect=lambda path: _entry(path) is not None,
)
def read_published(path: Path, names: Sequence[str], dims: int) -> Listing:
    """What the catalogue's entry finds in the folder."""
    entry = _entry(path)
    assert entry is not None
    table = read_dataset(entry, path).table()
    root = os.path.abspath(path)
    rows = [Path(row).relative_to(root).as_posix() for row in table["path"].to_pylist()]
    columns: dict[str, dict[str, Any]] = {}
    others = set[str]()
    for column in table.column_names:
        if column in SCHEMA or column.startswith("mask_"):
            columns[column] = dict(zip(rows, table[column].to_pylist()))
        if column.startswith("mask"):
            files = (value for value in columns[column].values() if value is not None)
            others |= {Path(file).relative_to(root).as_posix() for file in files}
    return Listing(columns, facts_of(table), frozenset(others))
