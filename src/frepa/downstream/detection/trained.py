"""A trained detector on new scans: boxes in the axes of their files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from frepa.downstream.detection.combining import combined
from frepa.downstream.detection.model import TASK, Detector, load_detector
from frepa.downstream.detection.testing import box_rows
from frepa.downstream.trained import Answer, TrainedHead
from frepa.encoders.contract import Encoder
from frepa.images.boxes import Detections
from frepa.images.filed import Filed, boxes_on_file
from frepa.report.boxes import found_overlay


@dataclass(frozen=True, repr=False)
class DetectedScan(Answer):
    """Boxes.

    Attributes:
        found: best first, in the pixels and axes of the file.
        seen: the same in the axes of ``image``.
        classes: names.
        thresholds: of each class the score from which on a box counts as found, NaN where none does.
    """

    found: Detections
    seen: Detections
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]

    @property
    def boxes(self) -> list[dict[str, Any]]:
        """The boxes as lines of a table, best first; see `box_rows`."""
        return list(box_rows(self.found, self.classes, self.thresholds, self.grid))

    @property
    def row(self) -> dict[str, Any]:
        """How many boxes count, of every class."""
        return {
            f"boxes_{name}": int(((self.found.classes == k) & self._counts(self.found)).sum())
            for k, name in enumerate(self.classes)
        }

    def picture(self) -> Figure:
        """The image, and beside it the boxes that count; of a volume the slice through the best one."""
        kept = self._counts(self.seen)
        labels = [self.classes[k] for k in self.seen.classes[kept]] if len(self.classes) > 1 else None
        corners, scores = self.seen.corners[kept], self.seen.scores[kept]
        return found_overlay(
            self.image, corners, scores, labels=labels, kinds=self.classes if labels else (), voxels=self.voxels
        )

    def _counts(self, found: Detections) -> np.ndarray:
        least = np.asarray(self.thresholds)[found.classes] if len(found.classes) else np.zeros(0)
        return np.greater_equal(found.scores, least)


class TrainedDetector(TrainedHead[Detector]):
    """The detectors of a run; their boxes are fused, and their thresholds averaged."""

    task = TASK
    evaluation = "frepa.downstream.detection.evaluation:DetectionEvaluation"

    @classmethod
    def load(cls, file: Path, encoder: str | Encoder | None, device: torch.device) -> Detector:
        """See `load_detector`."""
        return load_detector(file, encoder=encoder, device=device)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Per class the score from which on a box counts: the mean over the heads that have one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no head has one: NaN, which no box reaches
            return tuple(np.nanmean([model.settings.thresholds for model in self.models], axis=0).tolist())

    def detect(self, image: np.ndarray) -> Detections:
        """Boxes of an image ``(C, *S)`` float32 in [0, 1], C = 1 or 3, in its own pixels."""
        settings = self.models[0].settings
        found = [model.predict(image) for model in self.models]
        return combined(found, overlap=settings.nms_iou, most=settings.max_boxes)

    def _answer(self, image: np.ndarray, affine: np.ndarray | None, grid: Filed) -> DetectedScan:
        seen = self.detect(image)
        found = seen._replace(corners=boxes_on_file(seen.corners, affine, grid))
        return DetectedScan(grid, image, found, seen, self.models[0].classes, self.thresholds)
