"""A labelled set for classification: which images, their classes, their parts or folds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frepa.datasets.opening import open_annotated
from frepa.datasets.stacks import BY_PATIENT, Dividing
from frepa.downstream.division import SHARES, DividedRecords, check_rule, divided_records, ordered_classes
from frepa.errors import InputError


@dataclass(frozen=True)
class ClassificationData(DividedRecords):
    """Records with classes and parts.

    Attributes:
        several: a record may have several classes or none.
    """

    several: bool


def open_data(
    text: str,
    *,
    dims: int,
    seed: int = 0,
    how: Dividing = BY_PATIENT,
) -> ClassificationData:
    """The labelled images of a source, divided.

    ``official`` keeps the source's parts and completes them; where it has none, and with ``random``, groups are divided
    7:1:2 (Frepa section 4). Of a set that is only tested on images of no part are tested.

    Raises:
        InputError: no labels, one class only, or too few groups to be divided.
    """
    check_rule(how.rule)
    found = open_annotated(text, dims, "label", how=how)
    kept = [i for i, names in enumerate(found.labels) if names is not None]
    labels = [found.labels[i] or () for i in kept]
    origin = found.origin("label")
    present = {name for names in labels for name in names}
    classes = ordered_classes(found.classes, present)
    if not found.several and len(classes) < 2 and how.complete:
        raise InputError(
            f"{text}: every labelled image is of the class {classes[0]!r}, and at least two classes are needed. Labels "
            f"were taken from {origin}."
        )
    place = {name: k for k, name in enumerate(classes)}
    targets = np.zeros((len(kept), len(classes)), np.uint8)
    for row, names in enumerate(labels):
        targets[row, [place[name] for name in names]] = 1
    divided = divided_records(text, found, kept, how, seed)
    return ClassificationData(**divided, classes=classes, targets=targets, origin=origin, several=found.several)


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
