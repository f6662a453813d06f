"""The one error type for wrong input, the one for a training that diverged, and what suggests a near spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is wrong: the command line prints the message alone and exits with code 2.

    The message is for a person: it names the file or option, what was found, what is expected, and what to do.
    It never holds a patient's name, identifier or date.
    """


class TrainingDiverged(RuntimeError):
    """The loss became infinite or not a number."""

    plain = True  # the command line shows the sentence, not a traceback


def near_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that are spelled nearly like ``name``, the nearest first; [] where there are none."""
    return difflib.get_close_matches(name, sorted(known), n=count, cutoff=0.6)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A sentence that suggests the nearest known names, or lists them when none is near.

    ``nearest("vit_bsae", ["vit_base", "swin_base"])`` gives ``"Did you mean vit_base?"``.
    """
    known = sorted(known)
    close = near_names(name, known, count)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    shown = ", ".join(known[:20])
    return f"Known: {shown}{', ...' if len(known) > 20 else ''}."


def first_line(error: object, otherwise: str | None = None) -> str:
    """The first line that says something of an error of a library's, or of its text; else the name of its kind."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__ if otherwise is None else otherwise)


class RunEnded(RuntimeError):
    """A run ended for a reason outside the program; what was done before is kept. The message is for a person."""

    plain = True  # the command line shows the sentence, not a traceback
    code = 1  # of the command line


class Stopped(KeyboardInterrupt):
    """A run was asked to stop (Ctrl-C, SIGTERM), saved its state and did. The message says how to go on.

    It is no `Exception`, because it may be raised anywhere: no reader of files may take it for a damaged one.
    """

    code = 3
