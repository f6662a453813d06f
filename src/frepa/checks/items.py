"""Records gathered into items: a volume and its slices are one, an image of its own is one."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from frepa.checks.measures import Measured
from frepa.images.label_folders import label_folder
from frepa.images.scan import Note
from frepa.images.source import Source

Records = Mapping[int, Measured]

#: More distinct values than this are no label map, unless neighbours are equal nearly everywhere.
LABEL_VALUES = 16
# Measured: label maps of nine sets 1.0, images of fifteen 0.91 and less
FLAT = 0.95
_MOST_SLICES = 0.95  # slices of a volume of labels that look like it; the rest may hold a single pixel of noise


@dataclass
class Item:
    """A volume with the slices that were read of it, or a single image.

    Attributes:
        name: of the file, member or series where these are slices, of the record otherwise.
        folder: what it lies in: a folder, or the file where that is a stack of images. "" at the top.
        records: numbers of its records.
        measured: theirs, in the same order.
    """

    name: str
    folder: str
    records: list[int] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    @property
    def of_slices(self) -> bool:
        return self.measured[0].slice_of_volume

    @property
    def first(self) -> Measured:
        return self.measured[0]

    @property
    def constant(self) -> bool:
        return all(one.constant for one in self.measured)

    @property
    def notes(self) -> tuple[Note, ...]:
        return tuple(dict.fromkeys(note for one in self.measured for note in one.notes))

    @property
    def label_folder(self) -> str:
        """The folder it lies in that holds labels by its name, or "" (interpolated masks have many values)."""
        return label_folder(self.folder)

    @cached_property
    def is_labels(self) -> bool:
        """It looks like a label map: few values, nearly all neighbours off the background equal, or a folder's name."""
        if self.label_folder:
            return True
        shown = [one for one in self.measured if not one.constant]
        return bool(shown) and sum(map(_is_labels, shown)) >= _MOST_SLICES * len(shown)

    def picture(self) -> int:
        """The record to show: the middle one of those that are not blank."""
        shown = [record for record, one in zip(self.records, self.measured) if not one.constant]
        return (shown or self.records)[len(shown or self.records) // 2]


def gather(records: Records, source: Source) -> list[Item]:
    """Items in the order of their first records."""
    volumes: dict[str, Item] = {}
    found: list[Item] = []
    for index, one in records.items():
        file = source.file(index)
        if one.slice_of_volume:
            if file not in volumes:
                volumes[file] = Item(file, posixpath.dirname(file))
                found.append(volumes[file])
            item = volumes[file]
        else:
            name = source.name(index)
            item = Item(name, posixpath.dirname(file) if name == file else file)
            found.append(item)
        item.records.append(index)
        item.measured.append(one)
    return found


def label_records(items: Iterable[Item]) -> set[int]:
    """Numbers of the records that belong to label maps."""
    return {record for item in items if item.is_labels for record in item.records}


def _is_labels(one: Measured) -> bool:
    return 1 < one.values <= LABEL_VALUES or one.flat > FLAT
