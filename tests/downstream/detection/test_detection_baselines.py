from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from frepa.downstream.detection.baselines import constant_answer, usual_boxes, usual_precision
from frepa.downstream.detection.metrics import DetectionCase
from frepa.images.boxes import Boxes, Detections


def _data() -> SimpleNamespace:
    boxes = [
        Boxes(np.array([[10.0, 20, 30, 40]]), np.array([0])),
        Boxes(np.array([[20.0, 40, 60, 80], [0, 0, 20, 20]]), np.array([0, 1])),
        Boxes(np.array([[10.0, 20, 30, 40]]), np.array([0])),
    ]
    parts = {"train": np.array([0, 1]), "test": np.array([2])}
    return SimpleNamespace(
        boxes=boxes, shapes=[(100, 100), (200, 200), (100, 100)], classes=("a", "b"), rows=parts.__getitem__
    )


def test_the_usual_box_is_the_mean_share_of_the_image() -> None:
    usual = usual_boxes(_data())  # type: ignore[arg-type]
    np.testing.assert_allclose(usual.corners, [[0.1, 0.2, 0.3, 0.4], [0, 0, 0.1, 0.1]])
    np.testing.assert_allclose(usual.scores, [2 / 3, 1 / 3])
    assert usual_precision(usual, [_data().boxes[2]], [(100, 100)], 2)["ap_50"] == pytest.approx(1)


def test_constant_detections_are_named() -> None:
    truth = Boxes.empty(2)
    none = Detections(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
    some = Detections(np.array([[1.0, 1, 5, 5]]), np.array([0]), np.array([0.5]))
    other = some._replace(corners=some.corners + 3)
    assert "no box" in str(constant_answer([DetectionCase(truth, none)] * 3))
    assert "same boxes" in str(constant_answer([DetectionCase(truth, some)] * 3))
    assert constant_answer([DetectionCase(truth, some), DetectionCase(truth, other)]) is None
