"""Parts and folds that never part a group, and that stay when cases are added elsewhere; records divided by them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from frepa.datasets.annotations import Annotations, class_order
from frepa.datasets.stacks import Dividing
from frepa.errors import InputError
from frepa.images.hidden_names import Names
from frepa.images.scan import Skipped
from frepa.images.source import Source

#: Training : validation : test of the paper (Frepa section 4).
SHARES = {"train": 7.0, "val": 1.0, "test": 2.0}
SPLIT_RULES = ("official", "random")


class Divided(NamedTuple):
    """Parts (or folds) of all records, how they came about in words, and whether the test part was drawn.

    ``drawn`` is False where the source says what is tested.
    """

    parts: list[str]
    note: str
    drawn: bool


class Folds(NamedTuple):
    """The fold each record is tested in, how that came about in words, and whether it was drawn or is the source's."""

    tested: list[int]
    note: str
    drawn: bool


_Data = TypeVar("_Data", bound="DividedRecords")


def split_groups(groups: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    """A part for every case, in proportion to ``shares`` and whole groups at a time.

    Groups are ordered by a hash of seed and name, so the split depends neither on the order of files nor on the
    machine, and hardly changes when a few groups come or go. Every part gets at least one group; the first of
    ``shares`` takes what the others leave.

    Args:
        groups: the group (patient) of each case.
        shares: part name to its relative share, for example ``SHARES``.
        seed: another seed gives another order.

    Raises:
        InputError: fewer groups than parts.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    if len(sizes) < len(shares):
        raise InputError(
            f"{len(sizes)} patients (or single images) cannot be divided into {', '.join(shares)}: "
            f"at least {len(shares)} are needed."
        )
    order = sorted(sizes, key=lambda group: hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=16).digest())
    rest, *others = shares
    total = sum(shares.values())
    part_of: dict[str, str] = {}
    for position, part in enumerate(others):
        wanted = len(groups) * shares[part] / total
        held = 0
        # One group must be left for each of the parts still to be filled.
        while len(order) > len(others) - position and (held == 0 or held + sizes[order[-1]] / 2 <= wanted):
            group = order.pop()
            part_of[group] = part
            held += sizes[group]
    part_of |= dict.fromkeys(order, rest)
    return [part_of[group] for group in groups]


def complete_split(parts: list[str], groups: Sequence[str], seed: int, unit: str = "group") -> tuple[list[str], str]:
    """Add the parts that an official split leaves out, and say in words what was done.

    Without a test part the validation part becomes that; without a validation part an eighth of the training groups,
    which are called by ``unit``.

    Raises:
        InputError: there is no training part.
    """
    notes = ["official"]
    if "train" not in parts:
        raise InputError(
            f"the set has a split, but no training part (only {', '.join(sorted(set(parts)))}). Train on a set that "
            "has one, or divide this one anew with --split random."
        )
    if "test" not in parts:
        parts = ["test" if part == "val" else part for part in parts]
        notes.append("its validation part is used for testing, since it has no test part")
    if "val" not in parts:
        members = [i for i, part in enumerate(parts) if part == "train"]
        inner = split_groups([groups[i] for i in members], {"train": 7.0, "val": 1.0}, seed)
        parts = list(parts)
        for i, part in zip(members, inner):
            parts[i] = part
        notes.append(f"an eighth of the training {unit}s is used for validation, seed {seed}")
    assert set(parts) <= set(SHARES)
    return parts, "; ".join(notes)


def fold_groups(groups: Sequence[str], targets: np.ndarray, count: int, seed: int) -> list[int]:
    """A fold 0 .. ``count - 1`` for every case, whole groups at a time, classes spread evenly.

    Groups come in an order drawn by seed and name; each goes to the fold that holds fewest cases of the group's
    classes, and of these to the smallest one.

    Args:
        groups: the group (patient) of each case.
        targets: ``(n, K)``, 1 where the case is of the class.
        count: number of folds, 2 or more.
        seed: another seed gives another order.

    Raises:
        InputError: fewer groups than folds.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    if count < 2 or len(members) < count:
        raise InputError(
            f"{len(members)} patients (or single images) cannot be divided into {count} folds: at least 2 folds, and "
            "as many patients as folds, are needed."
        )
    order = sorted(members, key=lambda group: hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=16).digest())
    held = np.zeros((count, targets.shape[1]), np.int64)
    sizes = np.zeros(count, np.int64)
    fold_of: dict[str, int] = {}
    for group in order:
        own = targets[members[group]].sum(0, dtype=np.int64)
        fold = min(range(count), key=lambda fold: (int(held[fold] @ own), int(sizes[fold]), fold))
        fold_of[group] = fold
        held[fold] += own
        sizes[fold] += len(members[group])
    return [fold_of[group] for group in groups]


def given_folds(folds: Sequence[int | None], rule: str) -> tuple[int, ...] | None:
    """The source's own folds, if it has one for every record and the user does not want others."""
    known = tuple(fold for fold in folds if fold is not None)
    return known if known and len(known) == len(folds) and rule == "official" else None


