"""Which files a source names: walking folders, matching globs, reading manifests. No pixel is looked at here."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute, csv

from frepa.errors import InputError, near_names
from frepa.images.guards import not_a_file, why
from frepa.images.places import split_member
from frepa.images.readers.registry import Reader, may_be_dicom, plain_endings, reader_at, reader_for
from frepa.images.scan import Note, Trouble
from frepa.images.tables import check_columns, read_parquet
from frepa.names import shown
from frepa.run_folders import MARK

_CHUNK = 65536
_DIMS = {"2": 2, "2d": 2, "3": 3, "3d": 3}
#: Columns of a manifest that say something of an image (`frepa.datasets.annotations`), beside ``mask_<target>``.
ANNOTATED = ("label", "group", "split", "fold", "mask", "case")
_KEPT = (*ANNOTATED, "modality", "unit", "slope", "intercept")
_COLUMNS = ("path", "image", *_KEPT, "dim", "fov", "name")
# Other names of columns
_ALSO = {"fov": "mask_fov", "name": "case"}


class Found(NamedTuple):
    """A file as found, or several that are one record.

    Attributes:
        name: relative to the root, with forward slashes.
        member: the member named, or None.
        size: bytes; -1 where it is absent.
        row: row of the manifest.
        parts: names of the files of a series, in the order of its slices; () for a file of its own.
        count: records in it, None where its header has to tell.
        record: the one record of it that is named, ``images[17]``, or None for all.
        modality, group, notes: of its header, as in `frepa.images.scan.Scan`.
        size_claimed: extent of one record by its header, where that was read already.
        reason, trouble: why it cannot be used, in words and as a kind; "" where it can.
    """

    name: str
    member: str | None
    size: int
    row: int = 0
    parts: tuple[str, ...] = ()
    count: int | None = None  # type: ignore[assignment]  # what tuples call count is of no use here
    record: int | None = None
    modality: str = ""
    group: str = ""
    notes: tuple[Note, ...] = ()
    size_claimed: tuple[int, ...] = ()
    reason: str = ""
    trouble: Trouble = "unreadable"

    def changed(self, **changes: Any) -> Found:
        return self._replace(**changes)


class Plain(NamedTuple):
    """Files of a table that are there and are one image each, as nearly all are in long ones.

    Attributes:
        reader: of them all.
        names, sizes, rows: as of `Found`.
    """

    reader: Reader
    names: list[str]
    sizes: list[int]
    rows: list[int]


def find_files(text: str, dims: int) -> tuple[Path, Iterator[Found]]:
    """Root and files of a folder, glob pattern or single file (``file.npz#member``)."""
    if not text.strip():
        raise InputError("The source is empty. Give a folder, a file, a glob pattern or a manifest.")
    path = Path(text).expanduser()
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK):
            raise InputError(f"{shown(path)} may not be read: you have no permission for this folder.")
        return path, _walk(path, "", dims, ())
    if os.path.isfile(path):
        return path.parent, iter([_entry(path.name, path)])
    if os.path.exists(path):
        raise InputError(f"{shown(path)} is {not_a_file(os.stat(path).st_mode)}.")
    file, hash_sign, rest = str(path).rpartition("#")
    member, record = split_member(rest)
    if hash_sign and os.path.isfile(file):
        return Path(file).parent, iter([_entry(Path(file).name, file, member).changed(record=record)])
    if hash_sign and os.path.isdir(file):
        return Path(file).parent, iter([_entry(Path(file).name, file, member)])
    if glob.has_magic(str(path)):
        return _glob(path, text, dims)
    if hash_sign and not os.path.exists(file):
        path = Path(file)
    if os.path.islink(path):
        raise InputError(
            f"{shown(path)} is a link that leads to itself or to nothing. Give a folder, a file, a glob pattern or a "
            "manifest."
        )
    raise InputError(
        f"{shown(path)} does not exist.{_suggestion(path)} Give a folder, a file, a glob pattern or a manifest."
    )


