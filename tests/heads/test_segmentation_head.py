from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from frepa.encoders.contract import StageShape
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError
from frepa.heads.reading import (
    default_features,
    fitting,
    from_depth,
    grid_channels,
    map_shapes,
    on_last_grid,
    read_maps,
    to_depth,
)
from frepa.heads.ridge import RidgePath, RidgeSums, blocks_of, neighbourhood, rows_of
from frepa.heads.segmenter import SegmentationHead
from frepa.heads.standardise import Moments

PYRAMID = [
    StageShape(4, (1, 1)),
    StageShape(6, (4, 4)),
    StageShape(8, (8, 8)),
    StageShape(5, (16, 16)),
    StageShape(7, (8, 8)),
]


def maps_of(shapes: list[StageShape], size: tuple[int, ...], seed: int = 0, batch: int = 2) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    grids = [[n // step for n, step in zip(size, shape.stride)] for shape in shapes]
    return [torch.randn(batch, shape.channels, *grid, generator=draw) for shape, grid in zip(shapes, grids)]


def standardise(head: SegmentationHead, maps: list[Tensor]) -> None:
    for layer, item in zip(head.statistics, maps):
        moments = Moments(item.shape[1])
        moments.add(item)
        layer.set(moments.mean, moments.std)


@pytest.mark.parametrize(("size", "factor"), [((8, 12), (4, 2)), ((4, 6, 8), (1, 3, 4))])
def test_depth_and_back(size: tuple[int, ...], factor: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size)
    deep = to_depth(x, factor)
    assert torch.equal(from_depth(deep, factor), x)
    if len(size) == 2 and factor[0] == factor[1]:
        assert torch.equal(deep, torch.nn.functional.pixel_unshuffle(x, factor[0]))


def test_finer_maps_lose_nothing_on_the_last_grid() -> None:
    maps = maps_of(PYRAMID, (32, 48))
    grid = on_last_grid(maps, PYRAMID)
    assert grid.shape == (2, grid_channels(PYRAMID), 4, 6)
    assert grid_channels(PYRAMID) == 4 * 64 + 6 * 4 + 8 + 5 + 7
    assert torch.equal(grid[:, :256], torch.nn.functional.pixel_unshuffle(maps[0], 8))
    assert torch.equal(grid[:, -7:], maps[-1])


def test_maps_that_do_not_fit_are_left_out_but_never_the_last() -> None:
    assert fitting(PYRAMID, 10_000) == (0, 1, 2, 3, 4)
    assert fitting(PYRAMID, 40) == (2, 3, 4)  # 7 + 5 + 8, and 24 more would be 44
    assert fitting(PYRAMID, 1) == (4,)


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        (PYRAMID, (32, 48)),
        ([StageShape(8, (14, 14))], (28, 42)),
        ([StageShape(3, (1, 1, 1)), StageShape(8, (1, 4, 4))], (3, 8, 12)),
        ([StageShape(6, (4, 4, 4)), StageShape(4, (2, 2, 2)), StageShape(3, (1, 1, 1))], (8, 8, 8)),
        ([StageShape(3, (1, 1, 1)), StageShape(4, (2, 2, 2)), StageShape(6, (4, 4, 4))], (8, 8, 8)),
        ([StageShape(4, (2, 7, 7)), StageShape(6, (6, 14, 14))], (6, 28, 42)),
        ([StageShape(4, (1, 4, 4)), StageShape(6, (2, 8, 8))], (6, 16, 24)),
        ([StageShape(2, (1, 1, 1))], (7, 8, 9)),
    ],
)
def test_shapes(kind: str, shapes: list[StageShape], size: tuple[int, ...]) -> None:
    head = SegmentationHead(shapes, 3, kind=kind)
    cut = tuple(n - 1 for n in size)
    assert head(maps_of(shapes, size), cut).shape == (2, 3, *cut)
    copy = SegmentationHead(**head.config)
    copy.load_state_dict(head.state_dict())
    assert copy.config == head.config
    with pytest.raises(InputError, match="is asked for"):
        head(maps_of(shapes, size), tuple(n + 1 for n in size))


