"""What is found of the files of a source, in columns that stay small while millions of files are found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from frepa.images.finding import Found

#: Rows that are packed at a time.
CHUNK = 65536
#: Names of the files of a series: bytes, which need not be UTF-8.
PARTS = pa.large_list(pa.large_binary())


@dataclass
class Columns:
    """Lists that grow to one chunk and are then packed."""

    names: list[str] = field(default_factory=list)
    members: list[str | None] = field(default_factory=list)
    parts: list[tuple[str, ...] | None] = field(default_factory=list)
    # Reader, size, count, manifest row, modality, group, and the first record of the file that is meant
    rest: list[tuple[int, ...]] = field(default_factory=list)
    packed: list[tuple[pa.Array, pa.Array, pa.Array, np.ndarray]] = field(default_factory=list)
    modalities: dict[str, int] = field(default_factory=lambda: {"": 0})
    groups: dict[str, int] = field(default_factory=lambda: {"": 0})

    def add(self, entry: Found, reader: int) -> None:
        self.names.append(entry.name)
        self.members.append(entry.member)
        self.parts.append(entry.parts or None)
        modality = self.modalities.setdefault(entry.modality, len(self.modalities))
        group = self.groups.setdefault(entry.group, len(self.groups))
        self.rest.append((reader, entry.size, entry.count or 1, entry.row, modality, group, entry.record or 0))
        if len(self.names) >= CHUNK:
            self.pack()

    def pack(self) -> None:
        if self.names:
            self.packed.append(
                (
                    pa.array([os.fsencode(name) for name in self.names], pa.large_binary()),
                    pa.array([None if name is None else os.fsencode(name) for name in self.members], pa.large_binary()),
                    pa.array([_encoded(parts) for parts in self.parts], PARTS),
                    np.array(self.rest, np.int64),
                )
            )
            self.names, self.members, self.parts, self.rest = [], [], [], []

    def column(self, which: int, kind: pa.DataType) -> pa.Array:
        return pa.concat_arrays([pa.array([], kind), *(part[which] for part in self.packed)])

    def numbers(self) -> np.ndarray:
        return np.concatenate([np.zeros((0, 7), np.int64), *(part[3] for part in self.packed)])


def _encoded(names: Sequence[str] | None) -> list[bytes] | None:
    return None if names is None else [os.fsencode(name) for name in names]
