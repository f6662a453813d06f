from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from frepa.corruption.guide import hessian_guide
from frepa.datasets.reading import LabelledImage
from frepa.downstream.crops import CaseCache, CropPlan, CropStream, WorkingCase, draw_crops, working_case


def case_of(size: tuple[int, ...], seed: int = 0) -> WorkingCase:
    rng = np.random.default_rng(seed)
    image = rng.random((1, *size), dtype=np.float32)
    classes = rng.integers(0, 3, size).astype(np.uint8)
    return working_case(LabelledImage(image, classes, None), lambda x: hessian_guide(x[None])[0], torch.device("cpu"))


@pytest.mark.parametrize("size", [(20, 24), (10, 12, 14)])
def test_all_planes_of_a_crop_are_cut_and_turned_alike(size: tuple[int, ...]) -> None:
    axes = len(size)
    coordinates = np.arange(np.prod(size), dtype=np.float32).reshape(1, *size)
    classes = (coordinates[0] % 7).astype(np.uint8)
    case = working_case(LabelledImage(coordinates, classes, None), lambda x: 2 * x, torch.device("cpu"))
    plan = CropPlan((8,) * axes, seed=3, foreground=0.5)
    crops = draw_crops([case] * 40, range(40), plan)
    origins, turned = set(), 0
    for row in range(40):
        image = crops.image[row][0]
        np.testing.assert_array_equal(crops.classes[row], image % 7)
        np.testing.assert_array_equal(crops.guide[row, 0], 2 * image)
        # Whatever was turned, it is one block of the image.
        where = np.stack(np.unravel_index(np.sort(image.numpy().astype(int).ravel()), size))
        low, high = where.min(axis=1), where.max(axis=1)
        np.testing.assert_array_equal(high - low, 7)
        origins.add(tuple(low))
        turned += not np.array_equal(image, coordinates[0][tuple(slice(a, a + 8) for a in low)])
    assert len(origins) > 20
    assert turned > 20
    assert crops.valid.all()


def test_a_crop_depends_on_seed_and_position_alone() -> None:
    cases = [case_of((30, 30), seed) for seed in range(4)]
    plan = CropPlan((16, 16), seed=1)
    together = draw_crops(cases, [10, 11, 12, 13], plan)
    alone = draw_crops(cases[2:3], [12], plan)
    torch.testing.assert_close(together.image[2], alone.image[0], rtol=0, atol=0)
    torch.testing.assert_close(together.classes[2], alone.classes[0], rtol=0, atol=0)
    other = draw_crops(cases[2:3], [12], CropPlan((16, 16), seed=2))
    assert not torch.equal(other.image[0], alone.image[0])


def test_small_cases_are_followed_by_zeros_that_do_not_count() -> None:
    crops = draw_crops([case_of((10, 20))], [0], CropPlan((16, 16), seed=0, augment=False))
    assert crops.valid[0].sum() == 10 * 16
    assert crops.valid[0, :10].all()
    assert not crops.image[0][:, 10:].any()


def test_crops_are_centred_on_labels_when_asked() -> None:
    classes = np.zeros((64, 64), dtype=np.uint8)
    classes[40, 50] = 1
    classes[5:30, 5:30] = 2
    case = working_case(
        LabelledImage(np.zeros((1, 64, 64), np.float32), classes, None), torch.zeros_like, torch.device("cpu")
    )
    crops = draw_crops([case] * 200, range(200), CropPlan((9, 9), seed=0, foreground=1.0, augment=False))
    centres = crops.classes[:, 4, 4]
    assert (centres > 0).all()
    # Classes are drawn evenly, although one has 625 times as many pixels.
    assert 60 < int((centres == 1).sum()) < 140


def test_the_guide_of_a_turned_image_is_the_turned_guide() -> None:
    # This is why it may be computed once per image and cut and turned with it.
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    turned = hessian_guide(image.flip(-1).rot90(1, (-2, -1)).contiguous())
    expected = hessian_guide(image).flip(-1).rot90(1, (-2, -1))
    # At the very border the order of the mirrored filters shows.
    torch.testing.assert_close(turned[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], rtol=1e-3, atol=1e-4)


def test_an_epoch_covers_large_cases_more_often() -> None:
    stream = CropStream([(64, 64), (32, 32), (16, 16)], (32, 32), seed=0)
    assert stream.length == 4 + 1 + 1
    for epoch in range(3):
        counts = np.bincount(stream.cases(range(epoch * 6, epoch * 6 + 6)), minlength=3)
        np.testing.assert_array_equal(counts, [4, 1, 1])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_reads_once_while_there_is_room_and_forgets_the_oldest(workers: int) -> None:
    reads: list[int] = []
    lock = threading.Lock()

    def read(index: int) -> LabelledImage:
        with lock:
            reads.append(index)
        return LabelledImage(np.full((1, 8, 8), index, np.float32), np.zeros((8, 8), np.uint8), None)

    one = case_of((8, 8)).planes.nbytes
    cache = CaseCache(
        read, lambda x: working_case(x, torch.zeros_like, torch.device("cpu")), limit=2 * one, workers=workers
    )
    cache.ahead([0, 1])
    assert [float(cache[i].image[0, 0, 0]) for i in (0, 1, 0)] == [0, 1, 0]
    assert sorted(reads) == [0, 1]
    assert float(cache[2].image.max()) == 2  # 1 goes: 0 was used since
    cache.ahead([0])
    assert float(cache[0].image.max()) == 0
    assert sorted(reads) == [0, 1, 2]
    assert float(cache[1].image.max()) == 1
    assert sorted(reads) == [0, 1, 1, 2]
    cache.close()
