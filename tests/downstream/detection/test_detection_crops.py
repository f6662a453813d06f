"""Crops of images with findings: the boxes go where the pixels go."""

import itertools

import numpy as np
import pytest
import torch

from frepa.downstream.crops import CropPlan, Place, cut
from frepa.downstream.detection.crops import crop_boxes, draw_finding_crops, to_targets, working_image
from frepa.downstream.detection.loss import PADDING
from frepa.images.boxes import IGNORED, Boxes


def box_of(mask):
    where = np.argwhere(mask)
    return [*where.min(0), *(where.max(0) + 1)]


PLACES = [
    Place((3, 5), flips, quarters) for flips in [(), (0,), (1,), (0, 1)] for quarters in range(4)
] + [Place((2, 3, 5), flips, quarters) for flips in [(), (0,), (1, 2), (0, 1, 2)] for quarters in range(4)]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_boxes_are_turned_as_pixels_are(place):
    dims = len(place.starts)
    size = (16, 12, 12)[-dims:] if dims == 3 else (12, 12)
    image = np.zeros((20,) * dims, np.float32)
    corner, extent = (6, 7, 8)[:dims], (2, 5, 3)[:dims]
    image[tuple(slice(c, c + n) for c, n in zip(corner, extent))] = 1
    crop = cut(torch.from_numpy(image)[None], place, size)[0].numpy()
    boxes = Boxes(np.array([[*corner, *(c + n for c, n in zip(corner, extent))]], float), np.array([4]))
    moved = crop_boxes(boxes, place, size)
    assert moved.corners.tolist() == [box_of(crop)]
    assert moved.classes.tolist() == [4]


def test_findings_at_the_border_are_cut_ignored_or_left_out():
    boxes = Boxes(np.array([[2.0, 0, 8, 4], [0, 0, 6, 4], [0, 0, 4, 4], [-9, 0, -1, 4]]), np.array([0, 1, 2, 0]))
    moved = crop_boxes(boxes, Place((4, 0), (), 0), (10, 10))
    assert moved.corners.tolist() == [[0, 0, 4, 4], [0, 0, 2, 4]]
    assert moved.classes.tolist() == [0, IGNORED]  # two thirds of the first are seen, a third of the second


def test_a_finding_lies_anywhere_in_the_crops_that_are_laid_on_it():
    image = np.zeros((1, 200, 200), np.float32)
    boxes = Boxes(np.array([[98.0, 98, 102, 102]]), np.array([0]))
    item = working_image(image, boxes, torch.zeros_like, torch.device("cpu"))
    crops = draw_finding_crops([item] * 300, range(300), CropPlan((32, 32), seed=1, foreground=1.0, augment=False))
    corners, classes = crops.targets
    middles = ((corners[:, :1, :2] + corners[:, :1, 2:]) / 2)[classes[:, :1] == 0]
    assert len(middles) > 250
    for axis in range(2):
        counts = np.histogram(middles[:, axis], bins=4, range=(0, 32))[0]
        assert counts.min() > 0.15 * len(middles)


def test_crops_show_what_their_boxes_say():
    generator = np.random.default_rng(0)
    image = np.zeros((1, 24, 40, 40), np.float32)
    corners = []
    for low in itertools.product((4, 14), (5, 25), (8, 30)):
        extent = generator.integers(2, 6, 3)
        image[(0, *(slice(a, a + n) for a, n in zip(low, extent)))] = 1
        corners.append([*low, *(np.array(low) + extent)])
    item = working_image(
        image, Boxes(np.array(corners, float), np.zeros(8, np.int64)), lambda x: 2 * x, torch.device("cpu")
    )
    crops = draw_finding_crops([item] * 30, range(30), CropPlan((16, 20, 20), seed=3))
    assert torch.equal(crops.guide[:, 0], 2 * torch.stack(crops.image)[:, 0])
    for row in range(30):
        drawn = torch.zeros(16, 20, 20)
        for box, kind in zip(crops.targets.corners[row].long().tolist(), crops.targets.classes[row].tolist()):
            if kind != PADDING:
                drawn[box[0] : box[3], box[1] : box[4], box[2] : box[5]] = 1
        assert torch.equal(drawn, crops.image[row][0])


def test_shorter_lists_are_filled_up():
    boxes = [Boxes(np.array([[0.0, 0, 2, 2], [1, 1, 3, 3]]), np.array([1, 0])), Boxes.empty(2)]
    targets = to_targets(boxes, torch.device("cpu"))
    assert targets.classes.tolist() == [[1, 0], [PADDING, PADDING]]
    assert targets.corners.shape == (2, 2, 4)
