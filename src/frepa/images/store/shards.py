"""Writing one shard: records in the order of the source, a journal line each, continued where it was cut."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frepa.files import sync_to_disk
from frepa.images.scan import UnreadableScan
from frepa.images.source import Source
from frepa.images.store.labels import Labels, pack_masks, pieces
from frepa.images.store.layout import StoreFolder
from frepa.images.store.records import anonymous_id, pack_scan

#: Left free on the disk, so that the index, other programs and the user's shell still work.
RESERVE_BYTES = 2**26


class DiskFull(Exception):
    """The next record would leave too little room. What was written so far stays and is continued from."""


class Stopped(Exception):
    """The writer was asked to end before the next record."""


@dataclass(frozen=True)
class Shard:
    """Records ``first .. last - 1`` of the source, to be written to shard ``number``."""

    number: int
    first: int
    last: int


def write_shard(
    source: Source,
    folder: StoreFolder,
    shard: Shard,
    *,
    quantize: bool,
    progress: Callable[[int], None],
    go_on: Callable[[], bool],
    labels: Labels | None = None,
) -> None:
    """Write a shard, or what is missing of it.

    Args:
        source: where records come from.
        folder: of the store; its ``unfinished`` and ``shards`` folders exist.
        shard: which records.
        quantize: as in `frepa.images.store.records.pack_scan`.
        progress: called with the number of records done since the last call.
        go_on: asked before each record.
        labels: whose masks are written behind each image.

    Raises:
        DiskFull: the file system would have no room left for anything else.
        OSError: it has none.
        Stopped: ``go_on`` said no.
    """
    with _locked(folder.journal(shard.number)) as journal:
        # Asked under the lock: a worker that outlived its killed parent may just have finished this shard
        if folder.shard(shard.number).exists():
            return
        part = folder.part(shard.number)
        done, end = _continue(part, journal, shard)
        with open(part, "r+b", buffering=0) as data:
            data.truncate(end)
            data.seek(end)
            for index in range(shard.first + done, shard.last):
                if not go_on():
                    raise Stopped
                packed, line = _record(source, index, quantize, labels)
                _check_space(folder.root, len(packed))
                _write(data.fileno(), packed)
                _write(journal, (json.dumps(line) + "\n").encode())
                progress(1)
        sync_to_disk(part)
        os.fsync(journal)
        os.replace(part, folder.shard(shard.number))
        sync_to_disk(folder.shards)


def journal_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a journal, one per record of the shard in order; a torn last line is left out."""
    try:
        with open(path, "rb") as file:
            for text in file:
                if not text.endswith(b"\n"):
                    return
                yield json.loads(text)
    except FileNotFoundError:
        return


def _record(source: Source, index: int, quantize: bool, labels: Labels | None) -> tuple[bytes, dict[str, Any]]:
    """Bytes and journal line of a record; no bytes and the reason for one that cannot be used."""
    try:
        scan = source.read(index)
        packed, facts = pack_scan(scan, quantize=quantize)
        masks = pack_masks(labels, index, scan)
    except UnreadableScan as error:
        return b"", {"record": index, "skipped": error.reason, "id": anonymous_id(source.name(index))}
    except MemoryError:
        raise
    except Exception as error:
        # One odd file must not end a job of days; what a library said may hold a name, so only its kind is kept
        reason = f"could not be packed ({type(error).__name__})"
        return b"", {"record": index, "skipped": reason, "id": anonymous_id(source.name(index))}
    if masks:
        packed = b"".join([packed, *(mask.data for _, mask in masks)])
        facts["masks"] = {column: mask.facts for column, mask in masks}
    return packed, {"record": index, **facts}


def _continue(part: Path, journal: int, shard: Shard) -> tuple[int, int]:
    """How many records of the shard are done, and the bytes they take; cuts the journal behind the last good one.

    Every record is compared with its hash: after a power failure a journal may be ahead of the data it tells of.
    """
    part.touch()
    done, end, journal_end = 0, 0, 0
    with open(part, "rb") as data, os.fdopen(os.dup(journal), "rb") as lines:
        lines.seek(0)
        for text in lines:
            try:
                line = json.loads(text) if text.endswith(b"\n") else None
            except ValueError:
                line = None
            if line is None or line.get("record") != shard.first + done:
                break
            lengths = [
                length
                for length, sha256 in pieces(line)
                if hashlib.sha256(data.read(length)).hexdigest()[:32] == sha256
            ]
            if len(lengths) < len(list(pieces(line))):
                break
            end += sum(lengths)
            done += 1
            journal_end += len(text)
    os.ftruncate(journal, journal_end)
    return done, end


def _check_space(root: Path, needed: int) -> None:
    if shutil.disk_usage(root).free < needed + RESERVE_BYTES:
        raise DiskFull("the disk is nearly full")


def _write(handle: int, data: bytes) -> None:
    """Write all of ``data``; a file opened for appending or positioned at its end."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(handle, view) :]


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """An appending handle to a file that only one process holds at a time."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        _lock(handle)
        yield handle
    finally:
        os.close(handle)  # gives the lock back


def _lock(handle: int) -> None:
    """Wait for the lock of an open file; go on without where the file system knows none."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - not a POSIX system
        return
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
