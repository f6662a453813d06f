"""Trained segmenters on another set with masks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from frepa.datasets.cases import SegmentationSet
from frepa.datasets.labels import LabelMap
from frepa.datasets.reading import BrokenFile, LabelledImage, read_case
from frepa.datasets.stacks import Dividing
from frepa.downstream.contract import Place, Progress, Round, Table, Untrained
from frepa.downstream.division import rows_of
from frepa.downstream.evaluation import EvaluateOptions, Evaluation
from frepa.downstream.page import RunPage
from frepa.downstream.segmentation.baselines import kept_baselines
from frepa.downstream.segmentation.data import LabelledCase, SegmentationData, check_sets, open_sets
from frepa.downstream.segmentation.page import fill_page
from frepa.downstream.segmentation.summary import summarise, tables, verdicts
from frepa.downstream.segmentation.testing import CaseResult, TestedSegmenter, scored
from frepa.downstream.segmentation.trained import TrainedSegmenter
from frepa.errors import InputError
from frepa.images.hidden_names import Names
from frepa.images.scan import Skipped, UnreadableScan

PREDICTIONS = "predictions"


@dataclass(frozen=True)
class AppliedSegmenter(TestedSegmenter):
    """Heads trained elsewhere on a set they have not seen; ``applied`` together."""

    applied: TrainedSegmenter

    def classes_of(self, image: np.ndarray) -> np.ndarray:
        """What all heads together find."""
        return self.applied.segment(image).classes


class SegmentationEvaluation(Evaluation[TrainedSegmenter]):
    """Writes ``predictions/`` and ``overlays/`` besides."""

    unit = "case"

    def __init__(self, head: TrainedSegmenter, options: EvaluateOptions, root: Path) -> None:
        super().__init__(head, options, root)
        self.first = head.models[0]
        self.baselines = kept_baselines(head.noted("baselines"), self.first.labels.classes)
        self._data: SegmentationData | None = None
        self._cases: list[LabelledCase] = []
        self._since = time.perf_counter()

    def open(self, progress: Progress) -> list[str]:
        """The sets, every mask of the part read once."""
        options, dims = self.options, self.head.dims
        found: list[SegmentationData] = []
        opened = open_sets(options.source, dims=dims, how=Dividing(by=options.divide_by, complete=False))
        for item, text in zip(opened, options.source):
            rows = rows_of(text, [case.split or "" for case in item.cases], options.part)
            chosen = _readable(replace(item, cases=tuple(replace(item.cases[row], split="test") for row in rows)))
            own = check_sets(
                [chosen],
                dims=dims,
                threshold=options.mask_threshold,
                workers=options.num_workers,
                progress=progress,
            )
            labels = agreed_labels(self.first.labels, own.labels[item.name], chosen, text, options.mask_threshold)
            found.append(replace(own, labels={item.name: labels}))
        self._data = SegmentationData(
            tuple(item for own in found for item in own.sets),
            {name: labels for own in found for name, labels in own.labels.items()},
            {path: size for own in found for path, size in own.sizes.items()},
            tuple({skipped.path: skipped for own in found for skipped in own.left_out}.values()),
        )
        self._cases = self._data.part("test")
        return []

    def hide(self, names: Names) -> None:
        """See `Evaluation.hide`."""
        self._data = self.data.under(names)
        self._cases = self._data.part("test")

    @property
    def data(self) -> SegmentationData:
        """The sets; every case of the part is a test case."""
        assert self._data is not None
        return self._data

    @property
    def names(self) -> Sequence[str]:
        """``SET/CASE``."""
        return [f"{item.set_name}/{item.case.name}" for item in self._cases]

    @property
    def left_out(self) -> Sequence[Skipped]:
        """Images whose headers cannot be read."""
        return self.data.left_out

    def describe(self) -> Iterable[str]:
        """Sets, and what the masks mean."""
        for item in self.data.sets:
            yield f"{item.name} ({item.layout}): {len(item.cases):,} cases are looked at (--part {self.options.part})."
            yield from self.data.about(item)

    def read(self, place: int) -> LabelledImage:
        """Image and classes at native resolution."""
        item = self._cases[place]
        try:
            return read_case(item.case, item.labels, self.head.dims, self.head.window)
        except BrokenFile as error:
            raise error.trouble.under(item.case.source.name(item.case.record)) from None

    def look(self, place: int, case: LabelledImage) -> dict[str, Any]:
        """Scores of the mask found, which is written."""
        working = self.first.working_size(case.classes.shape)
        result = scored(
            self._cases[place],
            case,
            self.head.segment(case.image).classes,
            self.root / PREDICTIONS,
            classes=self.first.labels.classes,
            floors={} if self.baselines is None else self.baselines.scores(case, working),
            centreline=self.options.cldice,
        )
        file = result.prediction.relative_to(self.root).as_posix()
        return {"scores": result.scores, "baselines": result.baselines, "constant": result.constant, "files": [file]}

    def finish(self, lines: Mapping[int, Mapping[str, Any]], place: Place, round: Round) -> AppliedSegmenter:
        """The scores of all cases."""
        cases = []
        for number, line in lines.items():
            item = self._cases[number]
            scores, floors = (
                {key: np.nan if value is None else value for key, value in line[name].items()}
                for name in ("scores", "baselines")
            )
            path = self.root / line["files"][0]
            cases.append(CaseResult(item.set_name, item.case.name, scores, path, floors, line["constant"]))
        seconds = time.perf_counter() - self._since
        return AppliedSegmenter(round, place, self.data, self.first, Untrained(), cases, seconds, self.head)

    def summarise(self, tested: AppliedSegmenter) -> dict[str, Any]:
        """See `summary.summarise`."""
        return summarise([tested])

    def tables(self, tested: AppliedSegmenter) -> Iterable[Table]:
        """A line per case."""
        return tables([tested])

    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: AppliedSegmenter) -> None:
        """See `page.fill_page`."""
        fill_page(page, summary, [tested])

    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """DSC of every set."""
        return verdicts(summary)


def agreed_labels(
    known: LabelMap, own: LabelMap, item: SegmentationSet, text: str, threshold: float | None
) -> LabelMap:
    """What the values in a set's masks mean to a head that knows the classes ``known``.

    A head of two classes takes any set of two, whatever its values are; one of several takes masks that hold its own
    values, all or some of them. Where both sides name a class, the names are the same, unless the user gave the
    ``threshold`` above which is what is meant.

    Raises:
        InputError: the set is of other classes.
    """
    remedy = "Give a set with the same target, or its masks with the same values."
    if known.threshold is not None:
        if own.threshold is None:
            raise InputError(
                f"{text}: its masks hold {own.classes} classes, and the head knows two, foreground and background. If "
                "all that is above a value is meant, give that, e.g. --mask-threshold 0."
            )
        if threshold is None:
            _check_names(known, own, [(1, 1)], text, "If they are the same, say which values are: --mask-threshold 0.")
        return own
    values = own.values if own.threshold is None else (0, own.values[1])
    strange = [value for value in values if value not in known.values]
    if strange or item.binary or threshold is not None:
        found = f"the mask value {strange[0]}" if strange else "masks of foreground and background"
        raise InputError(
            f"{text}: holds {found}, and the head knows the classes of the values {list(known.values)}. {remedy}"
        )
    if own.threshold is None:
        _check_names(known, own, [(known.values.index(v), k) for k, v in enumerate(values) if v], text, remedy)
    return known


def _check_names(known: LabelMap, own: LabelMap, pairs: Iterable[tuple[int, int]], text: str, remedy: str) -> None:
    if not known.names or not own.names:
        return
    for mine, its in pairs:
        if known.names[mine].casefold() != own.names[its].casefold():
            raise InputError(
                f"{text}: its masks show {own.names[its]!r} where the head was trained on {known.names[mine]!r}. "
                f"{remedy}"
            )


def _readable(item: SegmentationSet) -> SegmentationSet:
    """A set without the cases whose image cannot be opened, which are listed as left out."""
    broken: dict[str, Skipped] = {}
    for case in item.cases:
        try:
            case.source.header(case.record)
        except UnreadableScan as error:
            broken[case.name] = error.skipped(case.source.name(case.record))
    if not broken:
        return item
    kept = tuple(case for case in item.cases if case.name not in broken)
    if not kept:
        first = next(iter(broken.values()))
        raise InputError(f"{item.name}: none of the images can be read. {first.path}: {first.reason}")
    return replace(item, cases=kept, left_out=(*item.left_out, *broken.values()))
