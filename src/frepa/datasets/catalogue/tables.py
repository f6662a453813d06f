"""Rows of a CSV (also gzipped, any of the usual separators) or Excel table, as text."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from frepa.errors import InputError

Row = dict[str, str]
_LONGEST_HEADER = 2**20


def read_rows(
    path: Path,
    separator: str | None = None,
    header: int = 0,
    check: Callable[[Sequence[str]], object] = lambda names: None,
) -> list[Row]:
    """Every row as column name -> text. Column names and cells lose outer blanks; an unnamed column is left out.

    Args:
        path: ``.csv``, ``.tsv``, ``.txt``, each also with ``.gz``, or ``.xlsx``.
        separator: between cells of a text table; found from the header line by default.
        header: number of lines above the header.
        check: called with the names of all columns; of names that occur again the last column counts.

    Raises:
        InputError: the file cannot be read as a table, or what ``check`` raises.
    """
    try:
        cells = _excel(path) if path.suffix.lower() in (".xlsx", ".xlsm") else _text(path, separator)
        for _ in range(header):
            next(cells, None)
        names = [name.strip() for name in next(cells, [])]
        check(names)
        return [{name: cell.strip() for name, cell in zip(names, row) if name} for row in cells if any(row)]
    except InputError:
        raise
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table ({error}).") from error


def read_header(path: Path) -> list[str]:
    """Column names of a text table, without its rows.

    Raises:
        InputError: the file cannot be read as a table.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            line = file.readline(_LONGEST_HEADER).decode("utf-8-sig", errors="replace")
        return [name.strip() for name in next(csv.reader([line], delimiter=max(",;\t", key=line.count)), [])]
    except (OSError, EOFError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table ({error}).") from error


def _text(path: Path, separator: str | None) -> Iterator[list[str]]:
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        data = gzip.decompress(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    first = text.split("\n", 1)[0]
    yield from csv.reader(text.splitlines(), delimiter=separator or max(",;\t", key=first.count))


def _excel(path: Path) -> Iterator[list[str]]:
    import zipfile

    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is no Excel file.") from error
    for row in book.worksheets[0].iter_rows(values_only=True):
        yield ["" if cell is None else str(cell) for cell in row]
    book.close()
