"""Tables that users write: what a column of them may hold, in one place for every reader of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from frepa.errors import InputError
from frepa.names import shown


def read_parquet(path: Path) -> pa.Table:
    """A parquet file as it is.

    Raises:
        InputError: it is none, or cannot be read.
    """
    try:
        return parquet.ParquetFile(os.path.abspath(path)).read()  # which, unlike read_table, takes columns of one name
    except (pa.ArrowException, OSError) as error:
        reason = shown(" ".join(str(error).split())[:200])
        raise InputError(f"{shown(path)} cannot be read as a table ({reason}).") from None


def check_columns(path: Path, table: pa.Table, names: Iterable[str]) -> None:
    """Refuse columns of which nobody can say what a row means.

    Args:
        path: the table's file, for the message.
        table: as it was read.
        names: columns that are used, where they are there.

    Raises:
        InputError: one of them is there twice, or holds lists, records or bytes instead of a text or a number a row.
    """
    check_once(path, table.column_names, names)
    for name in names:
        if name in table.column_names:
            kind = table.schema.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if pa.types.is_nested(kind) or _is_bytes(kind):
                held = "bytes" if _is_bytes(kind) else "lists or records"
                raise InputError(
                    f"{shown(path)}: the column {name!r} holds {held} ({shown(str(kind))}), and one text or number per "
                    "row is expected. Write the table again with a text in each row."
                )


def check_once(path: Path, found: Sequence[str], names: Iterable[str]) -> None:
    """Raise InputError where one of ``names`` is the name of several columns."""
    twice = [name for name in names if found.count(name) > 1]
    if twice:
        raise InputError(
            f"{shown(path)}: {found.count(twice[0])} columns are called {twice[0]!r}, so it is not clear which one is "
            "meant. Keep one of them, or rename the others."
        )


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
