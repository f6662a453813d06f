"""Labels, splits, patients and boxes from a CSV or Excel table, joined to the images by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from frepa.datasets.annotations import XYXY
from frepa.datasets.catalogue.patterns import fill, path_fields
from frepa.datasets.catalogue.records import Box, Records, anonymous, sample
from frepa.datasets.catalogue.steps import Context, register
from frepa.datasets.catalogue.steps.values import ClassNames, plain_value, split_name
from frepa.datasets.catalogue.tables import Row, read_rows
from frepa.errors import InputError, nearest


@register("table")
def table(
    context: Context,
    *,
    patterns: list[str],
    key: dict[str, str],
    separator: str | None = None,
    header: int = 0,
    remove: dict[str, str] | None = None,
    label: str | None = None,
    names: Mapping[object, str] | list[str] | None = None,
    one_hot: list[str] | None = None,
    flags: dict[str, Any] | None = None,
    listed: dict[str, str] | None = None,
    split: str | None = None,
    splits: dict[str, str] | None = None,
    group: str | None = None,
    boxes: dict[str, Any] | None = None,
    only: dict[str, list[str]] | None = None,
    partial: bool = False,
) -> None:
    """Join rows to records.

    Args:
        patterns: of the tables; all that exist are read one after the other.
        key: column -> template of what it holds for an image, such as ``{Image_name: "{stem}"}``; compared without
            case. Several columns must all agree.
        separator: between cells; found from the header line by default.
        header: number of lines above the header.
        remove: column -> regular expression of text to cut from its cells before joining.
        label: column of the class.
        names: value -> class name, in class order (for ``label``).
        one_hot: columns of which exactly one is 1; its name is the class.
        flags: several classes per image: ``{columns: [...], positive: [1], readers: [R1:, R2:], at_least: 2}``. The
            names of the positive columns go to ``labels``; with ``readers`` a class counts when so many of ``prefix +
            column`` are positive.
        listed: several classes in one cell: ``{column: ..., separator: "|", none: No Finding}``.
        split: column of the split, with ``splits`` from value to train, val or test.
        splits: value -> train, val or test.
        group: column of the patient; the value is replaced by an anonymous name.
        boxes: ``{column: "x1,y1,x2,y2"}`` cells, or ``{columns: [x1, y1, x2, y2]}``, with ``sizes: true`` when the last
            two are width and height, ``label`` for the column of the box's class. Pixels, x to the right, y down.
        only: column or named part -> values of the records that should have a row.
        partial: the table covers some of the images only, so a missing row is no fault. A patient's split then holds
            for all images of that patient.
    """
    records = context.records
    found = [path for path, _, _ in context.index.matches(patterns)]
    if not found:
        records.problems.append(f"a table is missing: no file matches {' or '.join(patterns)}")
        return
    needed = [*key, *(name for name in (label, split, group) if name), *(one_hot or [])]
    rows: dict[tuple[str, ...], list[Row]] = {}
    for path in found:
        records.used.add(path)
        read = read_rows(Path(context.index.absolute(path)), separator, header)
        _check_columns(path, read, needed)
        for row in read:
            rows.setdefault(_row_key(row, key, remove or {}), []).append(row)

    class_names = ClassNames(names)
    fillers: dict[str, Callable[[list[Row]], Any]] = {}
    if label:
        fillers["label"] = lambda mine: class_names(mine[0][label])
    if one_hot:
        fillers["label"] = lambda mine: _hot(mine[0], one_hot)
    if flags:
        fillers["labels"] = lambda mine: _flags(mine[0], **flags)
    if listed:
        fillers["labels"] = lambda mine: _listed(mine[0], **listed)
    if split:
        fillers["split"] = lambda mine: split_name(mine[0][split], splits)
    if group:
        fillers["group"] = lambda mine: (
            anonymous(context.dataset, plain_value(mine[0][group])) if mine[0][group] else None
        )
    if boxes:
        fillers["boxes"] = lambda mine: [box for row in mine for box in _boxes(row, **boxes)]
        records.facts["box_unit"] = XYXY
    unmatched = set()
    for i, relative in enumerate(records.relative):
        fields = {**path_fields(relative), **records.fields[i]}
        wanted = [fill(template, fields) for template in key.values()]
        mine = rows.get(tuple(plain_value(text) for text in wanted)) if None not in wanted else None
        if mine is None:
            unmatched.add(i)
            continue
        for column, value_of in fillers.items():
            records.columns[column][i] = value_of(mine)

    for name in class_names.known or one_hot or (flags or {}).get("columns") or _present(records, fillers):
        records.add_class(name)
    if partial and split:
        _spread_split(records)
    expected = records.rows_where(only)
    missing = [records.relative[i] for i in expected if i in unmatched]
    if missing and not partial:
        tables = " or ".join(sorted({path.rpartition("/")[2] for path in found}))
        records.problems.append(
            f"{len(missing):,} of {len(expected):,} images have no row in {tables}: {sample(missing)}"
        )


def _present(records: Records, fillers: Mapping[str, Any]) -> list[str]:
    """Class names that the rows themselves brought, sorted."""
    single = records.columns["label"] if "label" in fillers else []
    several = records.columns["labels"] if "labels" in fillers else []
    return sorted({name for name in single if name} | {name for names in several for name in names or []})


def _spread_split(records: Records) -> None:
    """A split by patient that the table states for some images holds for the patient's other images too."""
    groups, splits = records.columns["group"], records.columns["split"]
    of_group: dict[str, set[str]] = {}
    for group, split in zip(groups, splits):
        if group is not None and split is not None:
            of_group.setdefault(group, set()).add(split)
    for i, group in enumerate(groups):
        if splits[i] is None and len(of_group.get(group, ())) == 1:
            (splits[i],) = of_group[group]


