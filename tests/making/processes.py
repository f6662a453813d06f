"""Commands in processes of their own, to be killed and signalled, without every one of them importing PyTorch anew.

They are forked from a process that has imported the package and done nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [f"frepa.{name}" for name in ("cli", "verbs.pretrain", "pretraining.run", "pretraining.methods.all",
                                  "encoders.timm_2d", "verbs.segment", "report.figures")]
)  # fmt: skip


class Command:
    """``frepa WORDS`` as a process of its own, with one thread.

    Args:
        words: as on the command line.
        before: called in the process first; a function of a module.
    """

    def __init__(self, words: list[str], before: Callable[[], None] | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="frepa-command-"))
        self._process = _CONTEXT.Process(target=_run, args=(words, before, self._folder))
        self._process.start()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal that ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def finish(self, seconds: float = 240) -> tuple[int, str, str]:
        """Wait for its end; exit code, what it wrote to stdout, and to stderr."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"not ended after {seconds} s"
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        return self._process.exitcode, out, err


def _run(words: list[str], before: Callable[[], None] | None, folder: Path) -> None:
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    import torch

    from frepa import cli

    torch.set_num_threads(1)
    if before is not None:
        before()
    code = cli.main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
