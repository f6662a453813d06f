"""Layouts by name. A new one is a file here with ``@layout`` and a line in ``_MODULES``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from frepa.datasets.annotations import Case
from frepa.errors import InputError, nearest

# Asked in this order whether a folder is theirs: the particular ones before the general one.
_MODULES = ("drive", "chase_db1", "hrf", "stare", "decathlon", "manifest", "folders")


@dataclass(frozen=True)
class Listing:
    """What a layout found: cases, images without mask (file names), and whether masks are two-valued by definition."""

    cases: list[Case]
    unpaired: list[str]
    binary: bool = False


@dataclass(frozen=True)
class Layout:
    """A row of the table: ``detect(path) -> bool`` and ``read(path, dims) -> Listing``; ``expects`` is for messages."""

    name: str
    expects: str
    detect: Callable[[Path], bool]
    read: Callable[[Path, int], Listing]


_LAYOUTS: dict[str, Layout] = {}


def layout(
    name: str, *, expects: str, detect: Callable[[Path], bool]
) -> Callable[[Callable[[Path, int], Listing]], Callable[[Path, int], Listing]]:
    """Register ``read(path, dims)`` as the layout ``name``."""

    def add(read: Callable[[Path, int], Listing]) -> Callable[[Path, int], Listing]:
        _LAYOUTS[name] = Layout(name, expects, detect, read)
        return read

    return add


def layouts() -> dict[str, Layout]:
    """All layouts, in the order in which they are asked."""
    for module in _MODULES:
        importlib.import_module(f"frepa.datasets.layouts.{module}")
    return dict(_LAYOUTS)


def find_layout(source: str) -> tuple[Layout, Path]:
    """The layout and path that ``FOLDER``, ``MANIFEST.csv`` or ``LAYOUT:FOLDER`` means.

    Raises:
        InputError: unknown layout, nothing at that path, or a folder that no layout recognises.
    """
    known = layouts()
    prefix, _, rest = source.partition(":")
    named = prefix.lower().replace("-", "_")
    # A single letter before the colon is a Windows drive.
    if rest and len(prefix) > 1 and not Path(source).exists():
        if named not in known:
            raise InputError(f"{source}: {prefix} is no layout of a labelled set. {nearest(named, known)}")
        chosen, path = known[named], Path(rest)
        _require(path)
        if not chosen.detect(path):
            raise InputError(f"{path}: not a {named} set. Expected {chosen.expects}.")
        return chosen, path
    path = Path(source)
    _require(path)
    for candidate in known.values():
        if candidate.detect(path):
            return candidate, path
    shown = "\n".join(f"  {item.name}: {item.expects}" for item in known.values())
    raise InputError(f"{source}: no labelled images were recognised here. One of these is expected:\n{shown}")


def _require(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: not found. Give a folder with images and masks, or a manifest (CSV or parquet).")
