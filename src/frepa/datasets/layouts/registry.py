"""Layouts of labelled folders, by name. A new one is a file here with ``@layout`` and a line in ``_MODULES``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frepa.datasets.annotations import extended
from frepa.images.files import FileSource
from frepa.images.scan import Skipped

#: Layout and the module it is in. Of those that fill the same column the first that recognises a folder reads it.
_MODULES = {"published": "published", "folders": "folders", "members": "members", "coco": "coco", "voc": "voc"}


@dataclass(frozen=True)
class Listing:
    """What is known of the files of a folder.

    Attributes:
        columns: column of `frepa.datasets.annotations` -> file (relative to the folder) -> value.
        facts: what is true of the whole.
        no_images: files that are no images of the set but belong to them: masks, fields of view.
        members: file to the member of it that is the image, where it holds others too.
        absent: images that are named and not there.
        warnings: sentences for whoever opens it.
    """

    columns: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    no_images: frozenset[str] = frozenset()
    members: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def annotate(self, source: FileSource) -> None:
        """Add the columns to what is known of a source's records; a volume's slices share what is known of it."""
        # The first record of a file may be named by its number too
        names = [(name := source.name(i), f"{name}[0]", source.file(i)) for i in range(len(source))]
        columns = {
            column: [next((values[key] for key in keys if key in values), None) for keys in names]
            for column, values in self.columns.items()
        }
        source.annotations = extended(source.annotations, columns, self.facts)
        if any(columns.get("group", ())):
            source.group_by(columns["group"])
        source.warnings += self.warnings
        source.add_skipped(Skipped(name, "file not found", "empty") for name in self.absent)


@dataclass(frozen=True)
class Layout:
    """A row of the table.

    Attributes:
        name: of the layout.
        column: what it fills, ``mask`` or ``boxes``.
        expects: what its folders look like, for messages.
        detect: whether a folder looks like one, cheaply.
        read: ``read(folder, names of the images and masks in it, dims)``.
    """

    name: str
    column: str
    expects: str
    detect: Callable[[Path], bool]
    read: Callable[[Path, Sequence[str], int], Listing]


_LAYOUTS: dict[str, Layout] = {}
_Read = Callable[[Path, Sequence[str], int], Listing]


def layout(name: str, *, column: str, expects: str, detect: Callable[[Path], bool]) -> Callable[[_Read], _Read]:
    """Register ``read`` as the layout ``name``."""

    def add(read: _Read) -> _Read:
        _LAYOUTS[name] = Layout(name, column, expects, detect, read)
        return read

    return add


def layouts() -> list[Layout]:
    """All layouts, in the order in which they are asked."""
    for module in _MODULES.values():
        importlib.import_module(f"frepa.datasets.layouts.{module}")
    return [_LAYOUTS[name] for name in _MODULES]


def recognised(folder: Path, column: str) -> Layout | None:
    """The layout that a folder is in, of those that fill ``column``; None where it is in none or may not be read."""
    try:
        return next((one for one in layouts() if one.column == column and one.detect(folder)), None)
    except OSError:  # whoever reads the files says which cannot be read
        return None
