"""Trained classifiers on another set with classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from frepa.datasets.stacks import Dividing
from frepa.downstream.classification.data import ClassificationData, open_data
from frepa.downstream.classification.page import fill_page
from frepa.downstream.classification.summary import summarise_heads, tables, verdicts
from frepa.downstream.classification.testing import AppliedClassifier
from frepa.downstream.classification.trained import TrainedClassifier
from frepa.downstream.contract import Place, Progress, Round, Table, Untrained
from frepa.downstream.division import rows_of
from frepa.downstream.evaluation import EvaluateOptions, Evaluation, check_known
from frepa.downstream.page import RunPage
from frepa.errors import InputError
from frepa.files import write_text
from frepa.images.hidden_names import Names
from frepa.images.intensity import to_unit
from frepa.images.orientation import reorient
from frepa.images.places import split_place
from frepa.images.scan import Skipped, UnreadableScan

_STANDARD = re.compile(r"([a-z]+mnist(?:3d)?)(_\d+)?\.npz")


class ClassificationEvaluation(Evaluation[TrainedClassifier]):
    """Writes ``confusion.png`` besides, and of MedMNIST's sets the file that their own evaluator reads."""

    unit = "image"

    def __init__(self, head: TrainedClassifier, options: EvaluateOptions, root: Path) -> None:
        super().__init__(head, options, root)
        self.first = head.models[0]
        self._data: ClassificationData | None = None

    def open(self, progress: Progress) -> list[str]:
        """Images and classes; no pixel is read."""
        options, text = self.options, self.one_source()
        self.check_options(mask_threshold=options.mask_threshold is not None, cldice=options.cldice)
        found = open_data(text, dims=self.head.dims, how=Dividing(by=options.divide_by, complete=False))
        rows = rows_of(text, found.parts, options.part)
        chosen = replace(found.chosen(rows), parts=("test",) * len(rows))
        self._data, warnings = aligned(chosen, self.first.classes, several=self.first.several, text=text)
        return warnings

    def hide(self, names: Names) -> None:
        """See `Evaluation.hide`."""
        self._data = self.data.under(names)

    @property
    def data(self) -> ClassificationData:
        """The set; every image of the part is a test image."""
        assert self._data is not None
        return self._data

    @property
    def names(self) -> Sequence[str]:
        """Names of the records."""
        return [self.data.source.name(record) for record in self.data.records.tolist()]

    @property
    def left_out(self) -> Sequence[Skipped]:
        """What the source could not open."""
        return self.data.left_out

    def describe(self) -> Iterable[str]:
        """Classes and images."""
        data = self.data
        yield f"{data.source.location}: {len(data.records):,} images are looked at (--part {self.options.part})."
        yield f"{len(data.classes)} classes ({'; '.join(data.classes[:8])}), from {data.origin}."
        if data.unlabelled:
            yield f"{data.unlabelled:,} images without a label are left out."

    def read(self, place: int) -> np.ndarray:
        """The image ``(C, *S)`` in [0, 1]."""
        try:
            scan = self.data.source.read(int(self.data.records[place]))
        except UnreadableScan as error:
            raise error.under(self.names[place]) from None
        return to_unit(reorient(scan), window=self.head.window)

    def look(self, place: int, case: np.ndarray) -> dict[str, Any]:
        """The probability of every class."""
        return {"probabilities": self.head.classify(case).tolist()}

    def finish(self, lines: Mapping[int, Mapping[str, Any]], place: Place, round: Round) -> AppliedClassifier:
        """The probabilities of all images that could be read."""
        data = self.data.chosen(list(lines))
        found = np.array([line["probabilities"] for line in lines.values()])
        shares = self.head.noted("shares")
        known = np.mean(shares, axis=0) if shares else None
        return AppliedClassifier(round, place, data, self.first, Untrained(), found, known)

    def summarise(self, tested: AppliedClassifier) -> dict[str, Any]:
        """See `summary.summarise_heads`."""
        return summarise_heads([tested], seed=self.options.seed)

    def tables(self, tested: AppliedClassifier) -> Iterable[Table]:
        """A line per image."""
        return tables([tested])

    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: AppliedClassifier) -> None:
        """See `page.fill_page`."""
        fill_page(page, summary)

    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """ACC and AUC."""
        return verdicts(summary)

    def others_files(self, tested: AppliedClassifier, own: Mapping[str, Any]) -> Iterable[str]:
        """The standard file of MedMNIST's evaluator, where the set is one of theirs, a part of it and whole."""
        if len(tested.data.records) != len(self.data.records):
            return  # it takes all images of a part or none
        scores = own["test"]
        found = standard_file(self.names, {name.upper(): scores[name]["value"] for name in ("auc", "acc")})
        if found is None:
            return
        name, order = found
        rows = (
            ",".join([str(row), *map(repr, tested.probabilities[place].tolist())]) for row, place in enumerate(order)
        )
        write_text(self.root / name, "".join(f"{row}\n" for row in rows))
        yield f"{name} is for MedMNIST's own evaluator (Evaluator.parse_and_evaluate)."


def standard_file(names: Sequence[str], scores: Mapping[str, float]) -> tuple[str, list[int]] | None:
    """Name of MedMNIST's standard file, ``FLAG_PART_[AUC]0.912_[ACC]0.843@frepa.csv``, and the images in its order.

    Args:
        names: of the records, such as ``octmnist_64.npz#test_images[12]``.
        scores: to be named.

    Returns:
        None where they are not all images of one part of one of MedMNIST's files.
    """
    places = [split_place(name) for name in names]
    files, members = {Path(place.file).name for place in places}, {place.member for place in places}
    rows = {place.row: position for position, place in enumerate(places)}
    if len(files) != 1 or len(members) != 1 or sorted(rows) != list(range(len(names))):
        return None
    flag, member = _STANDARD.fullmatch(files.pop()), (members.pop() or "").removesuffix("_images")
    if flag is None or member not in ("train", "val", "test"):
        return None
    shown = "_".join(f"[{name}]{value:.3f}" for name, value in scores.items())
    return f"{flag[1]}{flag[2] or ''}_{member}_{shown}@frepa.csv", [rows[row] for row in range(len(names))]


def aligned(
    data: ClassificationData, classes: Sequence[str], *, several: bool, text: str
) -> tuple[ClassificationData, list[str]]:
    """A set with the classes of a head, in its order; and sentences about classes that no image is of.

    Raises:
        InputError: the set has classes the head does not know, or images of several where the head tells one.
    """
    check_known(text, data.classes, classes)
    if data.several and not several:
        raise InputError(
            f"{text}: its images may be of several classes or none, and the head was trained to tell one. Give a set "
            "with one class per image."
        )
    targets = np.zeros((len(data.records), len(classes)), np.uint8)
    for k, name in enumerate(data.classes):
        targets[:, list(classes).index(name)] = data.targets[:, k]
    absent = [name for k, name in enumerate(classes) if not targets[:, k].any()]
    warnings = [f"No image is of {', '.join(absent)}: the AUC is the mean over the other classes."] if absent else []
    return replace(data, classes=tuple(classes), targets=targets, several=several), warnings
