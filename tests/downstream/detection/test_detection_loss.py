"""Assignment, quality focal loss and GIoU loss of the detection head, against slow loops and MONAI's boxes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data.box_utils import box_pair_giou

from frepa.downstream.detection.loss import PADDING, Targets, assign, detection_loss, iou_and_giou
from frepa.heads.detector import DetectionHead
from frepa.images.boxes import IGNORED


def random_boxes(count, dims, seed, scale=30.0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, dims, generator=generator) * scale
    return torch.cat([low, low + 1 + torch.rand(count, dims, generator=generator) * scale / 2], 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_giou_is_that_of_monai(dims):
    one, other = random_boxes(200, dims, 1), random_boxes(200, dims, 2)
    overlap, generalized = iou_and_giou(one, other)
    torch.testing.assert_close(generalized, box_pair_giou(one, other), atol=1e-5, rtol=1e-5)
    assert ((overlap > 0) & (overlap < 1)).any()
    same, same_generalized = iou_and_giou(one, one)
    torch.testing.assert_close(same, torch.ones(200))
    torch.testing.assert_close(same_generalized, torch.ones(200))


def test_boxes_apart_have_the_closed_form():
    one, other = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[6.0, 0.0, 8.0, 2.0]])
    overlap, generalized = iou_and_giou(one, other)
    assert overlap.item() == 0
    assert generalized.item() == pytest.approx(-(16 - 8) / 16)


def assigned_by_loop(middles, step, corners, classes):
    """The rule of ``assign`` word by word, for one image: (finding or None, ignored)."""
    dims = middles.shape[1]
    rows = []
    for point in middles.tolist():
        best, best_volume, ignored = None, math.inf, False
        for m, (box, kind) in enumerate(zip(corners.tolist(), classes.tolist())):
            low, high = box[:dims], box[dims:]
            inside = all(a <= p < b for a, p, b in zip(low, point, high))
            if kind == IGNORED and inside:
                ignored = True
            if kind < 0:
                continue
            far = max(abs(p - (a + b) / 2) / s for a, b, p, s in zip(low, high, point, step))
            volume = math.prod(b - a for a, b in zip(low, high))
            if (far <= 0.5 or (inside and far < 1.5)) and volume < best_volume:
                best, best_volume = m, volume
        rows.append((best, ignored))
    return rows


@pytest.mark.parametrize(("dims", "step"), [(2, (4, 8)), (3, (2, 4, 4))])
def test_cells_answer_for_the_smallest_finding_near_them(dims, step):
    head = DetectionHead(4, step, 3, dims, step=step, extent=(9.0,) * dims)
    middles = head.centres(tuple(48 // s for s in step), torch.device("cpu"))
    corners = torch.stack([random_boxes(7, dims, 3), random_boxes(7, dims, 4)])
    classes = torch.tensor([[0, 1, 2, IGNORED, 0, PADDING, PADDING], [IGNORED, 1, 1, 0, 2, 2, 0]])
    row, state = assign(middles, step, Targets(corners, classes))
    for image in range(2):
        expected = assigned_by_loop(middles, step, corners[image], classes[image])
        for cell, (finding, ignored) in enumerate(expected):
            if finding is None:
                assert state[image, cell] == (-1 if ignored else 0)
            else:
                assert (state[image, cell], row[image, cell]) == (1, finding)
    assert (state == 1).any(1).all()
    assert (state == -1).any()


def test_every_finding_has_a_cell_however_thin():
    middles = DetectionHead(4, 8, 1, 2, step=(8, 8), extent=(9.0, 9.0)).centres((4, 4), torch.device("cpu"))
    corners = torch.tensor([[[9.0, 17.0, 9.5, 17.2]]])
    _, state = assign(middles, (8, 8), Targets(corners, torch.zeros(1, 1, dtype=torch.int64)))
    assert state.reshape(4, 4).nonzero().tolist() == [[1, 2]]


def loss_by_loop(head, answers, corners, classes):
    """The loss of one image cell by cell, with NumPy's and torch's scalar functions."""
    grid = answers.shape[1:]
    dims = len(grid)
    middles = head.centres(grid, torch.device("cpu"))
    rows = assigned_by_loop(middles, head.step, corners, classes)
    scores = answers[: head.classes].reshape(head.classes, -1)
    boxes = answers[head.classes :].reshape(2 * dims, -1)
    count, class_sum, box_sum, l1_sum = 0, 0.0, 0.0, 0.0
    for cell, (finding, ignored) in enumerate(rows):
        quality = torch.zeros(head.classes)
        if finding is not None:
            count += 1
            shift, growth = 2 * (boxes[:dims, cell] / 2).tanh(), 3 * (boxes[dims:, cell] / 3).tanh()
            middle = middles[cell] + shift * torch.tensor(head.step)
            half = head.extent / 2 * growth.exp()
            own = torch.cat([middle - half, middle + half])[None]
            overlap = float(iou_and_giou(own, corners[finding : finding + 1])[0])
            box_sum += 1 - float(box_pair_giou(own, corners[finding : finding + 1]))
            quality[classes[finding]] = overlap
            low, high = corners[finding, :dims], corners[finding, dims:]
            shift = ((low + high) / 2 - middles[cell]) / torch.tensor(head.step)
            growth = ((high - low) / head.extent).log()
            wanted = [2 * np.arctanh(np.clip(y / 2, -0.95, 0.95)) for y in shift.tolist()]
            wanted += [3 * np.arctanh(np.clip(y / 3, -0.95, 0.95)) for y in growth.tolist()]
            away = [abs(a - b) for a, b in zip(boxes[:, cell].tolist(), wanted)]
            l1_sum += np.mean([d - 0.5 if d > 1 else d * d / 2 for d in away])
        elif ignored:
            continue
        for kind in range(head.classes):
            p = torch.sigmoid(scores[kind, cell])
            class_sum += float((quality[kind] - p).abs() ** 2 * F.binary_cross_entropy(p, quality[kind]))
    return class_sum, box_sum, l1_sum, count


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_the_sum_over_cells(dims):
    step = (8,) * dims
    head = DetectionHead(4, 8, 2, dims, step=step, extent=(9.0,) * dims)
    answers = torch.randn(2, 2 + 2 * dims, *(6,) * dims, generator=torch.Generator().manual_seed(5)) / 2
    corners = torch.stack([random_boxes(4, dims, 6), random_boxes(4, dims, 7)])
    classes = torch.tensor([[0, 1, 1, IGNORED], [1, PADDING, PADDING, PADDING]])
    found = detection_loss(head, answers, Targets(corners, classes))
    each = [loss_by_loop(head, answers[i], corners[i], classes[i]) for i in range(2)]
    class_sum, box_sum, l1_sum, count = np.sum(each, 0)
    assert count > 2
    assert float(found["class"]) == pytest.approx(class_sum / count, rel=1e-4)
    assert float(found["giou"]) == pytest.approx(box_sum / count, rel=1e-4)
    assert float(found["l1"]) == pytest.approx(l1_sum / count, rel=1e-4)
    assert float(found["loss"]) == pytest.approx((class_sum + 2 * box_sum + l1_sum / 2) / count, rel=1e-4)


@pytest.mark.parametrize("rows", [0, 2])
def test_a_batch_without_findings_asks_for_low_scores_only(rows):
    head = DetectionHead(4, 8, 2, 2, step=(8, 8), extent=(9.0, 9.0))
    answers = torch.randn(1, 6, 4, 4).requires_grad_()
    targets = Targets(torch.zeros(1, rows, 4), torch.full((1, rows), PADDING))
    found = detection_loss(head, answers, targets)
    found["loss"].backward()
    assert found["giou"].item() == 0
    assert (answers.grad[:, :2] > 0).all()
    assert (answers.grad[:, 2:] == 0).all()


def test_boxes_are_learnt():
    head = DetectionHead(4, 8, 2, 2, step=(8, 8), extent=(12.0, 12.0))
    wanted = torch.tensor([[[3.0, 5.0, 21.0, 13.0], [30.0, 30.0, 40.0, 44.0]]])
    targets = Targets(wanted, torch.tensor([[0, 1]]))
    answers = torch.zeros(1, 6, 8, 8).requires_grad_()
    optimizer = torch.optim.Adam([answers], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        detection_loss(head, answers, targets)["loss"].backward()
        optimizer.step()
    corners = head.corners(answers[:, 2:])[0]
    scores = answers[0, :2].sigmoid().flatten(1)
    for kind in range(2):
        torch.testing.assert_close(corners[scores[kind].argmax()], wanted[0, kind], atol=0.5, rtol=0)
        assert scores[kind].max() > 0.9


def test_a_box_that_collapsed_comes_back():
    """GIoU alone leaves a tiny box where it is: its gradient goes with the box's volume."""
    head = DetectionHead(4, 8, 1, 3, step=(8, 8, 8), extent=(12.0, 12.0, 12.0))
    targets = Targets(torch.tensor([[[6.0, 6, 6, 18, 18, 18]]]), torch.tensor([[0]]))
    answers = torch.zeros(1, 7, 4, 4, 4)
    answers[:, 4:] = -20  # twenty times too small along every axis
    answers.requires_grad_()
    optimizer = torch.optim.Adam([answers], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        found = detection_loss(head, answers, targets)
        found["loss"].backward()
        optimizer.step()
    assert found["giou"].item() < 0.05
