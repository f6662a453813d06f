"""Test of a detector: every image of a part searched, and what was found as rows of tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from frepa.downstream.contract import Tested
from frepa.downstream.detection.baselines import usual_boxes
from frepa.downstream.detection.data import DetectionData, Reading
from frepa.downstream.detection.metrics import DetectionCase, case_scores
from frepa.downstream.detection.model import Detector
from frepa.downstream.fitting import read_ahead
from frepa.images.boxes import Detections, centres
from frepa.images.filed import Filed, boxes_on_file
from frepa.images.scan import Header

SCORE_COLUMNS = ("findings", "boxes", "hits", "misses", "false_positives", "iou")
_AXES = ("x", "y", "z")
_WORLD = ("coordX", "coordY", "coordZ")


@dataclass(frozen=True)
class FoundCase:
    """What was found in one image.

    Attributes:
        row: of the data. name: of the record.
        case: true and found boxes in canonical axes, at the image's own resolution.
        affine: of the canonical axes, None where the file says nothing. grid: of the file.
    """

    row: int
    name: str
    case: DetectionCase
    affine: np.ndarray | None
    grid: Filed


@dataclass(frozen=True)
class TestedDetector(Tested[DetectionData, Detector]):
    """One trained head on its test part: the score per class from which on a box counts, what it found, its scores."""

    thresholds: tuple[float, ...]
    cases: list[FoundCase]
    scores: dict[str, Any]

    __test__ = False  # no test class

    @property
    def usual(self) -> Detections | None:
        """See `usual_boxes`; None where nobody knows."""
        return usual_boxes(self.data)


@dataclass(frozen=True)
class AppliedDetector(TestedDetector):
    """Heads trained elsewhere on a set they have not seen; ``known`` are the `usual_boxes` of their own training."""

    known: Detections | None

    @property
    def usual(self) -> Detections | None:
        """As it was known where the heads were trained."""
        return self.known


def find_in(
    detector: Detector, reading: Reading, part: str, *, workers: int = 2, quiet: bool = False
) -> list[FoundCase]:
    """Search all images of a part, in order; those that cannot be read are left out."""
    data = reading.data
    rows = data.rows(part).tolist()
    label = {"test": "Testing", "val": "Choosing the threshold"}.get(part, "Choosing the threshold on training images")
    results = []
    with tqdm(total=len(rows), unit="image", desc=label, disable=quiet, dynamic_ncols=True) as bar:
        for row, item in zip(rows, read_ahead(reading, rows, workers)):
            if item is not None:
                case = DetectionCase(item.boxes, detector.predict(item.image))
                results.append(FoundCase(row, data.name(row), case, item.affine, grid_of(item.native)))
            bar.update()
    return results


def grid_of(native: Header) -> Filed:
    """The grid of a file from what it says of itself; of an image its size alone."""
    size = tuple(native.size)
    return Filed(size, native.affine if len(size) == 3 else None, native.spacing)


def case_row(found: FoundCase, thresholds: Sequence[float], criterion: str) -> dict[str, Any]:
    """The line of ``cases.csv``: findings to be found, boxes above the threshold, hits, misses, mean IoU."""
    return {"case": found.name, **case_scores(found.case, thresholds, criterion)}


def found_columns(dims: int) -> list[str]:
    """Columns of ``findings.csv``."""
    sides = [f"{axis}_{end}" for end in ("min", "max") for axis in _AXES[:dims]]
    world = list(_WORLD) if dims == 3 else []
    return ["image", "label", "score", "above_threshold", *sides, *(f"{axis}_mm" for axis in _AXES[:dims]), *world]


def finding_rows(found: FoundCase, classes: Sequence[str], thresholds: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Lines of ``findings.csv``, best first; see `box_rows`."""
    corners, kinds, scores = found.case.found
    on_file = boxes_on_file(corners, found.affine, found.grid)
    for row in box_rows(Detections(on_file, kinds, scores), classes, thresholds, found.grid):
        yield {"image": found.name, **row}


def box_rows(
    found: Detections, classes: Sequence[str], thresholds: Sequence[float], grid: Filed
) -> Iterator[dict[str, Any]]:
    """Boxes as lines of a table: in the pixels and axes of the file, x its last axis, and their extent in millimetres.

    Of volumes that say where they lie also the centre in LPS millimetres, as LUNA16 and DICOM write it.

    Args:
        found: in the axes of ``grid``.
        classes: names. thresholds: of each the score from which on a box counts, NaN where none does.
        grid: of the file.
    """
    corners, kinds, scores = found
    dims = corners.shape[1] // 2
    middles = None
    if grid.affine is not None and dims == 3:
        # The middle of pixel i is i + 0.5, and affines take i.
        middles = (centres(corners) - 0.5) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    for place, (box, kind, score) in enumerate(zip(corners, kinds.tolist(), scores.tolist())):
        row: dict[str, Any] = {"label": classes[kind], "score": score}
        row["above_threshold"] = int(score >= thresholds[kind])
        for axis in range(dims):
            row[f"{_AXES[dims - 1 - axis]}_min"] = float(box[axis])
            row[f"{_AXES[dims - 1 - axis]}_max"] = float(box[dims + axis])
        if grid.spacing is not None:
            sizes = (box[dims:] - box[:dims]) * grid.spacing[-dims:]
            row |= {f"{_AXES[dims - 1 - axis]}_mm": float(size) for axis, size in enumerate(sizes)}
        if middles is not None:
            row |= dict(zip(_WORLD, (middles[place] * [-1, -1, 1]).tolist()))
        yield row
