"""The detector on whole images: windows, the boxes that stay, resizing, saving."""

import numpy as np
import pytest
import torch

from frepa.downstream.detection.model import DetectionSettings, Detector, whole_cells
from frepa.encoders.registry import build_encoder
from frepa.heads.detector import DetectionHead

CLASSES = ("square", "disc")


class Painted(torch.nn.Module):
    """Stands in for encoder and head: reads scores and boxes off the image, one cell per pixel of a small picture.

    Every cell's answer depends on its own pixels alone, so that windows must not change anything.
    """

    def __init__(self, dims, step):
        super().__init__()
        self.head = DetectionHead(4, step, 2, dims, step=step, extent=(10.0,) * dims)
        self.dims, self.step = dims, step

    def __call__(self, windows):
        pool = torch.nn.functional.avg_pool2d if self.dims == 2 else torch.nn.functional.avg_pool3d
        means = pool(windows[:, :1], self.step)
        logits = torch.cat([means * 20 - 10, means * 8 - 10], 1)
        boxes = means.expand(-1, 2 * self.dims, *means.shape[2:]) - 0.5
        return torch.cat([logits, boxes], 1)


def painted_detector(dims, step, crop, **settings):
    encoder = build_encoder("vit_tiny" if dims == 2 else "vit3d_tiny", image_channels=1, guide="none")
    painted = Painted(dims, step)
    detector = Detector(encoder, painted.head, DetectionSettings(crop=crop, **settings), CLASSES)
    detector.forward = painted.__call__
    return detector, painted


@pytest.mark.parametrize(
    ("dims", "step", "size", "crop"),
    [(2, (4, 8), (61, 90), (32, 48)), (2, (8, 8), (20, 30), (64, 64)), (3, (1, 4, 4), (9, 40, 33), (4, 16, 24))],
)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.3])
def test_windows_change_nothing_that_depends_on_a_cell_alone(dims, step, size, crop, overlap):
    detector, painted = painted_detector(dims, step, crop, overlap=overlap, nms_iou=0.3)
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(1))
    found = detector.detect_working(image, torch.zeros_like(image))
    # The whole image at once, zeros up to whole cells.
    whole = torch.zeros(1, 1, *(max(c, -(-n // s) * s) for n, s, c in zip(size, step, crop)))
    whole[(0, 0, *(slice(n) for n in size))] = image[0]
    answers = painted(whole)
    corners = painted.head.corners(answers[:, 2:])[0].double().numpy()
    scores = answers[0, :2].sigmoid().flatten(1).double().numpy()
    assert len(found.scores) > 3
    for box, kind, score in zip(*found):
        cell = np.abs(scores[kind] - score).argmin()
        assert scores[kind][cell] == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose(box, np.clip(corners[cell], 0, np.tile(size, 2)), atol=1e-3)
    assert found.scores.max() == pytest.approx(scores.max(), abs=1e-5)
    assert (np.diff(found.scores) <= 0).all()


def overlap_of(one, other):
    dims = len(one) // 2
    sides = [min(one[dims + a], other[dims + a]) - max(one[a], other[a]) for a in range(dims)]
    both = np.prod([max(0, side) for side in sides])
    volume = [np.prod(np.subtract(box[dims:], box[:dims])) for box in (one, other)]
    return both / (sum(volume) - both)


def test_of_overlapping_boxes_of_a_class_the_best_stays():
    detector, painted = painted_detector(2, (4, 4), (32, 32), nms_iou=0.4)
    answers = painted(torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(2)))
    corners = painted.head.corners(answers[:, 2:])[0]
    scores = answers[0, :2].sigmoid().flatten(1)
    found = detector._best(scores, corners, (32, 32))
    # The plain algorithm.
    rows = sorted(
        ((float(scores[k, c]), k, np.clip(corners[c].numpy(), 0, 32)) for k in range(2) for c in range(64)),
        key=lambda row: -row[0],
    )
    kept = []
    for score, kind, box in rows:
        if score > 0.01 and all(k != kind or overlap_of(box, other) <= 0.4 for _, k, other in kept):
            kept.append((score, kind, box))
    assert 2 < len(kept) < 100
    assert found.classes.tolist() == [kind for _, kind, _ in kept]
    np.testing.assert_allclose(found.scores, [score for score, _, _ in kept], rtol=1e-6)
    np.testing.assert_allclose(found.corners, [box for _, _, box in kept], rtol=1e-5, atol=1e-5)
    fewer, _ = painted_detector(2, (4, 4), (32, 32), nms_iou=0.4, max_boxes=2)
    assert len(fewer._best(scores, corners, (32, 32)).scores) == 2


def test_boxes_are_in_the_pixels_of_the_image_whatever_size_it_is_worked_on():
    detector, _ = painted_detector(2, (4, 4), (64, 64), image_size=32)
    image = np.zeros((1, 96, 48), np.float32)  # worked on at 32 x 16: a third
    image[:, 24:36, 12:24] = 1  # the cell from 8 to 12 and from 4 to 8, alone
    found = detector.predict(image)
    middle = (found.corners[0, :2] + found.corners[0, 2:]) / 2
    # Half a cell on from the middle of that cell, since its mean is about 1 (resizing blurs its border).
    np.testing.assert_allclose(middle, [3 * (10 + 2), 3 * (6 + 2)], atol=1)


def test_a_window_is_whole_cells_and_positions():
    assert whole_cells((50, 96), (8, 8), 16) == (64, 96)
    assert whole_cells((5, 50, 50), (1, 4, 4), (1, 16, 16)) == (5, 64, 64)
    assert whole_cells((50, 50), (8, 8), 7) == (56, 56)
