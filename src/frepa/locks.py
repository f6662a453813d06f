"""One process at a time: a lock file that says who holds it, on one machine and over a network's file system.

The lock is the operating system's (a POSIX record lock, which NFS passes on to other machines), so that a process that
dies gives it back, whatever it died of. Some network file systems keep locks to one machine or have none. The holder
therefore also touches the file every few seconds, and whoever finds another machine's name in it watches for that
before it takes the lock for left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from frepa.errors import InputError

#: Seconds between two signs of life, and how long another machine's are waited for.
BEAT, WATCH = 10.0, 25.0
_TURNS = 50

# Locks of this process, with their holders: a POSIX lock is lost when its file is opened a second time and closed.
_held: dict[str, dict[str, Any]] = {}


class InUse(InputError):
    """Another process is at work there; nothing is wrong with what was asked for."""


class Lock:
    """Held while it is used as a context.

    Args:
        path: the lock file; in a folder that exists. It is removed at the end.
        what: begins the sentence for the second process, such as ``--out runs/a``.
        inherited: the lock stays while a worker that was forked under it lives, even if its parent was killed.
        patience: seconds to wait for the workers of a parent that was killed, or of one on another machine.

    Raises:
        InUse: another process holds it; names host, process and since when.
    """

    def __init__(self, path: Path, what: str, *, inherited: bool = False, patience: float = 0.0) -> None:
        self.path, self.what, self.inherited, self.patience = path, what, inherited, patience
        self._handle, self._supported = -1, True
        self._end = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Lock:
        key = os.path.realpath(self.path)
        if key in _held:
            raise self._taken(_held[key])
        until = time.monotonic() + self.patience
        while not self._try():
            holder = _parsed(self._read_closed())
            alive = holder is not None and holder.get("host") == socket.gethostname() and _is_alive(holder.get("pid"))
            if alive or time.monotonic() >= until:
                raise self._taken(holder)
            time.sleep(0.1)
        try:
            self._look_for_signs_of_life()
            holder = self._sign()
        except BaseException:
            self._let_go()
            raise
        _held[key] = holder
        self._end.clear()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="frepa-lock")
        self._beating.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._beating is not None:
            self._beating.join()
        _held.pop(os.path.realpath(self.path), None)
        self._let_go(remove=True)

    def _try(self) -> bool:
        """Open the file and take its lock; False where another process has it."""
        for _ in range(_TURNS):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            taken = _lock(handle, inherited=self.inherited)
            if taken is False:
                os.close(handle)
                return False
            self._supported = taken is True
            # The holder before may just have removed the file that was opened: then it guards nothing any more.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(self.path)):
                    self._handle = handle
                    return True
            os.close(handle)
        return False

    def _look_for_signs_of_life(self) -> None:
        """Where the lock alone does not say that the last holder is gone."""
        holder = _parsed(os.pread(self._handle, 4096, 0))
        if holder is None:
            return
        if holder.get("host") == socket.gethostname():
            if not self._supported and _is_alive(holder.get("pid")):
                raise self._taken(holder)
            return
        print(f"{self.what}: {_sentence(holder)}. Looking whether that process is still alive.", file=sys.stderr)
        before, until = os.fstat(self._handle).st_mtime_ns, time.monotonic() + WATCH
        while time.monotonic() < until:
            time.sleep(min(0.5, WATCH / 10))
            if os.stat(self.path).st_mtime_ns != before:
                raise self._taken(holder)

    def _sign(self) -> dict[str, Any]:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
        os.ftruncate(self._handle, 0)
        with contextlib.suppress(OSError):  # a full disk is no reason not to work here, only not to say who does
            os.pwrite(self._handle, (json.dumps(holder) + "\n").encode(), 0)
        return holder

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._handle)

    def _let_go(self, *, remove: bool = False) -> None:
        if self._handle >= 0:
            if remove:
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.fstat(self._handle), os.stat(self.path)):
                        self.path.unlink()
            os.close(self._handle)
            self._handle = -1

    def _read_closed(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    def _taken(self, holder: dict[str, Any] | None) -> InUse:
        who = _sentence(holder) if holder else "another process is at work there"
        return InUse(f"{self.what}: {who}. Wait for it, end it, or name another folder.")


def _parsed(text: bytes) -> dict[str, Any] | None:
    """``host``, ``pid`` and ``since`` of the holder; None where nobody says."""
    try:
        holder = json.loads(text)
    except ValueError:
        return None
    return holder if isinstance(holder, dict) else None


def _sentence(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')} has been at work there since {holder.get('since')}"


def _is_alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _lock(handle: int, *, inherited: bool) -> bool | None:
    """Take the lock of an open file without waiting; None where the file system knows no locks."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - not a POSIX system
        return None
    take = fcntl.flock if inherited else fcntl.lockf
    try:
        take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # some network file systems have none: signs of life decide
        return None
    return True
