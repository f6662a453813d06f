"""Path patterns with named parts, and the list of files they are matched against.

A pattern is a glob over the path relative to the dataset folder, written with ``/``, matched without regard to case:

- ``*``, ``?``, ``[0-9]`` stay within one folder; ``**/`` crosses any number of folders, none included;
- ``{jpg,png}`` is one of several globs;
- ``{patient}`` matches one or more characters within a folder and names them; ``{split:train,val}`` and ``{id:[0-9]*}``
  name what the glob (or one of the globs) after the colon matched. A name that comes twice must match the same text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from frepa.errors import InputError

_NAME = re.compile(r"\{([a-z][a-z0-9_]*)(?::([^{}]*))?\}")
_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_LONG_EXTENSIONS = (".nii.gz", ".csv.gz", ".tar.gz")


class Pattern:
    """A compiled path pattern.

    Attributes:
        text: the pattern as written.
        names: names of its named parts, in order.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: list[str] = []
        try:
            self._regex = re.compile(self._translate(text), re.IGNORECASE)
        except re.error as error:
            raise InputError(f"The path pattern {text!r} cannot be read: {error}.") from error

    def match(self, path: str) -> dict[str, str] | None:
        """Named parts of ``path`` (relative, with ``/``), or None where it does not match."""
        found = self._regex.fullmatch(path)
        return found.groupdict() if found else None

    def _translate(self, text: str) -> str:
        out: list[str] = []
        i = 0
        while i < len(text):
            named = _NAME.match(text, i)
            if named:
                out.append(self._named(*named.groups()))
                i = named.end()
            elif text.startswith("**/", i):
                out.append("(?:.*/)?")
                i += 3
            elif text[i] == "{":
                end = text.find("}", i)
                if end < 0:
                    raise InputError(f"The path pattern {text!r} opens a brace that is never closed.")
                out.append(self._alternatives(text[i + 1 : end]))
                i = end + 1
            else:
                piece, i = _glob_piece(text, i)
                out.append(piece)
        return "".join(out)

    def _named(self, name: str, globs: str | None) -> str:
        if name in self.names:
            return f"(?P={name})"
        self.names.append(name)
        return f"(?P<{name}>{self._alternatives(globs) if globs else '[^/]+'})"

    def _alternatives(self, globs: str) -> str:
        return "(?:" + "|".join(_glob(one) for one in globs.split(",")) + ")"


def _glob(text: str) -> str:
    out = []
    i = 0
    while i < len(text):
        piece, i = _glob_piece(text, i)
        out.append(piece)
    return "".join(out)


def _glob_piece(text: str, i: int) -> tuple[str, int]:
    """Regular expression of the glob token at ``i``, and where the next one starts."""
    if text[i] == "*":
        return (".*", i + 2) if text.startswith("**", i) else ("[^/]*", i + 1)
    if text[i] == "?":
        return "[^/]", i + 1
    end = text.find("]", i + 2) if text[i] == "[" else -1
    if end > 0:
        inside = text[i + 1 : end]
        return "[" + ("^" + inside[1:] if inside.startswith("!") else inside) + "]", end + 1
    return re.escape(text[i]), i + 1


@lru_cache(maxsize=1024)
def pattern(text: str) -> Pattern:
    """The compiled pattern of ``text``; the same text is compiled once."""
    return Pattern(text)


def path_fields(relative: str) -> dict[str, str]:
    """``file``, ``stem`` (no extension; ``.nii.gz`` counts as one), ``parent`` (folder name) and ``relative``."""
    folder, _, name = relative.rpartition("/")
    return {"file": name, "stem": stem_of(name), "parent": folder.rpartition("/")[2], "relative": relative}


def stem_of(name: str) -> str:
    """File name without its extension; ``a.nii.gz`` gives ``a``."""
    for extension in _LONG_EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name.rpartition(".")[0] or name


def fill(template: str, fields: Mapping[str, str | None]) -> str | None:
    """``template`` with every ``{name}`` replaced; None where a field is unknown: nothing is joined by accident."""
    missing = False

    def value(found: re.Match[str]) -> str:
        nonlocal missing
        text = fields.get(found[1])
        missing = missing or text is None
        return text or ""

    filled = _FIELD.sub(value, template)
    return None if missing else filled


class FileIndex:
    """Every file below a folder, read once.

    Paths are relative and start with the folder's own name, so that a layout that begins with ``DRIVE/`` is found
    whether the user names the folder above it or that folder. Hidden files, AppleDouble files (``._x``) and
    ``__MACOSX`` are left out.

    Args:
        root: a folder, or one single file (then the index holds it alone).

    Raises:
        InputError: no such folder, or it cannot be listed.
    """

    def __init__(self, root: Path) -> None:
        if not root.exists():
            raise InputError(f"There is no folder {root}. Give the folder that holds the dataset's files.")
        root = Path(os.path.abspath(root))  # not resolve(): a link keeps the name the user gave it
        self._base = str(root.parent)
        self.paths = sorted(_walk(root)) if root.is_dir() else [root.name]
        self.root = root

    def absolute(self, relative: str) -> str:
        """Path on disk of an indexed path."""
        return os.path.join(self._base, relative)

    def matches(
        self, patterns: Iterable[str], exclude: Iterable[str] = ()
    ) -> Iterator[tuple[str, dict[str, str], int]]:
        """Every file that a pattern matches: relative path, named parts, number of the first pattern that does."""
        compiled = [pattern(text) for text in patterns]
        left_out = [pattern(text) for text in exclude]
        for path in self.paths:
            for number, one in enumerate(compiled):
                parts = one.match(path)
                if parts is not None:
                    if not any(no.match(path) is not None for no in left_out):
                        yield path, parts, number
                    break


def _walk(root: Path) -> Iterator[str]:
    seen = {os.path.realpath(root)}
    pending = [(str(root), root.name)]
    while pending:
        folder, relative = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be read: {error.strerror}. Check its permissions.") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            below = f"{relative}/{entry.name}"
            if entry.is_dir():
                # A link back to a folder above would make the walk endless.
                real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if real not in seen:
                    seen.add(real)
                    pending.append((entry.path, below))
            else:
                yield below
