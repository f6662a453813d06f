"""What is found of the files of a source, in columns that stay small while millions of files are found."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from frepa.images.finding import Found, Plain

#: Rows that are looked at at a time.
CHUNK = 65536
#: Names of the files of a series: bytes, which need not be UTF-8.
PARTS = pa.large_list(pa.large_binary())


@dataclass
class Numbers:
    """One number per row, which takes no memory while all of them are the usual one.

    Attributes:
        code: type of the numbers, as of `array.array`.
        usual: what most rows have.
    """

    code: str
    usual: int
    values: array[int] | None = None

    def add(self, value: int, before: int) -> None:
        """A row behind ``before`` others."""
        if self.values is None:
            if value == self.usual:
                return
            self.values = array(self.code, [self.usual]) * before
        self.values.append(value)

    def add_usual(self, count: int) -> None:
        if self.values is not None:
            self.values.extend(array(self.code, [self.usual]) * count)

    def column(self, count: int) -> np.ndarray:
        """``(count,)``, of one value in memory where all are the usual one."""
        kind = np.dtype(self.code)
        if self.values is None:
            return np.broadcast_to(np.array(self.usual, kind), (count,))
        return np.frombuffer(self.values, kind) if count else np.zeros(0, kind)


@dataclass
class Columns:
    """What is found, a row for each file, member or series."""

    text: bytearray = field(default_factory=bytearray)  # the names, one behind the other
    ends: array[int] = field(default_factory=lambda: array("q", [0]))
    members: dict[int, str] = field(default_factory=dict)
    parts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    readers: array[int] = field(default_factory=lambda: array("B"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    rows: array[int] = field(default_factory=lambda: array("q"))  # of the manifest
    counts: Numbers = field(default_factory=lambda: Numbers("q", 1))
    firsts: Numbers = field(default_factory=lambda: Numbers("q", 0))  # the record of the file that is meant
    modality_codes: Numbers = field(default_factory=lambda: Numbers("i", 0))
    group_codes: Numbers = field(default_factory=lambda: Numbers("i", 0))
    modalities: dict[str, int] = field(default_factory=lambda: {"": 0})
    groups: dict[str, int] = field(default_factory=lambda: {"": 0})

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, entry: Found, reader: int) -> None:
        """A file, member or series."""
        here = len(self)
        if entry.member is not None:
            self.members[here] = entry.member
        if entry.parts:
            self.parts[here] = entry.parts
        self.text += os.fsencode(entry.name)
        self.ends.append(len(self.text))
        self.readers.append(reader)
        self.sizes.append(entry.size)
        self.rows.append(entry.row)
        self.counts.add(entry.count or 1, here)
        self.firsts.add(entry.record or 0, here)
        if entry.modality or self.modality_codes.values is not None:
            self.modality_codes.add(self.modalities.setdefault(entry.modality, len(self.modalities)), here)
        if entry.group or self.group_codes.values is not None:
            self.group_codes.add(self.groups.setdefault(entry.group, len(self.groups)), here)

    def add_plain(self, files: Plain, reader: int) -> None:
        """Many files that are one image each."""
        count = len(files.names)
        encoded = [os.fsencode(name) for name in files.names]
        ends = len(self.text) + np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.text += b"".join(encoded)
        self.ends.frombytes(ends.tobytes())
        self.readers.frombytes(bytes([reader]) * count)
        self.sizes.fromlist(files.sizes)
        self.rows.fromlist(files.rows)
        for numbers in (self.counts, self.firsts, self.modality_codes, self.group_codes):
            numbers.add_usual(count)

    def names(self) -> pa.Array:
        """Names of the files as bytes; nothing is added from here on."""
        buffers = [None, pa.py_buffer(self.ends), pa.py_buffer(self.text)]
        return pa.Array.from_buffers(pa.large_binary(), len(self), buffers)

    def sparse(self) -> tuple[pa.Array | None, pa.Array | None]:
        """Members, and names of the files of series; None where no row has one."""
        members = parts = None
        if self.members:
            found = (self.members.get(row) for row in range(len(self)))
            members = pa.array([None if name is None else os.fsencode(name) for name in found], pa.large_binary())
        if self.parts:
            lists = (self.parts.get(row) for row in range(len(self)))
            parts = pa.array([None if one is None else [os.fsencode(name) for name in one] for one in lists], PARTS)
        return members, parts
