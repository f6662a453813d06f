"""Files written whole or not at all, in one place: temporary name, disk, rename; and what a full disk looks like.

A writer that is killed leaves at most a temporary neighbour ``.NAME.PID.tmp``, which the next one cleans up. Folders of
runs hear of every file written in them (see `frepa.run_folders`), because everything is written through here.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frepa.names import cell, size_words

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LITTLE, _FEW = 2**20, 8  # bytes, and files, left of a disk that is full: a lock, say, was removed meanwhile
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.tmp$")
_BLOCK = 2**22

# Folders that want to know what is written in them, the inner ones last, with the function that is told.
_listeners: list[tuple[str, Callable[[str, bool], None]]] = []


def write_atomically(path: Path, write: Callable[[Path], Any], *, sync: bool = True) -> None:
    """Let ``write`` fill a temporary neighbour of ``path``, then rename it; on any failure ``path`` stays as it was.

    The permissions are those the user's umask gives, whatever ``write`` made of them.

    Args:
        path: in a folder that exists.
        write: given the temporary path, in the same folder.
        sync: bring file and rename to the disk first, so that a power cut loses neither.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    announce(path)
    temporary = temporary_of(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; some libraries make their files private
        write(temporary)
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        if sync:
            sync_to_disk(temporary)
        os.replace(temporary, path)
        if sync:
            sync_to_disk(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Replace ``path`` by ``content`` in one step."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content), sync=sync)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace ``path`` by ``text`` (UTF-8, line ends as they are) in one step."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), sync=sync)


def write_json(path: Path, values: Any) -> None:
    """JSON for people, with NaN and infinities as null, since neither is JSON."""
    write_text(path, json.dumps(plain(values), indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, end: str = "\r\n") -> None:
    """One line per row; NaN and missing cells are empty, floats have six decimals."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in columns])
    write_bytes(path, text.getvalue().encode("utf-8", "replace"))


def append_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a JSON-lines file, all in one write: a kill in between leaves at most one line cut short."""
    text = "".join(json.dumps(plain(row)) + "\n" for row in rows)
    if text:
        announce(path)
        with open(path, "ab", buffering=0) as file:
            view = memoryview(text.encode("utf-8"))
            while len(view):
                view = view[file.write(view) :]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none where it does not exist. What is no row of ours is left out."""
    rows = []
    if Path(path).is_file():
        for line in Path(path).read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
    return rows


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the rows of a JSON-lines file that are not to be kept, and a line that a kill cut short."""
    if not Path(path).is_file():
        return
    kept = []
    for line in Path(path).read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if keep(json.loads(line)):
                kept.append(line + "\n")
    write_text(path, "".join(kept))


def temporary_of(path: Path) -> Path:
    """The name under which this process writes ``path`` before it is renamed."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def clean_temporaries(folder: Path, *, names: Iterable[str] | None = None, older_than: float = 0.0) -> int:
    """Remove what killed writers left in ``folder``; returns how many files.

    Args:
        folder: looked at itself, not below; one that is missing holds nothing.
        names: only temporaries of files of these names; None for all.
        older_than: seconds since they were last written. Where several processes may be at work, and not only this
            one, give hours: their process numbers may be another machine's.
    """
    wanted = None if names is None else set(names)
    removed = 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in list(entries):
            match = _TEMPORARY.match(entry.name)
            if match is None or (wanted is not None and match["name"] not in wanted):
                continue
            with contextlib.suppress(OSError):
                if int(match["pid"]) != os.getpid() and time.time() - entry.stat().st_mtime >= older_than:
                    os.unlink(entry.path)
                    removed += 1
    return removed


def remove_empty(folder: Path) -> None:
    """Remove ``folder`` and the folders below it, as far as no file is in them."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def sync_to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if os.path.isdir(path):  # Windows opens no folders; there the rename is enough
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if not os.path.isdir(path):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def full_disk(error: BaseException) -> bool:
    """Whether an error says that nothing more can be written there: no space, a quota, a limit on a file's size."""
    return isinstance(error, OSError) and error.errno in _FULL


def full_words(error: OSError, folder: Path) -> tuple[str, str]:
    """What takes no more of a file in ``folder``, as a sentence without its end, and what to do, in two words or more.

    The room that is free is what the system says of the disk. It is no answer where a quota or a limit has ended, and
    is named as what it is: a file that did not fit may also have been larger than all that is free without it.

    Args:
        error: of which `full_disk` says that it is one.
        folder: that exists.
    """
    free = shutil.disk_usage(folder).free
    if error.errno == errno.EFBIG:
        return f"A file in {folder} has grown as large as files may here (see ulimit -f)", "Allow larger ones"
    if error.errno == errno.EDQUOT:
        words = f"Your quota on the disk of {folder} is full, though the disk has {size_words(free)} left"
        return words, "Make room in it, or have it raised,"
    if free < _LITTLE:
        return f"The disk of {folder} is full ({size_words(free)} left)", "Make room"
    if hasattr(os, "statvfs"):
        room = os.statvfs(folder)
        if room.f_files and room.f_favail < _FEW:
            return f"The disk of {folder} is full: it holds as many files as it can", "Remove some"
    words = (
        f"The disk of {folder} is full: what was written last did not fit, though {size_words(free)} are free without "
        "it (a quota may end before the disk does)"
    )
    return words, "Make room"


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str], *, sync: bool = True) -> None:
    """A safetensors file, whole or not at all."""
    write_atomically(path, lambda temporary: fill_tensors(temporary, tensors, metadata), sync=sync)


def fill_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file as it is, for a function that `write_atomically` is given.

    Raises:
        OSError: as Python itself says it; the library hides a full disk in an error of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError:
        # At least as much as it was: the header tells every name, shape and place, and the metadata, escaped as JSON
        header = 512 * (1 + len(tensors)) + 6 * sum(map(len, [*tensors, *metadata, *metadata.values()]))
        _write_zeros(path, header + sum(tensor.nbytes for tensor in tensors.values()))
        raise


@contextlib.contextmanager
def listening(folder: Path, tell: Callable[[str, bool], None]) -> Iterator[None]:
    """While inside, ``tell(path, made)`` hears of every file about to be written below ``folder``, by absolute path.

    Of folders inside each other the inner one alone is told.
    """
    entry = (os.path.abspath(folder) + os.sep, tell)
    _listeners.append(entry)
    try:
        yield
    finally:
        _listeners.remove(entry)


def announce(path: Path, *, made: bool = False) -> None:
    """Say that ``path`` is about to be written, or was just ``made``: for writers that cannot use what is above."""
    absolute = os.path.abspath(path)
    inside = [entry for entry in _listeners if absolute.startswith(entry[0])]
    if inside:
        max(inside, key=lambda entry: len(entry[0]))[1](absolute, made)


def plain(value: Any) -> Any:
    """Values as JSON has them: named tuples as objects, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6f}" if math.isfinite(value) else ""
    return "" if value is None else cell(value) if isinstance(value, str) else value


def _write_zeros(path: Path, count: int) -> None:
    """Fail as the operating system does where ``count`` bytes have no room; a library had failed to write them."""
    with open(path, "wb", buffering=0) as file:
        while count > 0:
            count -= file.write(bytes(min(count, _BLOCK)))
        os.fsync(file.fileno())
