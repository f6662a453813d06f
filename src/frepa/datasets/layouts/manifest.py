"""A table with a row per case: ``image``, ``mask``, and optionally ``fov``, ``split``, ``group``, ``name``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frepa.datasets.annotations import SPLITS, Case
from frepa.datasets.catalogue.tables import read_rows
from frepa.datasets.layouts.pairing import stem
from frepa.datasets.layouts.registry import Listing, layout
from frepa.errors import InputError, nearest
from frepa.images.tables import check_columns, check_once, read_parquet

_SUFFIXES = (".csv", ".parquet")
_REQUIRED, _OPTIONAL = ("image", "mask"), ("fov", "split", "group", "name")
_COLUMNS = (*_REQUIRED, *_OPTIONAL)
_SPLIT_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


@layout(
    "manifest",
    expects="a CSV or parquet file with the columns image and mask (and fov, split, group, name if wanted)",
    detect=lambda path: path.is_file() and path.suffix.lower() in _SUFFIXES,
)
def read_manifest(path: Path, dims: int) -> Listing:
    """Paths are relative to the manifest's folder. ``split`` is train, val or test, for all rows or for none.

    Raises:
        InputError: a column is missing, a cell is empty, a split is unknown, or a file is not there.
    """
    rows = _read(path)
    columns = list(rows[0]) if rows else []
    for name in _REQUIRED:
        if name not in columns:
            raise InputError(f"{path}: no column {name!r}. It has {', '.join(columns) or 'no columns'}.")
    cases = [_case(path, number, row) for number, row in enumerate(rows, start=2)]
    with_split = sum(case.split is not None for case in cases)
    if 0 < with_split < len(cases):
        raise InputError(f"{path}: {with_split} of {len(cases)} rows have a split. Fill the column for all or none.")
    return Listing(cases, [])


def _case(path: Path, number: int, row: dict[str, Any]) -> Case:
    values = {name: str(row.get(name) or "").strip() for name in _COLUMNS}
    files: dict[str, Path | None] = {}
    for name in ("image", "mask", "fov"):
        if not values[name] and name != "fov":
            raise InputError(
                f"{path}, line {number}: the column {name!r} is empty. Every case needs an image and a mask."
            )
        files[name] = path.parent / values[name] if values[name] else None
        if files[name] is not None and not files[name].is_file():  # type: ignore[union-attr]
            raise InputError(
                f"{path}, line {number}: {files[name]} was not found. Paths are relative to {path.parent}."
            )
    split = values["split"].lower()
    split = _SPLIT_NAMES.get(split, split)
    if split and split not in SPLITS:
        raise InputError(f"{path}, line {number}: split {values['split']!r} is not known. {nearest(split, SPLITS)}")
    image, mask = files["image"], files["mask"]
    assert image is not None
    assert mask is not None
    return Case(values["name"] or stem(image), image, mask, files["fov"], values["group"] or None, split or None)


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() != ".parquet":
        return list(read_rows(path, check=lambda names: check_once(path, names, _COLUMNS)))
    table = read_parquet(path)
    check_columns(path, table, _COLUMNS)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