def _suggestion(path: Path) -> str:
    parent = path.parent
    if not os.path.isdir(parent):
        while not os.path.isdir(parent) and parent != parent.parent:
            parent = parent.parent
        return f" {shown(parent)} is there, what follows it is not."
    if not os.access(parent, os.R_OK):
        return ""
    names = [entry.name for entry in os.scandir(parent) if not entry.name.startswith(".")][:2000]
    close = [shown(name) for name in near_names(path.name, names)]
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _walk(root: Path, folder: str, dims: int, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    """Files that have a reader, depth first, sorted by name in every folder, so the order is the same everywhere.

    What a run of this program wrote into a folder below the one that was named is no part of it.
    """
    here = os.path.join(root, folder) if folder else str(root)
    try:
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in above:  # a link that leads back up
            return
        if folder and os.path.exists(os.path.join(here, MARK)):
            reason = "a folder that frepa wrote; it is read where it is named itself"
            yield Found(f"{folder}/", None, -1, reason=reason, trouble="left out")
            return
        with os.scandir(here) as entries:
            listed = sorted(
                (entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        reason, kind = why(error)
        yield Found(f"{folder or '.'}/", None, -1, reason=f"a folder that {reason}", trouble=kind)
        return
    above = (*above, (status.st_dev, status.st_ino))
    files = [entry.name for entry in listed if not _is_folder(entry)]
    by_content = dicom_by_content(here, files)
    for entry in listed:
        name = f"{folder}/{entry.name}" if folder else entry.name
        if _is_folder(entry):
            yield from _walk(root, name, dims, above)
            continue
        reader = reader_for(entry.name)
        if reader is not None and dims in reader.dims:
            yield _entry(name, entry.path)
        elif reader is None and entry.name in by_content:
            reason = by_content[entry.name]
            found = _entry(name, entry.path)
            yield found if found.reason or not reason else found.changed(reason=reason, trouble="damaged")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def dicom_by_content(folder: str | Path, names: Iterable[str]) -> dict[str, str]:
    """Files without a known ending that are DICOM by content, or that can be nothing else because of their names.

    The reason is "" for the first. The others are named like the DICOM files beside them (``IM0007`` among ``IM0006``
    and ``IM0008``) but cannot be read as such: slices that are lost, which must not be lost in silence.
    """
    unknown = [name for name in names if reader_for(name) is None and may_be_dicom(name)]
    is_dicom = {name: reader_at(Path(folder, name)) is not None for name in unknown}
    patterns = {_numberless(name) for name, known in is_dicom.items() if known}
    text = "not a DICOM file, though the files beside it that are named alike are"
    return {name: "" if known else text for name, known in is_dicom.items() if known or _numberless(name) in patterns}


def _numberless(name: str) -> str:
    return re.sub(r"[0-9]+", "#", name)


def _entry(name: str, path: str | Path, member: str | None = None, row: int = 0) -> Found:
    """A file as found; with a reason where it cannot be opened, or is a pipe, a socket or a device."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason, kind = why(error)
        return Found(name, member, -1, row, reason=reason, trouble=kind)
    if stat.S_ISDIR(status.st_mode):  # a DICOM series
        return Found(name, member, _folder_size(path), row)
    if not stat.S_ISREG(status.st_mode):
        return Found(name, member, -1, row, reason=not_a_file(status.st_mode), trouble="not a file")
    return Found(name, member, status.st_size, row)


def _folder_size(folder: str | Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.is_file())
    except OSError:
        return -1


def _glob(path: Path, text: str, dims: int) -> tuple[Path, Iterator[Found]]:
    fixed = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = Path(*fixed) if fixed else Path()
    pattern = os.path.join(*path.parts[len(fixed) :])
    matches = sorted(Path(match).as_posix() for match in glob.glob(pattern, root_dir=root, recursive=True))
    matches = [match for match in matches if not _hidden(match)]
    if not matches:
        raise InputError(f"No file matches {text}. Check the pattern; ** stands for any number of folders.")

    def files() -> Iterator[Found]:
        seen = set()
        for match in matches:
            inside = _walk(root, match, dims, ()) if os.path.isdir(root / match) else _matched(root, match, dims)
            for found in inside:
                if found.name not in seen:
                    seen.add(found.name)
                    yield found

    return root, files()


def _matched(root: Path, name: str, dims: int) -> Iterator[Found]:
    reader = reader_at(root / name)
    if reader is not None and dims in reader.dims:
        yield _entry(name, root / name)


def _hidden(name: str) -> bool:
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def manifest_files(text: str, dims: int) -> tuple[Path, Iterator[Found | Plain], dict[str, pa.DictionaryArray], int]:
    """Root, files, columns (one text per row, "" where empty) of a manifest, and how many rows ``dim`` leaves out.

    The columns are ``label``, ``group``, ``modality``, ``split``, ``fold``, ``mask`` and ``mask_<target>`` (``fov`` is
    ``mask_fov``), ``case`` (or ``name``), and ``unit``, ``slope`` and ``intercept`` for files whose values mean more
    than they say (16-bit PNG of CT: unit HU, intercept -32768).

    ``path`` is relative to the manifest's folder and may name a member (``x.npz#train_images``) or a
    DICOM series (its folder). A ``dim`` column with
    2, 2D, 3 or 3D keeps the rows of that kind; other values leave the decision to the file. Rows keep their order.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        raise InputError(f"The manifest {shown(text)} does not exist.{_suggestion(path)}")
    table = _table(path)
    # Tables of labelled cases call the same column image
    files = next((name for name in ("path", "image") if name in table.column_names), None)
    if files is None:
        raise InputError(
            f"The manifest {text} has no column 'path'; its columns are {', '.join(table.column_names)}. "
            f"Name the column that holds the files 'path'. Other columns used: {', '.join(_KEPT)}, dim."
        )
    if table.num_rows == 0:
        raise InputError(f"The manifest {text} has no rows. Add one row per image, with its file in the column 'path'.")
    columns = {}
    for name in table.column_names:
        called = _ALSO.get(name, name)
        if called in _KEPT or called.startswith("mask_"):
            columns[called] = _trimmed(table[name].cast(pa.string()))
    paths = table[files].cast(pa.large_string()).combine_chunks()
    wanted = _wanted_rows(table, dims)
    if not len(wanted):
        raise InputError(
            f"The manifest {text} lists no {dims}D image in its column 'dim'. Use dims {5 - dims}, or correct it."
        )
    listed = _listed(str(path.parent), paths, wanted, plain_endings(dims))
    return path.parent, listed, columns, table.num_rows - len(wanted)


def _trimmed(cells: pa.ChunkedArray) -> pa.DictionaryArray:
    """Cells without the space around them, "" for none; only what differs is kept as text."""
    encoded = (cells.fill_null("") if cells.null_count else cells).dictionary_encode().combine_chunks()
    distinct = compute.utf8_trim_whitespace(encoded.dictionary).dictionary_encode()
    return pa.DictionaryArray.from_arrays(distinct.indices.take(encoded.indices), distinct.dictionary)


def _table(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            table = read_parquet(path)
        else:
            strings = csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()), strings_can_be_null=False)
            table = csv.read_csv(os.path.abspath(path), convert_options=strings)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = shown(" ".join(str(error).split())[:200])
        raise InputError(
            f"The manifest {shown(path)} cannot be read: {reason}. Expected a .csv or .parquet table with a column "
            "'path'."
        ) from None
    check_columns(path, table, [*_COLUMNS, *(name for name in table.column_names if name.startswith("mask_"))])
    return table


def _wanted_rows(table: pa.Table, dims: int) -> np.ndarray:
    if "dim" not in table.column_names:
        return np.arange(table.num_rows)
    values = compute.utf8_lower(compute.utf8_trim_whitespace(table["dim"].cast(pa.string())))
    other = pa.array([text for text, number in _DIMS.items() if number != dims])
    return np.flatnonzero(~compute.is_in(values, value_set=other).to_numpy(zero_copy_only=False))


def _listed(root: str, paths: pa.Array, wanted: np.ndarray, endings: dict[str, Reader]) -> Iterator[Found | Plain]:
    here = os.path.join(root, "")
    for rows in _rows(paths, wanted):
        plain: Plain | None = None
        for row, text in rows:
            text = (text or "").strip()
            reader = endings.get(text[text.rfind(".") :]) if text else None
            size = 0 if reader is None else _plain_size(here, text)
            if plain is not None and (not size or plain.reader is not reader):
                yield plain
                plain = None
            if size and reader is not None:
                if plain is None:
                    plain = Plain(reader, [], [], [])
                plain.names.append(text)
                plain.sizes.append(size)
                plain.rows.append(row)
            elif text:
                yield named(root, text, row)
            else:
                yield Found(f"(row {row + 1})", None, -1, row, reason="no file is named", trouble="empty")
        if plain is not None:
            yield plain


def _plain_size(here: str, text: str) -> int:
    """Bytes of a file whose name says all there is to say of it; 0 for anything else, also where nothing is wrong."""
    dot = text.rfind(".")
    if dot < 1 or text[dot - 1] == "/" or _normal(text) is not text:
        return 0
    try:
        status = os.stat(text if text[0] == "/" else here + text)
    except (OSError, ValueError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def named(root: str, text: str, row: int = 0) -> Found:
    """The file, member, page or single record that a table names, relative to ``root``; size -1 where it is absent."""
    found = _entry(_normal(text), os.path.join(root, text), row=row)
    if found.size < 0 and "#" in text:
        file, _, rest = text.rpartition("#")
        member, record = split_member(rest)
        found = _entry(_normal(file), os.path.join(root, file), member, row).changed(record=record)
    return found


def _rows(paths: pa.Array, wanted: np.ndarray) -> Iterator[Iterator[tuple[int, str | None]]]:
    for start in range(0, len(wanted), _CHUNK):
        part = wanted[start : start + _CHUNK]
        yield zip(part.tolist(), paths.take(pa.array(part)).to_pylist())


def _normal(text: str) -> str:
    """``Path(text).as_posix()``, which a name that is plain already need not go through."""
    if os.sep == "/" and "//" not in text and "/./" not in text and text[:2] != "./" and text[-1:] not in "/.":
        return text
    return Path(text).as_posix()
