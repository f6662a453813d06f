"""A labelled set for classification: which images, their classes, their parts or folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from frepa.downstream.labelled_source import class_order, open_labelled
from frepa.downstream.splits import SHARES, complete_split, fold_groups, split_groups
from frepa.errors import InputError
from frepa.images.scan import Skipped
from frepa.images.source import Source

SPLIT_RULES = ("official", "random")


@dataclass(frozen=True)
class ClassificationData:
    """Records with classes and parts; row ``i`` of everything is record ``records[i]`` of ``source``.

    Attributes:
        source: the images.
        classes: names; the order of scores.
        several: a record may have several classes or none.
        records: ``(n,)`` int64.
        targets: ``(n, K)`` uint8, 1 where the record is of the class.
        parts: train, val or test of each.
        groups: patient (or the record itself) of each.
        split_note, origin: how parts and labels came about, in words.
        unlabelled: records left out because they have no label.
        left_out: records left out because they cannot be read, with the reason.
    """

    source: Source
    classes: tuple[str, ...]
    several: bool
    records: np.ndarray
    targets: np.ndarray
    parts: tuple[str, ...]
    groups: tuple[str, ...]
    split_note: str
    origin: str
    unlabelled: int
    left_out: tuple[Skipped, ...]

    def rows(self, part: str) -> np.ndarray:
        """Rows of ``train``, ``val`` or ``test``."""
        return np.flatnonzero(np.asarray(self.parts) == part)

    def sizes(self) -> dict[str, int]:
        """Number of records of each part."""
        return {part: len(self.rows(part)) for part in SHARES}

    def without(self, unreadable: dict[int, Skipped]) -> ClassificationData:
        """The same without the records that cannot be read, keyed by record."""
        kept = [row for row, record in enumerate(self.records.tolist()) if record not in unreadable]
        return replace(
            self,
            records=self.records[kept],
            targets=self.targets[kept],
            parts=tuple(self.parts[row] for row in kept),
            groups=tuple(self.groups[row] for row in kept),
            left_out=(*self.left_out, *unreadable.values()),
        )

    def folds(self, count: int, seed: int) -> list[ClassificationData]:
        """``count`` divisions in which every group is tested once; an eighth of the other groups is for validation.

        Raises:
            InputError: fewer groups than folds.
        """
        tested = fold_groups(self.groups, self.targets, count, seed)
        note = f"{count} folds by group, seed {seed}; an eighth of each fold's other groups is used for validation"
        divided = []
        for fold in range(count):
            parts = ["test" if own == fold else "train" for own in tested]
            divided.append(replace(self, parts=tuple(complete_split(parts, self.groups, seed)[0]), split_note=note))
        return divided


def open_data(text: str, *, dims: int, split: str = "official", seed: int = 0) -> ClassificationData:
    """The labelled images of a source, divided.

    ``official`` keeps the source's parts and completes them; where it has none, and with ``random``, groups are divided
    7:1:2 (Frepa section 4).

    Raises:
        InputError: no labels, one class only, or too few groups to be divided.
    """
    if split not in SPLIT_RULES:
        raise InputError(f"split {split!r} is not known: expected official or random.")
    found = open_labelled(text, dims)
    kept = [i for i, names in enumerate(found.labels) if names is not None]
    labels = [found.labels[i] or () for i in kept]
    present = {name for names in labels for name in names}
    # Classes that the source knows of and no image has are left out: nothing could be learnt or tested of them.
    known = [name for name in found.classes if name in present]
    classes = (*known, *class_order([name for name in present if name not in known]))
    if not found.several and len(classes) < 2:
        raise InputError(
            f"{text}: every labelled image is of the class {classes[0]!r}, and at least two classes are needed. Labels "
            f"were taken from {found.origin}."
        )
    place = {name: k for k, name in enumerate(classes)}
    targets = np.zeros((len(kept), len(classes)), np.uint8)
    for row, names in enumerate(labels):
        targets[row, [place[name] for name in names]] = 1
    codes = found.source.group_codes
    groups = tuple(found.source.name(i) if codes is None else str(codes[i]) for i in kept)
    given = [found.splits[i] for i in kept] if found.splits else [None] * len(kept)
    parts, note = _divide(text, given, groups, split, seed)
    if codes is None:
        note += " (no patients are known: every image is a group of its own)"
    return ClassificationData(
        source=found.source,
        classes=classes,
        several=found.several,
        records=np.asarray(kept, np.int64),
        targets=targets,
        parts=tuple(parts),
        groups=groups,
        split_note=note,
        origin=found.origin,
        unlabelled=len(found.labels) - len(kept),
        left_out=tuple(found.source.skipped),
    )


def _divide(
    text: str, given: Sequence[str | None], groups: Sequence[str], rule: str, seed: int
) -> tuple[list[str], str]:
    named = [part for part in given if part is not None]
    if rule == "official" and 0 < len(named) < len(given):
        raise InputError(
            f"{text}: {len(named)} of {len(given)} labelled images have a split. Give it for all or none, or add "
            "--split random."
        )
    try:
        if rule == "random" or not named:
            return split_groups(groups, SHARES, seed), f"random, 7:1:2 by group, seed {seed}"
        return complete_split(named, groups, seed)
    except InputError as error:
        raise InputError(f"{text}: {error}") from None


def check_classes(data: ClassificationData, where: str = "") -> list[str]:
    """Raise InputError where a class cannot be learnt; sentences about classes that cannot be tested otherwise."""
    counts = {part: data.targets[data.rows(part)].sum(0) for part in SHARES}
    remedy = "Add images of it, divide otherwise (--split random, another --seed), or take the class out."
    for part in ("train", "test"):
        if not len(data.rows(part)):
            raise InputError(f"{data.source.location}{where}: no readable image is left for the part {part}.")
    for k, name in enumerate(data.classes):
        elsewhere = counts["val"][k] + counts["test"][k]
        if not counts["train"][k] and elsewhere:
            raise InputError(
                f"{data.source.location}{where}: class {name!r} has no readable image in the training part and "
                f"{elsewhere} outside it. {remedy}"
            )
    if (counts["train"] > 0).sum() < 2 and not data.several:
        raise InputError(f"{data.source.location}{where}: only one class is left in the training part. {remedy}")
    untested = [name for k, name in enumerate(data.classes) if not counts["test"][k]]
    if not untested:
        return []
    return [f"No test image{where} is of {', '.join(untested)}: the AUC is the mean over the other classes."]
