"""The detection head: its grid, and the boxes it answers, in 2D and 3D."""

import math

import pytest
import torch

from frepa.downstream.detection.loss import Targets, detection_loss
from frepa.heads.detector import PRIOR, DetectionHead, grid_step
from frepa.heads.standardise import Moments
from frepa.optimizers import MuonAndAdam, muon_group


@pytest.mark.parametrize(
    ("stride", "extents", "expected"),
    [
        (16, (40.0, 40.0), (8, 8)),
        (16, (10.0, 100.0), (4, 8)),
        (4, (64.0, 64.0), (8, 8)),
        (14, (20.0, 20.0), (7, 7)),
        (7, (4.0, 4.0), (7, 7)),
        ((1, 16, 16), (2.0, 8.0, 9.0), (1, 4, 4)),
        (1, (0.5, 30.0, 5.0), (1, 8, 2)),
    ],
)
def test_cells_are_at_most_half_of_a_finding(stride, extents, expected):
    assert grid_step(stride, extents, len(extents)) == expected


@pytest.mark.parametrize(
    ("stride", "step", "size", "positions"),
    [
        (16, (4, 8), (64, 96), (4, 6)),
        (4, (4, 4), (30, 33), (8, 9)),
        (1, (4, 2), (30, 33), (30, 33)),
        ((1, 16, 16), (1, 4, 4), (5, 40, 33), (5, 3, 3)),
        (1, (2, 4, 8), (9, 10, 11), (9, 10, 11)),
    ],
)
def test_every_cell_of_the_image_gets_an_answer(stride, step, size, positions):
    dims = len(size)
    head = DetectionHead(6, stride, 3, dims, step=step, extent=(10.0,) * dims)
    answers = head(torch.randn(2, 6, *positions), size)
    grid = tuple(math.ceil(n / cell) for n, cell in zip(size, step))
    assert answers.shape == (2, 3 + 2 * dims, *grid)
    assert answers.dtype == torch.float32
    assert head.grid(size) == grid
    answers.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters())


def test_a_grid_that_does_not_go_with_the_stride_is_refused():
    with pytest.raises(ValueError, match="cannot be made"):
        DetectionHead(6, 14, 1, 2, step=(4, 4), extent=(9.0, 9.0))


@pytest.mark.parametrize("dims", [2, 3])
def test_an_answer_means_the_box_it_describes(dims):
    extent = (8.0, 12.0, 20.0)[:dims]
    head = DetectionHead(4, 4, 2, dims, step=(4,) * dims, extent=extent)
    answers = torch.zeros(1, 2 * dims, *(5,) * dims)
    cell = (1, 2, 3)[:dims]
    answers[(0, 0, *cell)] = 2 * math.atanh(0.5 / 2)  # half a cell on along the first axis
    answers[(0, 2 * dims - 1, *cell)] = 3 * math.atanh(math.log(2) / 3)  # twice as long along the last
    corners = head.corners(answers)[0].reshape(*(5,) * dims, 2 * dims)
    middle = [4 * (place + 0.5) for place in cell]
    middle[0] += 2
    lengths = list(extent)
    lengths[-1] *= 2
    expected = [m - n / 2 for m, n in zip(middle, lengths)] + [m + n / 2 for m, n in zip(middle, lengths)]
    assert corners[cell].tolist() == pytest.approx(expected)
    first = [2 - n / 2 for n in extent] + [2 + n / 2 for n in extent]
    assert corners[(0,) * dims].tolist() == pytest.approx(first)


def test_answers_for_boxes_are_those_that_give_them():
    head = DetectionHead(4, 4, 2, 3, step=(2, 4, 4), extent=(6.0, 8.0, 10.0))
    answers = torch.randn(1, 6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    corners = head.corners(answers)
    middles = head.centres((3, 4, 5), torch.device("cpu"))
    torch.testing.assert_close(
        head.answers_for(corners, middles), answers.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4
    )
    far = head.answers_for(torch.tensor([500.0, 0, 0, 501, 1e-3, 2000]), torch.zeros(3))
    assert far.isfinite().all()


def test_no_answer_is_beyond_its_bounds():
    head = DetectionHead(4, 4, 2, 2, step=(4, 4), extent=(8.0, 8.0))
    corners = head.corners(torch.full((1, 4, 1, 1), 1e4))[0, 0]
    middle, extent = (corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]
    torch.testing.assert_close(middle, torch.tensor([2.0 + 8, 2.0 + 8]))
    torch.testing.assert_close(extent, torch.full((2,), 8 * math.exp(3)))


def test_before_training_nothing_is_likely():
    head = DetectionHead(4, 8, 2, 2, step=(8, 8), extent=(20.0, 20.0))
    scores = head(torch.zeros(1, 4, 4, 4), (32, 32))[:, :2].sigmoid()
    assert scores.mean().item() == pytest.approx(PRIOR, rel=0.5)


def test_scaling_and_shifting_the_features_changes_nothing() -> None:
    torch.manual_seed(0)
    head = DetectionHead(6, 8, 2, 2, step=(8, 8), extent=(10.0, 12.0)).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, found = torch.randn(3, 6, 4, 5), []
    for features in (x, 0.05 * x + 40 * torch.randn(6).view(1, -1, 1, 1)):
        moments = Moments(6)
        moments.add(features)
        head.standardise.set(moments.mean, moments.std)
        found.append(head(features, (32, 40)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-2, atol=1e-2)


def boxes_in_volumes(seed: int, projection: torch.Tensor) -> tuple[torch.Tensor, Targets]:
    """Features of two volumes of 32 voxels a side, a random projection of blocks of 8, and the bright box in each."""
    draw = torch.Generator().manual_seed(seed)
    volumes, corners = 0.1 * torch.randn(2, 32, 32, 32, generator=draw), []
    for volume in volumes:
        extent = torch.randint(4, 11, (3,), generator=draw)
        low = torch.stack([torch.randint(0, 33 - int(n), (), generator=draw) for n in extent])
        volume[tuple(slice(int(a), int(a + n)) for a, n in zip(low, extent))] += 1
        corners.append(torch.cat([low, low + extent]).float())
    blocks = volumes.unfold(1, 8, 8).unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
    return torch.einsum("bxyzp,cp->bcxyz", blocks, projection), Targets(
        torch.stack(corners)[:, None], torch.zeros(2, 1, dtype=torch.int64)
    )


def test_boxes_of_volumes_are_learnt_at_the_default_rate_of_images():
    """With Muon on the linear map as well the loss stays above 0.85 (the first answers have 0.96)."""
    torch.manual_seed(0)
    head = DetectionHead(64, 8, 1, 3, step=(2, 2, 2), extent=(6.6,) * 3)
    projection = torch.randn(64, 512) / 512**0.5
    moments = Moments(64)
    for seed in range(10):
        moments.add(boxes_in_volumes(1000 + seed, projection)[0])
    head.standardise.set(moments.mean, moments.std)
    kernels = {id(weight) for weight in head.kernels() if weight.ndim > 1}
    groups = [
        {"params": [weight for weight in head.parameters() if id(weight) not in kernels]},
        muon_group(head.kernels()),
    ]
    optimizer, losses = MuonAndAdam(groups, 2e-3), []
    for step in range(60):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 10) * (1 - step / 60) * group.get("share", 1)
        dense, targets = boxes_in_volumes(step, projection)
        terms = detection_loss(head, head(dense, (32, 32, 32)), targets)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["giou"].item())
    assert sum(losses[-10:]) / 10 < 0.78