def test_what_has_every_pixel_joins_the_body_as_it_is() -> None:
    # The image of a volume comes in cells of two voxels a side: what the U-Net is shown are its own values.
    shapes = [StageShape(2, (1, 1, 1)), StageShape(5, (4, 4, 4))]
    head = SegmentationHead(shapes, 2)
    seen: list[Tensor] = []
    assert head.body is not None
    head.body.lifted.network.register_forward_pre_hook(lambda _, given: seen.extend(given[0]))
    maps = maps_of(shapes, (8, 12, 16), batch=1)
    head(maps, (8, 12, 16))
    scores, image, lifted = seen
    assert scores.shape == (1, 2 * 8, 4, 6, 8)
    for place, (z, y, x) in enumerate(np.ndindex(2, 2, 2)):
        assert torch.equal(image[:, place::8], maps[0][..., z::2, y::2, x::2])
    assert lifted.shape == (1, 8, 4, 6, 8)
    # Lifted from features of variance 1, planes have about that too.
    assert 0.5 < float(lifted.detach().var()) < 2


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize(("scale", "shift"), [(0.05, 0.0), (1.0, 40.0), (300.0, -7.0)])
def test_scaling_and_shifting_the_features_changes_nothing(kind: str, scale: float, shift: float) -> None:
    torch.manual_seed(0)
    head = SegmentationHead(PYRAMID, 2, kind=kind)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    maps = maps_of(PYRAMID, (32, 32))
    other = [item * scale * torch.linspace(0.5, 2, item.shape[1]).view(1, -1, 1, 1) + shift for item in maps]
    standardise(head, maps)
    expected = head(maps, (32, 32))
    standardise(head, other)
    torch.testing.assert_close(head(other, (32, 32)), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("reach", [1, 3])
def test_a_fresh_head_answers_what_the_ridge_does(classes: int, reach: int) -> None:
    shapes = [StageShape(5, (2, 4)), StageShape(6, (4, 4))]
    maps = maps_of(shapes, (16, 24), batch=8)
    truth = torch.randint(0, classes, (8, 16, 24), generator=torch.Generator().manual_seed(1))
    head = SegmentationHead(shapes, classes, reach=reach)
    standardise(head, maps)
    wanted = torch.nn.functional.one_hot(truth, classes).movedim(-1, 1)[:, 1:]
    features = neighbourhood(head.grid(head.standardised(maps)), reach)
    sums = RidgeSums(features.shape[1], (classes - 1) * 16)
    sums.add(rows_of(features), blocks_of(wanted, (4, 4)))
    zero, one = torch.zeros(features.shape[1]), torch.ones(features.shape[1])
    ridge = RidgePath(sums, zero, one).at(1e-3)
    head.start_from(ridge, torch.zeros(classes))
    probability = rows_of(features).double() @ ridge.weight + ridge.bias
    own = blocks_of(head(maps, (16, 24)).detach().double(), (4, 4)).unflatten(1, (classes, -1))
    probability = probability.unflatten(1, (classes - 1, -1))
    every = torch.cat([1 - probability.sum(1, keepdim=True), probability], 1)
    # One scale for all logits: the same order of classes everywhere, and the same differences.
    scale = float((own[:, 0] - own[:, 1]).std() / (every[:, 0] - every[:, 1]).std())
    torch.testing.assert_close(own, every * scale, rtol=1e-4, atol=1e-4)


def test_offsets_move_the_threshold() -> None:
    shapes = [StageShape(3, (2, 2))]
    head = SegmentationHead(shapes, 2, kind="linear")
    sums = RidgeSums(3, 4)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(500, 3, generator=draw), torch.rand(500, 4, generator=draw)
    sums.add(x, y)
    ridge = RidgePath(sums, torch.zeros(3), torch.ones(3)).at(1e-3)
    head.start_from(ridge, torch.tensor([0.0, 1 - 2 * 0.3]))
    maps = [torch.randn(2, 3, 5, 5, generator=draw)]
    found = blocks_of(head(maps, (10, 10)).argmax(1, keepdim=True), (2, 2)) > 0
    assert torch.equal(found, rows_of(maps[0]).double() @ ridge.weight + ridge.bias > 0.3)


def test_what_is_read_of_an_encoder() -> None:
    encoder = build_encoder("convnext_atto", output_stride=16).eval()
    x = torch.rand(1, 4, 30, 45)
    with torch.no_grad():
        maps = read_maps(encoder, x, "pyramid+image")
        assert torch.equal(maps[-1], encoder(x).dense)
        assert torch.equal(read_maps(encoder, x, "last")[0], maps[-1])
    shapes = map_shapes(encoder, "pyramid+image")
    assert shapes == tuple(StageShape(c, (s, s)) for c, s in [(4, 1), (40, 4), (80, 8), (160, 16), (320, 16)])
    for item, shape in zip(maps, shapes, strict=True):
        assert item.shape == (1, shape.channels, *(n // shape.stride[0] for n in (32, 48)))
    assert torch.equal(maps[0][..., :30, :45], x)
    assert default_features(encoder) == "pyramid+image"
    assert default_features(build_encoder("mednext_tiny")) == "last"
