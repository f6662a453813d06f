"""Trained detectors on another set with boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from frepa.datasets.annotations import FINDING
from frepa.datasets.stacks import Dividing
from frepa.downstream.contract import Place, Progress, Round, Table, Untrained
from frepa.downstream.detection.data import DetectionData, DetectionImage, check, open_boxes, presence
from frepa.downstream.detection.metrics import DetectionCase, score_detections
from frepa.downstream.detection.page import fill_page
from frepa.downstream.detection.summary import summarise_heads, tables, verdicts
from frepa.downstream.detection.testing import AppliedDetector, FoundCase, box_rows, grid_of
from frepa.downstream.detection.trained import TrainedDetector
from frepa.downstream.division import rows_of
from frepa.downstream.evaluation import EvaluateOptions, Evaluation, check_known
from frepa.downstream.page import RunPage
from frepa.errors import InputError
from frepa.files import write_csv
from frepa.images.boxes import Detections
from frepa.images.filed import Filed, boxes_on_file
from frepa.images.hidden_names import Names
from frepa.images.places import split_place
from frepa.images.scan import Skipped, UnreadableScan

#: What LUNA16's script reads.
LUNA16, LUNA16_COLUMNS = "luna16.csv", ("seriesuid", "coordX", "coordY", "coordZ", "probability")


class DetectionEvaluation(Evaluation[TrainedDetector]):
    """Writes ``findings.csv`` and ``overlays/`` besides, and of volumes the file that LUNA16's script reads."""

    unit = "image"

    def __init__(self, head: TrainedDetector, options: EvaluateOptions, root: Path) -> None:
        super().__init__(head, options, root)
        self.first = head.models[0]
        self.criterion = str(next(iter(head.noted("criterion")), "centre"))
        self._data: DetectionData | None = None

    def open(self, progress: Progress) -> list[str]:
        """Images and boxes, every image's header looked at."""
        options, text = self.options, self.one_source()
        self.check_options(cldice=options.cldice)
        found = open_boxes(
            text,
            dims=self.head.dims,
            mask_threshold=options.mask_threshold,
            workers=options.num_workers,
            progress=progress,
            how=Dividing(by=options.divide_by, complete=False),
        )
        rows = rows_of(text, found.parts, options.part)
        chosen = replace(found.chosen(rows), parts=("test",) * len(rows))
        data = check(aligned(chosen, self.first.classes, text), workers=options.num_workers, progress=progress)
        if not data.targets.any():
            raise InputError(f"{text}: no image of the part {options.part} has a finding, so nothing can be measured.")
        absent = [name for k, name in enumerate(data.classes) if not data.targets[:, k].any()]
        self._data = data
        none = [f"No image shows a finding of {', '.join(absent)}: nothing can be said of it."] if absent else []
        return [*data.warnings, *none]

    def hide(self, names: Names) -> None:
        """See `Evaluation.hide`."""
        self._data = self.data.under(names)

    @property
    def data(self) -> DetectionData:
        """The set; every image of the part is a test image."""
        assert self._data is not None
        return self._data

    @property
    def names(self) -> Sequence[str]:
        """Names of the records."""
        return [self.data.name(row) for row in range(len(self.data.records))]

    @property
    def left_out(self) -> Sequence[Skipped]:
        """Images whose headers cannot be read."""
        return self.data.left_out

    def describe(self) -> Iterable[str]:
        """Findings and images."""
        data = self.data
        findings = sum(int((boxes.classes >= 0).sum()) for boxes in data.boxes)
        yield (
            f"{data.source.location}: {findings:,} findings in {len(data.records):,} images are looked at (--part "
            f"{self.options.part}), from {data.origin}."
        )

    def read(self, place: int) -> DetectionImage:
        """The image in canonical orientation."""
        try:
            return self.data.read(place, self.head.window)
        except UnreadableScan as error:
            raise error.under(self.data.name(place)) from None

    def look(self, place: int, case: DetectionImage) -> dict[str, Any]:
        """The boxes found, and where the image lies."""
        found, grid = self.head.detect(case.image), grid_of(case.native)
        return {
            "found": {name: part.tolist() for name, part in found._asdict().items()},
            "affine": _listed(case.affine),
            "grid": {"size": list(grid.size), "affine": _listed(grid.affine), "spacing": _listed(grid.spacing)},
        }

    def finish(self, lines: Mapping[int, Mapping[str, Any]], place: Place, round: Round) -> AppliedDetector:
        """The boxes of all images that could be read, scored."""
        data, thresholds = self.data, self.head.thresholds
        cases = [self._case(row, line) for row, line in lines.items()]
        scores = score_detections(
            [item.case for item in cases],
            data.classes,
            criterion=self.criterion,
            thresholds=thresholds,
            groups=[data.groups[item.row] for item in cases],
            seed=self.options.seed,
        )
        known = _usual([_detections(kept, data.source.dims) for kept in self.head.noted("usual")])
        return AppliedDetector(round, place, data, self.first, Untrained(), thresholds, cases, scores, known)

    def _case(self, row: int, line: Mapping[str, Any]) -> FoundCase:
        data, grid = self.data, line["grid"]
        found = _detections(line["found"], data.source.dims)
        spacing = None if grid["spacing"] is None else tuple(grid["spacing"])
        place = Filed(tuple(grid["size"]), _array(grid["affine"]), spacing)
        return FoundCase(row, data.name(row), DetectionCase(data.boxes[row], found), _array(line["affine"]), place)

    def summarise(self, tested: AppliedDetector) -> dict[str, Any]:
        """See `summary.summarise_heads`."""
        return summarise_heads([tested], self.criterion)

    def tables(self, tested: AppliedDetector) -> Iterable[Table]:
        """A line per image, and a line per box."""
        return tables([tested], self.criterion)

    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: AppliedDetector) -> None:
        """See `page.fill_page`."""
        fill_page(page, summary, [tested], window=self.head.window)

    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """CPM, sensitivity and precision, AP."""
        return verdicts(summary)

    def others_files(self, tested: AppliedDetector, own: Mapping[str, Any]) -> Iterable[str]:
        """LUNA16's own table, of volumes that lie in a patient and heads of one class; it calls series by name."""
        placed = all(item.grid.affine is not None and len(item.grid.size) == 3 for item in tested.cases)
        if len(tested.data.classes) > 1 or not placed or self.options.anonymous_names:
            return
        write_csv(self.root / LUNA16, LUNA16_COLUMNS, luna16_rows(tested))
        yield f"{LUNA16} is for LUNA16's own evaluation script."


