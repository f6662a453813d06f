"""A score that needs no encoder: the usual finding at the usual place, in every image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frepa.downstream.detection.data import DetectionData
from frepa.downstream.detection.metrics import DetectionCase, average_precision
from frepa.downstream.scores import summarise
from frepa.images.boxes import Boxes, Detections

#: What results and report call it.
NAME = "the mean training box of each class at its mean place in every image, blind to the image"


def usual_boxes(data: DetectionData) -> Detections:
    """Mean box of each class over the training part, as shares of the image; its score is the class's share."""
    corners, kinds = [], []
    for row in data.rows("train").tolist():
        boxes = data.boxes[row]
        corners.append(boxes.corners / np.tile(np.asarray(data.shapes[row], float), 2))
        kinds.append(boxes.classes)
    every, kind = np.concatenate(corners), np.concatenate(kinds)
    there = [label for label in range(len(data.classes)) if (kind == label).any()]
    mean = np.stack([every[kind == label].mean(0) for label in there])
    share = np.asarray([(kind == label).mean() for label in there])
    return Detections(mean, np.asarray(there, np.int64), share)


def usual_precision(
    usual: Detections, truths: Sequence[Boxes], sizes: Sequence[Sequence[int]], classes: int
) -> dict[str, float]:
    """Average precision of :func:`usual_boxes` on test images, mean over classes: ``ap_10``, ``ap_50``, ``ap_50_95``.

    Args:
        usual: as shares of the image.
        truths: boxes of each image; sizes: its extent.
        classes: their number.
    """
    found = [
        DetectionCase(truth, usual._replace(corners=usual.corners * np.tile(np.asarray(size, float), 2)))
        for truth, size in zip(truths, sizes)
    ]
    return {level: summarise(each).mean for level, each in average_precision(found, classes).items()}


def constant_answer(cases: Sequence[DetectionCase]) -> str | None:
    """A sentence where no box, or in every image the same boxes, were found; None otherwise."""
    if len(cases) < 2:
        return None
    first = cases[0].found
    if not any(len(case.found.scores) for case in cases):
        what = "no box in any test image"
    elif all(
        case.found.corners.shape == first.corners.shape and np.allclose(case.found.corners, first.corners, atol=0.5)
        for case in cases
    ):
        what = "the same boxes in every test image"
    else:
        return None
    return f"The output is constant: {what}. Its scores say nothing about the encoder."
