"""A source: every record of a folder, glob, file, manifest or store, numbered from 0, read one by one."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from frepa.images.scan import Header, Scan, Skipped, replace_scan


class Source(ABC):
    """Records ``0 .. len - 1`` in an order that depends on the files alone.

    Everything about the records is in columns (NumPy or Arrow arrays), so that tens of millions fit in memory and
    cross into loader processes cheaply.

    Attributes:
        dims: 2 or 3.
        location: what the user named, for messages.
        skipped: records that could not be used, known from opening and added to by `add_skipped`.
        notes: what is odd about records that can be used, known from opening: slices missing in a series, and the like.
        warnings: sentences about the source as a whole that whoever uses it ought to read.
        aside: a sentence for whoever wants images alone, about files that belong to them and are none; "" without such.
        modalities: names, ``()`` when unknown; ``modality_codes`` holds each record's place in it, ``(n,)`` int32,
            or None when unknown.
        group_codes: ``(n,)`` int64, equal where two records belong to one patient or study; None when unknown.
        labels: ``(n,)`` of strings as the manifest gives them, or of integers; None when there are none.
        folder: what the records' names are relative to; None where they are no files.
        annotations: a row per record with what is known of it: classes, masks, boxes, split, fold, group. The columns
            are those of `frepa.datasets.annotations`; None where the source knows of nothing.
        holds_masks: `read_mask` gives the masks; False where `annotations` names their files.
        by_modality: record numbers sorted by modality, then by number, and how many each modality has, where the source
            keeps them at hand; None otherwise. Saves weighted sampling a table of its own.
    """

    dims: int
    location: str
    aside: str = ""
    modalities: tuple[str, ...] = ()
    modality_codes: np.ndarray | None = None
    group_codes: np.ndarray | None = None
    labels: np.ndarray | None = None
    folder: Path | None = None
    annotations: pa.Table | None = None
    holds_masks: bool = False
    by_modality: tuple[Any, np.ndarray] | None = None

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self.notes: list[Skipped] = []
        self.warnings: list[str] = []

    @abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of a record within the source, e.g. ``a/b.png`` or ``x.npz#train_images[12]``."""

    def file(self, index: int) -> str:
        """Name of the file, member or series a record is in: the same for all slices of a volume."""
        return _ROW.sub("", self.name(index))

    def listing(self) -> Iterable[tuple[str, int]] | None:
        """Name and size in bytes of every file, member or series, in order; None where records are no files."""
        return None

    @abstractmethod
    def read(self, index: int) -> Scan:
        """Decode a record. Raises `UnreadableScan` when it is broken."""

    @abstractmethod
    def header(self, index: int) -> Header:
        """Size and channels of a record without its pixels. Raises `UnreadableScan`."""

    def describe(self, index: int) -> Scan | None:
        """A record without its pixels: ``array`` has the right shape and type but holds zeros and takes no memory.

        None where a record is known only by reading it, which is so for plain files.
        """
        return None

    def read_crop(self, index: int, start: Sequence[int], size: Sequence[int]) -> Scan:
        """``size`` positions from ``start`` on, per axis of ``S``, all of them inside the record.

        `Scan.limits` are those of the whole record where they are known; the affine is the whole record's. Raises
        `UnreadableScan`.
        """
        scan = self.read(index)
        cut = tuple(slice(first, first + n) for first, n in zip(start, size))
        return replace_scan(scan, array=scan.array[(slice(None), *cut)])

    def read_mask(self, index: int, target: str) -> Scan | None:
        """The mask of a target that the source itself holds, ``(1, *S)``; None where `annotations` names its file."""
        return None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over names, sizes and labels, in hexadecimal: another source gives another one."""

    @cached_property
    def channels(self) -> int:
        """1 when the source is grey, 3 when any image looked at is colour.

        Looks at the headers of up to 512 records spread evenly; in 3D the answer is 1. The answer depends on the
        source alone, never on a batch.
        """
        if self.dims == 3:
            return 1
        from frepa.images.scan import UnreadableScan

        for index in np.unique(np.linspace(0, len(self) - 1, min(len(self), 512)).astype(np.int64)):
            try:
                if self.header(int(index)).channels == 3:
                    return 3
            except UnreadableScan:
                continue
        return 1

    @property
    def groups(self) -> int | None:
        """How many patients or studies are known; records of unknown ones are in none. None when nothing is known."""
        return None if self.group_codes is None else len(np.unique(self.group_codes))

    def add_skipped(self, found: Iterable[Skipped]) -> None:
        """Add records that turned out to be unreadable; each is listed once."""
        known = {entry.path for entry in self.skipped}
        for entry in found:
            if entry.path not in known:
                known.add(entry.path)
                self.skipped.append(entry)

    def select(self, indices: Sequence[int] | np.ndarray) -> Source:
        """The records at ``indices``, in that order, as a source of their own."""
        return _Selection(self, np.asarray(indices, dtype=np.int64))


_ROW = re.compile(r"\[\d+\]$")


class _Selection(Source):
    def __init__(self, parent: Source, indices: np.ndarray) -> None:
        super().__init__()
        if indices.size and (indices.min() < 0 or indices.max() >= len(parent)):
            raise IndexError(f"indices must lie in 0 .. {len(parent) - 1}")
        self.dims, self.location, self.folder = parent.dims, parent.location, parent.folder
        self._parent, self._indices = parent, indices
        self.modalities = parent.modalities
        self.modality_codes, self.group_codes, self.labels = (
            None if column is None else column[indices]
            for column in (parent.modality_codes, parent.group_codes, parent.labels)
        )
        self.holds_masks = parent.holds_masks
        if parent.annotations is not None:
            self.annotations = parent.annotations.take(pa.array(indices))

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._parent.name(int(self._indices[index]))

    def file(self, index: int) -> str:
        return self._parent.file(int(self._indices[index]))

    def read(self, index: int) -> Scan:
        return self._parent.read(int(self._indices[index]))

    def header(self, index: int) -> Header:
        return self._parent.header(int(self._indices[index]))

    def describe(self, index: int) -> Scan | None:
        return self._parent.describe(int(self._indices[index]))

    def read_mask(self, index: int, target: str) -> Scan | None:
        return self._parent.read_mask(int(self._indices[index]), target)

    def read_crop(self, index: int, start: Sequence[int], size: Sequence[int]) -> Scan:
        return self._parent.read_crop(int(self._indices[index]), start, size)

    @cached_property
    def channels(self) -> int:
        # A selection of a colour source stays one: training and validation parts must agree
        return self._parent.channels

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._parent.fingerprint.encode())
        digest.update(self._indices.astype("<i8").tobytes())
        return digest.hexdigest()


class Renamed(_Selection):
    """All records of a source under other names; its files are where they were.

    Args:
        parent: the source.
        name: gives the new name for an old one.
        location: what messages call it.
    """

    def __init__(self, parent: Source, name: Callable[[str], str], location: str) -> None:
        super().__init__(parent, np.arange(len(parent)))
        self._rename, self.location = name, location
        self.annotations = parent.annotations

    def name(self, index: int) -> str:
        return self._rename(self._parent.name(index))

    @cached_property
    def fingerprint(self) -> str:
        return self._parent.fingerprint