def luna16_rows(tested: AppliedDetector) -> Iterable[dict[str, Any]]:
    """A line per box: the series, which LUNA16 names its files after; its centre in LPS millimetres; its score."""
    for item in tested.cases:
        corners, kinds, scores = item.case.found
        boxes = Detections(boxes_on_file(corners, item.affine, item.grid), kinds, scores)
        series = Path(split_place(item.name).file).name
        for ending in (".gz", ".mhd", ".nii", ".mha", ".nrrd"):
            series = series.removesuffix(ending)
        for row in box_rows(boxes, tested.data.classes, tested.thresholds, item.grid):
            world = {name: repr(row[name]) for name in LUNA16_COLUMNS[1:4]}
            yield {"seriesuid": series, **world, "probability": repr(row["score"])}


def aligned(data: DetectionData, classes: Sequence[str], text: str) -> DetectionData:
    """A set with the classes of a head, in its order. Of one kind of findings on each side a nameless one is any.

    Raises:
        InputError: the set has classes the head does not know.
    """
    if len(classes) == 1 and len(data.classes) == 1 and FINDING in (*classes, *data.classes):
        findings = tuple(
            marked._replace(labels=tuple(None if name is None else classes[0] for name in marked.labels))
            for marked in data.findings
        )
        data = replace(data, findings=findings)
    else:
        check_known(text, data.classes, classes)
    return replace(data, classes=tuple(classes), targets=presence(classes, data.findings))


def _detections(kept: Mapping[str, Any], dims: int) -> Detections:
    return Detections(
        np.array(kept["corners"], np.float64).reshape(-1, 2 * dims),
        np.array(kept["classes"], np.int64),
        np.array(kept["scores"], np.float64),
    )


def _usual(known: Sequence[Detections]) -> Detections | None:
    """The mean of what several heads know to be usual; None where they know of different classes, or none does."""
    if not known or len({tuple(one.classes.tolist()) for one in known}) > 1:
        return None
    return known[0]._replace(
        corners=np.mean([one.corners for one in known], axis=0), scores=np.mean([one.scores for one in known], axis=0)
    )


def _listed(values: Any) -> Any:
    return None if values is None else np.asarray(values, float).tolist()


def _array(values: Any) -> np.ndarray | None:
    return None if values is None else np.array(values, np.float64)
