"""Records of a source with classes, divided into parts or folds: what every task on whole records has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from frepa.datasets.labelled import class_order
from frepa.downstream.division import SHARES, complete_split, fold_groups, split_groups
from frepa.errors import InputError
from frepa.images.scan import Skipped
from frepa.images.source import Source

SPLIT_RULES = ("official", "random")

_Data = TypeVar("_Data", bound="DividedRecords")


@dataclass(frozen=True)
class DividedRecords:
    """Records with classes and parts; row ``i`` of everything is record ``records[i]`` of ``source``.

    Attributes:
        source: the images.
        classes: names; the order of scores.
        records: ``(n,)`` int64.
        targets: ``(n, K)`` uint8, 1 where the record is of the class, or shows a finding of it.
        parts: train, val or test of each.
        groups: patient (or the record itself) of each.
        split_note, origin: how parts and labels came about, in words.
        unlabelled: records left out because nothing says what they show.
        left_out: records left out because they cannot be read, with the reason.
        given_folds: the fold each record is tested in where the source says so, else None.
    """

    source: Source
    classes: tuple[str, ...]
    records: np.ndarray
    targets: np.ndarray
    parts: tuple[str, ...]
    groups: tuple[str, ...]
    split_note: str
    origin: str
    unlabelled: int
    left_out: tuple[Skipped, ...]
    given_folds: tuple[int, ...] | None = field(default=None, kw_only=True)

    def rows(self, part: str) -> np.ndarray:
        """Rows of ``train``, ``val`` or ``test``."""
        return np.flatnonzero(np.asarray(self.parts) == part)

    def sizes(self) -> dict[str, int]:
        """Number of records of each part."""
        return {part: len(self.rows(part)) for part in SHARES}

    def chosen(self: _Data, rows: Sequence[int]) -> _Data:
        """These rows alone, in this order."""
        return replace(
            self,
            records=self.records[list(rows)],
            targets=self.targets[list(rows)],
            parts=tuple(self.parts[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            given_folds=None if self.given_folds is None else tuple(self.given_folds[row] for row in rows),
        )

    def without(self: _Data, unreadable: dict[int, Skipped]) -> _Data:
        """The same without the records that cannot be read, keyed by record."""
        kept = [row for row, record in enumerate(self.records.tolist()) if record not in unreadable]
        return replace(self.chosen(kept), left_out=(*self.left_out, *unreadable.values()))

    def folds(self: _Data, count: int, seed: int) -> list[_Data]:
        """``count`` divisions in which every group is tested once; an eighth of the other groups is for validation.

        The source's own folds where it has so many, otherwise groups are spread by ``splits.fold_groups``.

        Raises:
            InputError: fewer groups than folds.
        """
        own = sorted(set(self.given_folds or ()))
        if self.given_folds is not None and len(own) == count:
            tested = [own.index(fold) for fold in self.given_folds]
            note = f"the source's own {count} folds"
        else:
            tested = fold_groups(self.groups, self.targets, count, seed)
            note = f"{count} folds by group, seed {seed}"
        note += "; an eighth of each fold's other groups is used for validation"
        divided = []
        for fold in range(count):
            parts = ["test" if its == fold else "train" for its in tested]
            divided.append(replace(self, parts=tuple(complete_split(parts, self.groups, seed)[0]), split_note=note))
        return divided


def check_rule(rule: str) -> None:
    """Raise InputError unless ``rule`` says how to divide."""
    if rule not in SPLIT_RULES:
        raise InputError(f"split {rule!r} is not known: expected official or random.")


def ordered_classes(known: Sequence[str], present: set[str]) -> tuple[str, ...]:
    """The classes that occur, in the source's own order where it has one.

    Classes that the source knows of and no image has are left out: nothing could be learnt or tested of them.
    """
    first = [name for name in known if name in present]
    return (*first, *class_order([name for name in present if name not in first]))


def groups_of(source: Source, records: Sequence[int]) -> tuple[str, ...]:
    """Patient or study of each record, the record's own name where none are known."""
    codes = source.group_codes
    return tuple(source.name(i) if codes is None else str(codes[i]) for i in records)


def divide(
    text: str, given: Sequence[str | None], groups: Sequence[str], rule: str, seed: int, *, grouped: bool = True
) -> tuple[list[str], str]:
    """A part for every record and how it came about, in words.

    ``official`` keeps the parts given and completes them; where there are none, and with ``random``, groups are divided
    7:1:2 (Frepa section 4).

    Args:
        text: what the user named, for messages.
        given: train, val or test of each record, None where nothing says so.
        groups: patient of each.
        rule: one of ``SPLIT_RULES``.
        seed: another seed gives another division.
        grouped: patients are known.

    Raises:
        InputError: some records have a part and others not, or there are too few groups.
    """
    named = [part for part in given if part is not None]
    if rule == "official" and 0 < len(named) < len(given):
        raise InputError(
            f"{text}: {len(named)} of {len(given)} labelled images have a split. Give it for all or none, or add "
            "--split random."
        )
    try:
        if rule == "random" or not named:
            parts, note = split_groups(groups, SHARES, seed), f"random, 7:1:2 by group, seed {seed}"
        else:
            parts, note = complete_split(named, groups, seed)
    except InputError as error:
        raise InputError(f"{text}: {error}") from None
    return parts, note if grouped else f"{note} (no patients are known: every image is a group of its own)"