def _check_columns(path: str, rows: list[Row], needed: list[str]) -> None:
    have = rows[0] if rows else {}
    for name in needed:
        if name not in have:
            raise InputError(
                f"{path} has no column {name!r}. {nearest(name, have)} Is this the table of the dataset's release?"
                if have
                else f"{path} is an empty table; the column {name!r} was expected."
            )


def _row_key(row: Row, key: dict[str, str], remove: dict[str, str]) -> tuple[str, ...]:
    return tuple(plain_value(re.sub(remove[name], "", row[name]) if name in remove else row[name]) for name in key)


def _hot(row: Row, columns: list[str]) -> str | None:
    """The one column whose value is 1; None where none or several are."""
    hot = [name for name in columns if plain_value(row[name]) == "1"]
    return hot[0] if len(hot) == 1 else None


def _flags(
    row: Row,
    columns: list[str],
    positive: list[object] | None = None,
    readers: list[str] | None = None,
    at_least: int = 1,
) -> list[str]:
    yes = {plain_value(value) for value in positive or [1]}
    prefixes = readers or [""]
    return [
        name
        for name in columns
        if sum(plain_value(row.get(prefix + name, "")) in yes for prefix in prefixes) >= at_least
    ]


def _listed(row: Row, column: str, separator: str = "|", none: str = "") -> list[str]:
    names = [name.strip() for name in row.get(column, "").split(separator)]
    return [name for name in names if name and name.casefold() != none.casefold()]


def _boxes(
    row: Row,
    column: str | None = None,
    columns: list[str] | None = None,
    sizes: bool = False,
    label: str | None = None,
    names: Mapping[object, str] | None = None,
) -> list[Box]:
    cells = row.get(column or "", "").split(",") if column else [row.get(name, "") for name in columns or []]
    try:
        x1, y1, x2, y2 = (float(cell) for cell in cells)
    except ValueError:
        return []
    if sizes:
        x2, y2 = x1 + x2, y1 + y2
    name = ClassNames(names)(row.get(label, "")) if label else None
    return [{"label": name, "coordinates": [x1, y1, x2, y2]}] if x2 > x1 and y2 > y1 else []