def folds_of(
    own: Sequence[int] | None, groups: Sequence[str], targets: np.ndarray, count: int, seed: int, unit: str = "group"
) -> Folds:
    """The fold each case is tested in, and how it came about: a source's own folds where it has so many, else by group.

    Raises:
        InputError: fewer groups than folds.
    """
    numbers = sorted(set(own or ()))
    drawn = own is None or len(numbers) != count
    if own is not None and not drawn:
        tested, note = [numbers.index(fold) for fold in own], f"the source's own {count} folds"
    else:
        tested, note = fold_groups(groups, targets, count, seed), f"{count} folds by {unit}, seed {seed}"
    note = f"{note}; an eighth of each fold's other {unit}s is used for validation"
    return Folds(tested, note, drawn)


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
        unit: what a group is called: group, slice or block.
        shared: the test part shares patients or stacks with the others, being divided by slices or blocks.
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
    unit: str = field(default="group", kw_only=True)
    shared: bool = field(default=False, kw_only=True)

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

    def under(self: _Data, names: Names) -> _Data:
        """The same with what stands for names of files; groups stay, since they are numbered before they are shown."""
        names.learn(self.source)
        return replace(self, source=names.source(self.source), left_out=tuple(map(names.skipped, self.left_out)))

    def folds(self: _Data, count: int, seed: int) -> list[_Data]:
        """``count`` divisions in which every group is tested once; an eighth of the other groups is for validation.

        The source's own folds where it has so many, otherwise groups are spread by `fold_groups`.

        Raises:
            InputError: fewer groups than folds.
        """
        tested, note, drawn = folds_of(self.given_folds, self.groups, self.targets, count, seed, self.unit)
        divided = []
        for fold in range(count):
            parts = ["test" if its == fold else "train" for its in tested]
            parts = complete_split(parts, self.groups, seed)[0]
            shared = drawn and self.unit != "group"
            divided.append(replace(self, parts=tuple(parts), split_note=note, shared=shared))
        return divided


def divided_records(text: str, known: Annotations, kept: Sequence[int], how: Dividing, seed: int) -> dict[str, Any]:
    """The fields of `DividedRecords`, but classes and targets, for the records ``kept`` of what ``text`` names.

    Raises:
        InputError: see `divide`.
    """
    groups, grouped = groups_of(known, kept)
    given = [known.splits[i] for i in kept]
    parts, note, drawn = divide(text, given, groups, how, seed, grouped=grouped, unit=known.unit)
    return {
        "source": known.source,
        "records": np.asarray(kept, np.int64),
        "parts": tuple(parts),
        "groups": groups,
        "split_note": note,
        "unlabelled": len(known.source) - len(kept),
        "left_out": tuple(known.source.skipped),
        "given_folds": given_folds([known.folds[i] for i in kept], how.rule),
        "unit": known.unit,
        "shared": drawn and known.unit != "group",
    }


def rows_of(text: str, parts: Sequence[str], wanted: str) -> list[int]:
    """Places of a part of a set that is only tested on; of all of it where ``wanted`` is "all".

    Raises:
        InputError: it has no such part.
    """
    rows = [row for row, part in enumerate(parts) if wanted in (part, "all")]
    if not rows:
        there = ", ".join(f"{parts.count(part):,} {part}" for part in SHARES if part in parts)
        raise InputError(
            f"{text}: has no part {wanted} (there are {there}). Name another one with --part, or --part all."
        )
    return rows


def numbered(groups: Sequence[str]) -> list[int]:
    """A number from 1 on for every group, in order of appearance: it tells patients apart without naming them."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(group, len(numbers) + 1) for group in groups]


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


def groups_of(known: Annotations, records: Sequence[int]) -> tuple[tuple[str, ...], bool]:
    """Patient or study of each record, the record's own name where it is not known; and whether any is known."""
    codes = known.source.group_codes
    if codes is not None:
        return tuple(str(codes[i]) for i in records), True
    groups = known.groups
    return tuple(groups[i] or known.source.name(i) for i in records), known.has("group")


def divide(
    text: str,
    given: Sequence[str | None],
    groups: Sequence[str],
    how: Dividing,
    seed: int,
    *,
    grouped: bool = True,
    unit: str = "group",
) -> Divided:
    """A part for every record and how it came about, in words.

    ``official`` keeps the parts given and completes them; where there are none (or one only, for training, as where the
    labels of the others are withheld), and with ``random``, groups are divided 7:1:2 (Frepa section 4).

    Args:
        text: what the user named, for messages.
        given: train, val or test of each record, None where nothing says so.
        groups: patient of each.
        how: the rule; where parts are not completed, what has none is tested on.
        seed: another seed gives another division.
        grouped: patients are known.
        unit: what a group is called, see `Annotations.unit`.

    Raises:
        InputError: some records have a part and others not, or there are too few groups.
    """
    if not how.complete:
        return Divided([part or "test" for part in given], "as given; what has no part is tested on", False)
    named = [part for part in given if part is not None]
    if how.rule == "official" and 0 < len(named) < len(given):
        raise InputError(
            f"{text}: {len(named)} of {len(given)} labelled images have a split. Give it for all or none, or add "
            "--split random."
        )
    drawn = how.rule == "random" or set(named) <= {"train"}
    try:
        if drawn:
            parts, note = split_groups(groups, SHARES, seed), f"random, 7:1:2 by {unit}, seed {seed}"
            note += "; all that is labelled is its training part" if named and how.rule == "official" else ""
        else:
            parts, note = complete_split(named, groups, seed, unit)
    except InputError as error:
        raise InputError(f"{text}: {error}") from None
    note += "" if grouped else " (no patients are known: every image is a group of its own)"
    return Divided(parts, note, drawn)
