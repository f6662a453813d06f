"""What is finished of an analysis, kept until all of it is, so that one that was killed or stopped goes on.

A part is what was measured of one encoder, or with one corruption or loss. It is found again by all it was made of: the
analysis and its options, the images, the encoder's weights, the version of this program. What of these has changed is
computed anew, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import frepa
from frepa.downstream.resuming import digest
from frepa.files import clean_temporaries, remove_empty
from frepa.images.hidden_names import Names
from frepa.states import DamagedFile, hash_path, load_tree, save_tree

#: Where they are, in the folder of an analysis that is not finished.
FOLDER = "parts"
Value = TypeVar("Value")


class Unchanged(Exception):
    """An analysis of the same encoders, images and options is there already, and whole."""


class Parts:
    """The finished parts of one analysis.

    Args:
        root: folder of the analysis; None keeps nothing.
        made_of: what decides the numbers of every part: options, but for the images and the encoders.
        together: what else the whole is made of: the encoders with their names.
        begin: called before the first part is written.
        finished: `content` of the analysis that is whole in ``root``; None where none is.
        names: what stands for names of files, which parts may hold in notes.

    Attributes:
        taken: how many parts were found.
    """

    def __init__(
        self,
        root: Path | None = None,
        made_of: Any = None,
        together: Any = None,
        *,
        begin: Callable[[], None] = lambda: None,
        finished: str | None = None,
        names: Names | None = None,
    ) -> None:
        self.root, self.made_of, self.together, self.finished = root, made_of, together, finished
        self.taken = 0
        self._begin, self._names = begin, names or Names()
        self._images: str | None = None

    @property
    def content(self) -> str | None:
        """A hash of all that the analysis is made of; None before its images are known."""
        return None if self._images is None else self._hash(("all", self.together))

    def know(self, *images: Any) -> None:
        """Which images are looked at, with what is known of them (see `frepa.downstream.resuming.digest`).

        Raises:
            Unchanged: nothing is left to do.
        """
        self._images = digest(*images)
        if self.finished is not None and self.finished == self.content:
            raise Unchanged

    def result(self, what: tuple, compute: Callable[[], Value], notes: list[str]) -> Value:
        """What ``compute`` gave before, or gives now.

        Args:
            what: names the part, with the encoder's weights where it is of one.
            compute: gives tensors and plain values in dicts, lists and tuples.
            notes: ``compute`` adds sentences to; those it added before are added again.
        """
        if self.root is None or self._images is None:
            return compute()
        path = self.root / FOLDER / f"{self._hash(what)}.safetensors"
        with contextlib.suppress(DamagedFile):  # also where there is none
            kept = load_tree(path)
            notes.extend(kept["notes"])
            self.taken += 1
            found: Value = kept["value"]
            return found
        before = len(notes)
        value = compute()
        self._begin()
        path.parent.mkdir(exist_ok=True)
        save_tree(path, {"value": value, "notes": self._names.tree(notes[before:])})
        return value

    def remove(self) -> None:
        """All of them, when the analysis is whole."""
        if self.root is not None and (self.root / FOLDER).is_dir():
            folder = self.root / FOLDER
            clean_temporaries(folder)
            for path in folder.glob("*.safetensors"):
                path.unlink()
                hash_path(path).unlink(missing_ok=True)
            remove_empty(folder)

    def _hash(self, what: Any) -> str:
        # By a key where names are hidden: whoever has an idea of the names could try it otherwise.
        found = digest([frepa.__version__, self.made_of, self._images, what])
        return self._names.name(found) if self._names.hidden else found[:20]


def finished_content(results: Path) -> str | None:
    """`Parts.content` of an analysis by its ``results.json``; None where that is missing, damaged or of before."""
    found = _kept(results).get("content")
    return found if isinstance(found, str) else None


def known_figures(results: Path) -> list[str]:
    """Names of the figures of an analysis by its ``results.json``; none where that is missing or damaged."""
    found = _kept(results).get("figures")
    return [name for name in found if isinstance(name, str) and name == Path(name).name] if found else []


def _kept(results: Path) -> Mapping[str, Any]:
    try:
        kept = json.loads(results.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, Mapping) else {}
