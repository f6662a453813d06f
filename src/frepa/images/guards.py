"""What is asked of a file before any reader opens it: that it is a file, and that it fits into memory.

Formats let a few bytes claim any size, and a name may stand for a pipe or a device that never ends. So everything that
would be kept in memory for one file is counted first and held against one limit, `memory_limit`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from frepa.errors import InputError
from frepa.images.scan import Trouble, UnreadableScan
from frepa.names import size_words

#: Set this variable to the memory one file may take while it is read, e.g. ``16G``, where files are refused that are
#: genuine. Without it the limit is half of what this machine, container or process may use.
VARIABLE = "FREPA_FILE_MEMORY"
#: Frames, pages or slices of one file whose places are kept one by one.
MOST_PARTS = 2**20
# Decoded pixels, the same turned into (C, *S), and one more copy while they are converted
_COPIES = 3
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def file_status(path: str | Path) -> os.stat_result:
    """``os.stat`` of a file or folder that may be opened. Raises `UnreadableScan`, also for pipes, sockets, devices."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # a name with NUL in it is a ValueError
        raise UnreadableScan(str(path), *why(error)) from None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise UnreadableScan(str(path), not_a_file(status.st_mode), kind="not a file")
    return status


def not_a_file(mode: int) -> str:
    """What a path names that is neither file nor folder, as a reason."""
    named = next((words for is_kind, words in _KINDS if is_kind(mode)), "something else")
    return f"{named}, not a file; such are never opened"


def why(error: BaseException) -> tuple[str, Trouble]:
    """Reason and kind for an error of the system when a path is opened."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return "file not found", "empty"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)", "unreadable"
    words = getattr(error, "strerror", None) or type(error).__name__
    return f"cannot be opened ({words})", "unreadable"


@contextmanager
def reported(path: Path, tell: Callable[[Exception], tuple[str, Trouble]]) -> Iterator[None]:
    """Whatever a library raises while it reads a file becomes `UnreadableScan`: on damaged files they raise anything.

    Args:
        path: the file.
        tell: reason and kind of what is neither a file that is missing nor a lack of memory.
    """
    try:
        yield
    except UnreadableScan:
        raise
    except FileNotFoundError as error:
        missing = Path(error.filename or path)
        other = "" if missing.name == path.name else f"; it needs {missing.name} beside it"
        raise UnreadableScan(str(path), f"file not found{other}", "empty") from None
    except MemoryError:
        raise UnreadableScan(str(path), "too large for this machine's memory", "too large") from None
    except Exception as error:
        raise UnreadableScan(str(path), *tell(error)) from None


def check_beside(path: Path, other: Path) -> None:
    """Refuse a header that names a data file outside its own folder, links followed: it could be any file there is."""
    folder = os.path.realpath(path.parent)
    if os.path.dirname(os.path.realpath(other)) != folder and not os.path.realpath(other).startswith(folder + os.sep):
        raise UnreadableScan(
            str(path),
            "its voxels are in a file outside its own folder, which is not followed; put it beside the header",
        )
    file_status(other)


@lru_cache(maxsize=4)
def _limit(stated: str | None) -> int:
    if stated:
        text = stated.strip().upper().removesuffix("IB").removesuffix("B")
        number, unit = (text[:-1], text[-1]) if text[-1:] in "KMGT" and text else (text, "")
        try:
            limit = int(float(number) * _UNITS[unit])
        except (ValueError, OverflowError):
            limit = 0
        if limit < 2**20:
            raise InputError(f"{VARIABLE} is {stated!r}, expected an amount of memory of 1M or more, such as 16G.")
        return limit
    return max(2**28, machine_memory() // 2)


def memory_limit() -> int:
    """Bytes that one file may take while it is read: `VARIABLE`, or half of this machine's memory."""
    return _limit(os.environ.get(VARIABLE))


def machine_memory() -> int:
    """Bytes of memory this process may use: the machine's, or less where a container or a limit says so."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [2**33]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    try:
        import resource

        found += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    except ImportError:
        pass
    return min(found)


def check_memory(path: Path, nbytes: int, what: str = "its pixels", *, copies: int = _COPIES) -> None:
    """Refuse what would take more than `memory_limit`.

    Args:
        path: for messages.
        nbytes: of the values as decoded.
        what: that take them.
        copies: how many times these bytes are needed while they are read.
    """
    limit = memory_limit()
    if nbytes * copies > limit:
        raise UnreadableScan(
            str(path),
            f"{what} would take {size_words(nbytes * copies)} of memory, the limit is {size_words(limit)}; set "
            f"{VARIABLE} if the file is genuine",
            kind="too large",
        )


def check_parts(path: Path, count: int, what: str) -> None:
    """Refuse more frames, pages or slices than `MOST_PARTS`."""
    if count > MOST_PARTS:
        raise UnreadableScan(
            str(path), f"the header claims {count:,} {what}, more than the limit of {MOST_PARTS:,}", kind="too large"
        )
