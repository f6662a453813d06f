"""What a reader hands on: one scan as an array with its geometry, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from frepa.files import write_csv

#: ``Scan.unit`` of CT in Hounsfield units; every other scale is ``ARBITRARY``.
HU = "HU"
ARBITRARY = "arbitrary"


#: Why there is no scan, so that whoever has to tell cases apart never reads a sentence. "left out" and
#: "other dims" (an image where volumes are asked for, or the reverse): as it should be.
Trouble = Literal[
    "unreadable",
    "truncated",
    "empty",
    "damaged",
    "nan",
    "undecodable",
    "too large",
    "several arrays",
    "not a file",
    "left out",
    "other dims",
]
#: What a reader may have had to assume or found odd about a scan that it can read.
Oddity = Literal["geometry", "slices missing", "slices unreadable", "hu assumed", "ct without hu", "other"]


class Note(str):
    """A sentence about a scan, with the kind of thing it tells."""

    kind: Oddity

    def __new__(cls, text: str, kind: Oddity = "other") -> Note:
        note = super().__new__(cls, text)
        note.kind = kind
        return note

    def __getnewargs__(self) -> tuple[str, Oddity]:  # type: ignore[override]
        return str(self), self.kind


class Whole(Protocol):
    """The volume a slice was taken from: what scales it must not depend on the slice alone."""

    def percentiles(self, percentiles: Sequence[float]) -> tuple[float, ...]:
        """Percentiles over the whole volume, its padding left out."""
        ...


@dataclass(frozen=True)
class Scan:
    """One 2D image or 3D volume as stored, before any scaling.

    Attributes:
        array: ``(C, *S)`` in the stored type, ``S = (H, W)`` or ``(D, H, W)``; C is 1 (grey) or 3 (RGB). Finite.
        spacing: millimetres per axis of ``S``, or None when the file does not say.
        affine: ``(4, 4)`` float64, voxel index in the axis order of ``S`` to RAS millimetres, or None.
        modality: as the manifest or file names it, e.g. ``"fundus"``; None when unknown.
        unit: ``"HU"`` or ``"arbitrary"``.
        id: stable and anonymous; the same record of the same source always has the same id.
        group: stable, anonymous hash of the patient or study, for splits; None when unknown.
        padding: stored value that means "nothing was measured here"; left out of intensity statistics.
        whole: for a 2D slice of a volume, the volume its percentiles are taken from; None otherwise.
        limits: its values at ``frepa.images.intensity.PERCENTILES`` where known beforehand, as in a store: those of
            the whole volume for a slice or a crop. None when they have to be computed.
        notes: what the reader had to assume or found odd, one sentence each, e.g. that values were taken for HU.
    """

    array: np.ndarray
    spacing: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    modality: str | None = None
    unit: str = ARBITRARY
    id: str = ""
    group: str | None = None
    padding: float | None = None
    whole: Whole | None = None
    limits: tuple[float, float] | None = None
    notes: tuple[Note, ...] = ()

    @property
    def size(self) -> tuple[int, ...]:
        """``S``, the extent per spatial axis."""
        return tuple(self.array.shape[1:])


@dataclass(frozen=True)
class Skipped:
    """A record that could not be used: its name within the source, why in plain words, and the kind of trouble.

    In a source's notes, which are about records that can be used, ``kind`` is an `Oddity`.
    """

    path: str
    reason: str
    kind: Trouble | Oddity = "unreadable"


def write_skipped(path: Path, entries: Iterable[Skipped]) -> None:
    """The list of what could not be used, ``skipped.csv`` of a run: image and reason."""
    write_csv(path, ["image", "reason"], [{"image": entry.path, "reason": entry.reason} for entry in entries])


class UnreadableScan(Exception):
    """One file is broken or not what its name says. It is counted and listed; it never stops a run by itself.

    The user's input as a whole being wrong (no such folder, nothing readable in it) is ``frepa.errors.InputError``.

    Attributes:
        path: the file.
        reason: why it cannot be used, for a person.
        kind: why, for a program: nothing decides by the words of ``reason``.
    """

    def __init__(self, path: str, reason: str, kind: Trouble = "unreadable") -> None:
        super().__init__(path, reason, kind)
        self.path = str(path)
        self.reason = reason
        self.kind = kind

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"

    def skipped(self, name: str | None = None) -> Skipped:
        """The entry for the list of skipped scans, under ``name`` (within the source) when given."""
        return Skipped(self.path if name is None else name, self.reason, self.kind)

    def under(self, name: str) -> UnreadableScan:
        """The same trouble under another name, e.g. the one within the source."""
        return UnreadableScan(name, self.reason, self.kind)


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are decoded.

    Attributes:
        channels: 1 or 3, as stored (an RGB file that turns out to be grey is read as one channel all the same).
        size: ``S`` of one record.
        count: records in the file (or member); 1 for ordinary image files.
        member: the member these belong to, for files that hold several arrays.
        spacing, affine, modality, group, notes: as in `Scan`, where the header has them.
    """

    channels: int
    size: tuple[int, ...]
    count: int = 1
    member: str | None = None
    spacing: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    modality: str | None = None
    group: str | None = None
    notes: tuple[Note, ...] = ()


def replace_scan(scan: Scan, **changes: Any) -> Scan:
    """A copy of ``scan`` with some fields changed (``dataclasses.replace`` with the array shared)."""
    return Scan(**{**scan.__dict__, **changes})
