"""Stopping a run without losing work: the parent hears the signal, saves and ends; its workers do not hear it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from frepa.errors import Stopped

if TYPE_CHECKING:
    import lightning_fabric

#: SIGTERM of schedulers and `timeout`, Ctrl-C, SIGUSR1 that SLURM sends ahead of a time limit, a closed terminal.
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
_LOOK = 1.0  # seconds between two looks of a worker at its parent


class StopRequest:
    """Listens for the signals while it is used as a context; a run asks it after every step.

    A second Ctrl-C ends at once, as it does elsewhere. Signals that were ignored before stay ignored (``nohup``).

    Args:
        agree_every: steps between two questions of several ranks.
        at_once: a sentence with which the run ends right where it is, by `Stopped`, but for what is :meth:`deferred`.

    Attributes:
        requested: somebody asked.
        reason: a sentence where the run itself asked, by :meth:`ask`; empty for a signal.
    """

    def __init__(self, agree_every: int = 10, *, at_once: str = "") -> None:
        self.requested, self.reason = False, ""
        self.agree_every, self.at_once = agree_every, at_once
        self._deferred = 0
        self._before: dict[int, Any] = {}

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While inside, whoever is inside asks :attr:`requested`, saves, and ends."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def ask(self, reason: str) -> None:
        """Ask on the run's own behalf."""
        self.requested, self.reason = True, self.reason or reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.requested
        self.requested = True
        if self.at_once and not self._deferred:
            raise Stopped(self.at_once)
        if number == signal.SIGINT:
            if again:
                raise KeyboardInterrupt
            if os.environ.get("LOCAL_RANK", "0") == "0":
                with contextlib.suppress(OSError):
                    os.write(sys.stderr.fileno(), b"\nSaving after this step. Ctrl-C once more ends without.\n")

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # handlers can be set nowhere else
            for name in SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def agreed(self, fabric: lightning_fabric.Fabric, step: int) -> bool:
        """Whether every rank is to stop after ``step``; the same answer on every rank.

        One device: the step under way is finished, the state saved. Several: the ranks ask each other every
        ``agree_every`` steps, so the question costs no communication in between.
        """
        if fabric.world_size == 1:
            return self.requested
        if step % self.agree_every:
            return False
        import torch

        flag = torch.tensor(float(self.requested), device=fabric.device)
        agreed = fabric.all_reduce(flag, reduce_op="max")
        assert isinstance(agreed, torch.Tensor)
        return bool(agreed.item() > 0)


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """While inside, SIGTERM raises KeyboardInterrupt, so that what is open is closed and workers are told."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def workers_starting() -> Iterator[None]:
    """While inside, the signals wait: a worker that is just being started has not yet said that it does not hear them.

    Workers started inside call `end_with_parent` first. PyTorch sets a handler that raises an error wherever the
    program is when one of them ends; it is taken back, so that a lost worker is met where its batch is waited for.
    """
    main = threading.current_thread() is threading.main_thread()
    child = signal.getsignal(signal.SIGCHLD) if main and hasattr(signal, "SIGCHLD") else None
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - not a POSIX system
        yield
        return
    numbers = {getattr(signal, name) for name in SIGNALS if hasattr(signal, name)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        if child is not None:
            signal.signal(signal.SIGCHLD, child)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(worker: int = 0) -> None:
    """Called first in a worker process: signals to the whole group are left to the parent, whose end is the worker's.

    `timeout`, SLURM and the terminal signal every process of a group. A worker that died of that would take the
    parent's state with it. A SIGTERM that the parent itself sends still ends the worker.

    Args:
        worker: its number; so that a loader can call this as its ``worker_init_fn``.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGHUP", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        # Blocked, it is kept for the thread that looks who sent it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_watch, args=(Parent(),), daemon=True, name="frepa-parent").start()


class Parent:
    """The process that asked for this one. It need not be the one that started it: a server may have (``forkserver``).

    Attributes:
        pid: its number.
    """

    def __init__(self) -> None:
        asked = multiprocessing.parent_process()
        started_by = os.getppid()
        self.pid = started_by if asked is None or asked.pid is None else asked.pid
        # Of a parent that forked this process itself its sisters hold the pipe, too, that `is_alive` looks at.
        self._asked = None if self.pid == started_by else asked

    def lives(self) -> bool:
        """Whether it still runs."""
        return os.getppid() == self.pid if self._asked is None else self._asked.is_alive()


def _watch(parent: Parent) -> None:
    pause = threading.Event()
    while parent.lives():
        if hasattr(signal, "sigtimedwait"):
            heard = signal.sigtimedwait({signal.SIGTERM}, _LOOK)
            if heard is not None and heard.si_pid == parent.pid:
                break
        else:  # pragma: no cover - not Linux
            pause.wait(_LOOK)
    os._exit(1)
