"""Which files a source names: walking folders, matching globs, reading manifests. No pixel is looked at here."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, csv, parquet

from frepa.errors import InputError, nearest
from frepa.images.readers.registry import reader_at

_DIMS = {"2": 2, "2d": 2, "3": 3, "3d": 3}
_COLUMNS = ("path", "image", "label", "group", "modality", "dim", "unit", "slope", "intercept", "split", "mask")
_KEPT = ("label", "group", "modality", "unit", "slope", "intercept", "split", "mask")


@dataclass(frozen=True)
class Found:
    """A file as found, or several that are one record.

    Attributes:
        name: relative to the root, with forward slashes.
        member: the member named, or None.
        size: bytes; -1 where it is absent.
        row: row of the manifest.
        parts: names of the files of a series, in the order of its slices; () for a file of its own.
        count: records in it, None where its header has to tell.
        modality, group, notes: of its header, as in `frepa.images.scan.Scan`.
        size_claimed: extent of one record by its header, where that was read already.
        reason: why it cannot be used; "" where it can.
    """

    name: str
    member: str | None
    size: int
    row: int = 0
    parts: tuple[str, ...] = ()
    count: int | None = None
    modality: str = ""
    group: str = ""
    notes: tuple[str, ...] = ()
    size_claimed: tuple[int, ...] = ()
    reason: str = ""

    def changed(self, **changes: Any) -> Found:
        return replace(self, **changes)


def find_files(text: str, dims: int) -> tuple[Path, Iterator[Found]]:
    """Root and files of a folder, glob pattern or single file (``file.npz#member``)."""
    path = Path(text).expanduser()
    if path.is_dir():
        return path, _walk(path, "", dims, ())
    if path.is_file():
        return path.parent, iter([Found(path.name, None, path.stat().st_size)])
    file, hash_sign, member = str(path).rpartition("#")
    if hash_sign and os.path.isfile(file):
        return Path(file).parent, iter([Found(Path(file).name, member, os.path.getsize(file))])
    if hash_sign and os.path.isdir(file):
        return Path(file).parent, iter([Found(Path(file).name, member, _folder_size(file))])
    if glob.has_magic(str(path)):
        return _glob(path, text, dims)
    if hash_sign and not os.path.exists(file):
        path = Path(file)
    raise InputError(f"{path} does not exist.{_suggestion(path)} Give a folder, a file, a glob pattern or a manifest.")


def _suggestion(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        while not parent.is_dir() and parent != parent.parent:
            parent = parent.parent
        return f" {parent} is there, what follows it is not."
    names = [entry.name for entry in os.scandir(parent) if not entry.name.startswith(".")][:2000]
    sentence = nearest(path.name, names) if names else ""
    return f" {sentence}" if sentence.startswith("Did you mean") else ""


def _walk(root: Path, folder: str, dims: int, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    """Files that have a reader, depth first, sorted by name in every folder, so the order is the same everywhere."""
    here = root / folder if folder else root
    status = os.stat(here)
    if (status.st_dev, status.st_ino) in above:  # a link that leads back up
        return
    above = (*above, (status.st_dev, status.st_ino))
    with os.scandir(here) as entries:
        listed = sorted(
            (entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"),
            key=lambda entry: entry.name,
        )
    for entry in listed:
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_dir():
            yield from _walk(root, name, dims, above)
            continue
        reader = reader_at(Path(entry.path))
        if reader is not None and dims in reader.dims:
            yield Found(name, None, _size(entry.path))


def _size(path: str | Path) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return -1
    return status.st_size


def _folder_size(folder: str | Path) -> int:
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())


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
            inside = _walk(root, match, dims, ()) if (root / match).is_dir() else _matched(root, match, dims)
            for found in inside:
                if found.name not in seen:
                    seen.add(found.name)
                    yield found

    return root, files()


def _matched(root: Path, name: str, dims: int) -> Iterator[Found]:
    reader = reader_at(root / name)
    if reader is not None and dims in reader.dims:
        yield Found(name, None, _size(root / name))


def _hidden(name: str) -> bool:
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def manifest_files(text: str, dims: int) -> tuple[Path, Iterator[Found], dict[str, pa.DictionaryArray]]:
    """Root, files and columns (one text per row, "" where empty) of a manifest.

    The columns are ``label``, ``group``, ``modality``, ``split``, ``mask``, and ``unit``, ``slope`` and ``intercept``
    for files whose values mean more than they say (16-bit PNG of CT: unit HU, intercept -32768).

    ``path`` is relative to the manifest's folder and may name a member (``x.npz#train_images``) or a
    DICOM series (its folder). A ``dim`` column with
    2, 2D, 3 or 3D keeps the rows of that kind; other values leave the decision to the file. Rows keep their order.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        raise InputError(f"The manifest {text} does not exist.{_suggestion(path)}")
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
    columns = {
        name: table[name].cast(pa.string()).fill_null("").combine_chunks().dictionary_encode()
        for name in _KEPT
        if name in table.column_names
    }
    paths = table[files].cast(pa.large_string()).combine_chunks()
    wanted = _wanted_rows(table, dims)
    if not len(wanted):
        raise InputError(
            f"The manifest {text} lists no {dims}D image in its column 'dim'. Use dims {5 - dims}, or correct it."
        )
    return path.parent, _listed(str(path.parent), paths, wanted), columns


def _table(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path)
        strings = csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()), strings_can_be_null=False)
        return csv.read_csv(path, convert_options=strings)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"The manifest {path} cannot be read: {reason}. Expected a .csv or .parquet table with a column 'path'."
        ) from None


def _wanted_rows(table: pa.Table, dims: int) -> np.ndarray:
    if "dim" not in table.column_names:
        return np.arange(table.num_rows)
    values = compute.utf8_lower(compute.utf8_trim_whitespace(table["dim"].cast(pa.string())))
    other = pa.array([text for text, number in _DIMS.items() if number != dims])
    return np.flatnonzero(~compute.is_in(values, value_set=other).to_numpy(zero_copy_only=False))


def _listed(root: str, paths: pa.Array, wanted: np.ndarray) -> Iterator[Found]:
    for row in wanted.tolist():
        text = (paths[row].as_py() or "").strip()
        file, member = os.path.join(root, text), None
        size = _size(file)
        if size < 0 and "#" in text:
            text, _, member = text.rpartition("#")
            file = os.path.join(root, text)
            size = _size(file)
        if not text:
            text, size = f"(row {row + 1})", -1
        elif os.path.isdir(file):  # a DICOM series
            size = _folder_size(file)
        yield Found(Path(text).as_posix(), member, size, row)
