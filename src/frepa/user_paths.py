"""Which files a text of the user means: folders, globs, manifests, specifications such as ``slices:FILE,width=64``."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from frepa.errors import InputError
from frepa.names import shown

_GLOB = re.compile(r"[*?\[]")
_TABLES = (".csv", ".parquet")


def named_folder(out: str | Path) -> Path:
    """The path of ``--out``; nothing is asked of the disk but whether a folder may have such a name.

    Raises:
        InputError: it is empty, or no name that the system takes.
    """
    if not str(out).strip():
        raise InputError("--out is empty. Name a folder, such as runs/first.")
    try:
        os.lstat(out)
    except ValueError:
        raise InputError(f"--out {shown(out)}: no folder can have this name. Name another one.") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            name = f"{str(out)[:40]}..." if len(str(out)) > 80 else str(out)
            reason = "longer than the system allows" if error.errno == errno.ENAMETOOLONG else error.strerror
            raise InputError(f"--out {shown(name)}: the name is {reason}. Name another folder.") from None
    return Path(out)


def as_list(source: str | Sequence[str]) -> list[str]:
    """One source, or several, as a list."""
    return [source] if isinstance(source, str) else list(source)


def check_source_name(text: str) -> None:
    """Raise InputError where no file or folder can be meant by ``text``, whatever kind of source it is."""
    if not text.strip():
        raise InputError("The source is empty. Give a folder, a file, a glob pattern or a manifest.")
    try:
        os.lstat(text)
    except ValueError:
        raise InputError(f"{shown(text)}: no file or folder can have this name.") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{shown(text[:40])}...: the name is longer than the system allows.") from None


def paths_in(text: str) -> Iterator[Path]:
    """Every existing file or folder that ``text`` may name, whatever stands before and after it.

    Looks behind each ":" and "@" (schemes, checkpoints), and before "?", "#", "," (options, members); of a glob it is
    the folder in which it begins.
    """
    seen = set()
    for start in [0, *(match.end() for match in re.finditer(r"[:@]", text))]:
        rest = text[start:]
        for end in [len(rest), *(match.start() for match in re.finditer(r"[?#,]", rest))]:
            part = rest[:end]
            if part and part not in seen:
                seen.add(part)
                path = Path(part).expanduser()
                with contextlib.suppress(OSError, ValueError):
                    if path.exists():
                        yield path
        match = _GLOB.search(rest)
        if match is not None:
            folder = Path(rest[: match.start()] + "x").expanduser().parent
            with contextlib.suppress(OSError, ValueError):
                if folder.is_dir():
                    yield folder


def inputs_near(root: Path, text: str | Path | None) -> Iterator[tuple[str, Path]]:
    """What ``text`` names that lies at, inside or around the folder ``root``: the word, and the path.

    Links are followed. Of a manifest the files it lists count too.
    """
    if text is None:
        return
    out = os.path.realpath(root)
    for path in paths_in(str(text)):
        found = os.path.realpath(path)
        if found == out:
            yield "at", path
        elif found.startswith(_below(out)):
            yield "inside", path
        elif out.startswith(_below(found)):
            yield "around", path
        elif path.suffix.lower() in _TABLES and path.is_file():
            listed = next((cell for cell in _listed(path) if (os.path.realpath(cell)).startswith(_below(out))), None)
            if listed is not None:
                yield "inside", Path(listed)


def _below(folder: str) -> str:
    return folder if folder.endswith(os.sep) else folder + os.sep


def _listed(table: Path) -> Iterator[str]:
    """One path of each folder that the text columns of a manifest name; links of folders are followed by the caller."""
    folders = set()
    for cell in cells_of(table):
        if len(cell) < 4096 and "\0" not in cell:
            path = os.path.join(table.parent, cell)
            if os.path.dirname(path) not in folders:
                folders.add(os.path.dirname(path))
                yield path


def cells_of(table: Path) -> Iterator[str]:
    """Every different text in the columns of a manifest; none where it is no table.

    A table that cannot be read lists nothing here: whoever opens it says what is wrong with it.
    """
    if table.suffix.lower() not in _TABLES:
        return
    import pyarrow as pa
    from pyarrow import csv, parquet

    name = os.path.abspath(table)  # Arrow takes ~ for a home and a colon for an address
    try:
        read = parquet.read_table(name) if table.suffix.lower() == ".parquet" else csv.read_csv(name)
    except (OSError, pa.ArrowException):
        return
    for column in read.columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            yield from filter(None, column.unique().to_pylist())
