"""``.gz`` around a file of any format: unpacked beside the temporary files, for readers that need a file.

Unpacking stops at `frepa.images.guards.memory_limit`, so a few kilobytes cannot fill a disk. The last few files of a
thread are kept until others take their place, so that the records of a stack are not unpacked one by one.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import os
import shutil
import tempfile
import threading
import weakref
import zlib
from collections import OrderedDict
from multiprocessing import util
from pathlib import Path

from frepa.images.guards import VARIABLE, file_status, memory_limit, why
from frepa.images.scan import UnreadableScan
from frepa.names import size_words

_PREFIX = "frepa-unpacked-"
_KEPT = 4
_PIECE = 2**20

_own = threading.local()
_numbers = itertools.count()


class _Kept:
    """What one thread of one process has unpacked, so that none takes away what another reads; gone with the thread."""

    def __init__(self, folder: Path) -> None:
        self.process, self.folder = os.getpid(), folder
        self.files: OrderedDict[tuple[str, int, int], Path] = OrderedDict()
        weakref.finalize(self, _remove, folder, self.process)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process has its parent's by inheritance, not to take away
        shutil.rmtree(folder, ignore_errors=True)


def _kept() -> _Kept:
    kept: _Kept | None = getattr(_own, "kept", None)
    folder = _own_folder()
    if kept is None or kept.process != os.getpid() or kept.folder.parent != folder:
        kept = _own.kept = _Kept(folder / str(next(_numbers)))
    return kept


def is_packed(name: str) -> bool:
    """Whether a name ends in .gz."""
    return name[-3:].lower() == ".gz"


def unpacked(path: Path) -> Path:
    """A file with what ``path`` holds, of the same name without .gz. Raises `UnreadableScan`."""
    status = file_status(path)
    key, kept = (str(path), status.st_size, status.st_mtime_ns), _kept()
    known = kept.files.get(key)
    if known is not None and known.exists():
        kept.files.move_to_end(key)
        return known
    while len(kept.files) >= _KEPT:
        shutil.rmtree(kept.files.popitem(last=False)[1].parent, ignore_errors=True)
    # The same place each time, so that what is known of the file by its path stays known
    place = hashlib.sha256(repr(key).encode("utf-8", "backslashreplace")).hexdigest()[:16]
    target = kept.folder / place / path.name[:-3]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _unpack(path, target)
    except BaseException:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
    kept.files[key] = target
    return target


def _unpack(path: Path, target: Path) -> None:
    limit, total = memory_limit(), 0
    try:
        with gzip.open(path) as source, open(target, "wb") as file:
            while piece := source.read(_PIECE):
                total += len(piece)
                if total > limit:
                    text = f"unpacks to more than the limit of {size_words(limit)}; set {VARIABLE} if it is genuine"
                    raise UnreadableScan(str(path), text, kind="too large")
                file.write(piece)
    except EOFError:
        raise UnreadableScan(str(path), "truncated: its compressed data ends early", kind="truncated") from None
    except (gzip.BadGzipFile, zlib.error):
        raise UnreadableScan(str(path), "damaged: its compressed data fails the check", kind="damaged") from None
    except OSError as error:
        reason, kind = why(error)
        raise UnreadableScan(str(path), f"cannot be unpacked: {reason}", kind) from None
    if total == 0:
        raise UnreadableScan(str(path), "empty file inside its compression", kind="empty")


def _own_folder() -> Path:
    """This process's folder among the temporary files, gone when it ends; those of killed processes go now."""
    folder = Path(tempfile.gettempdir()) / f"{_PREFIX}{_user()}-{os.getpid()}"
    if not folder.exists():
        _clean()
        folder.mkdir(mode=0o700, exist_ok=True)
        # Not atexit: worker processes do not run it
        util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=1)
    return folder


def _clean() -> None:
    with contextlib.suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{_user()}-*"):
            number = folder.name.rpartition("-")[2]
            if number.isdigit() and not _alive(int(number)):
                shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
