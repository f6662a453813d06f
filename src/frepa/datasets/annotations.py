"""What a labelled set consists of, before any file is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Case:
    """One image with its mask.

    Attributes:
        name: unique within its set; the image's file name without folder and ending, as a rule.
        image, mask: files, 2D or 3D.
        fov: file of the field of view, or None; pixels above half of its largest value are inside.
        group: cases of one group (a patient) never part; None means a group of its own.
        split: ``train``, ``val`` or ``test`` where the layout says so, else None.
    """

    name: str
    image: Path
    mask: Path
    fov: Path | None = None
    group: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class SegmentationSet:
    """The cases of one source.

    Attributes:
        name: shown in results; unique among the sets of a run.
        layout: name of the layout it was read by.
        cases: sorted by name; every one has a split once ``open_sets`` returns it.
        binary: the layout's masks are foreground and background whatever their values are.
        split_note: how the split was made, in words.
        unpaired: images without a mask, by file name.
    """

    name: str
    layout: str
    cases: tuple[Case, ...]
    binary: bool = False
    split_note: str = ""
    unpaired: tuple[str, ...] = field(default=())

    def part(self, split: str) -> list[Case]:
        """Cases of ``train``, ``val`` or ``test``, in order."""
        return [case for case in self.cases if case.split == split]
