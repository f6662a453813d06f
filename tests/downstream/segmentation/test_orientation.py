"""Whether things lie the same way in every training image, and what follows from it."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frepa.downstream.segmentation.baselines import Overlap
from frepa.verbs.segment import segment


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other)))


def views(mask: np.ndarray) -> list[np.ndarray]:
    axes = range(1, mask.ndim)
    turned = [mask, np.moveaxis(mask, -1, -2)]
    return [
        np.flip(each, chosen)
        for each in turned
        for many in range(mask.ndim)
        for chosen in itertools.combinations(axes, many)
    ]


@pytest.mark.parametrize("axes", [2, 3])
def test_the_sums_are_the_mean_over_all_pairs(axes: int) -> None:
    rng = np.random.default_rng(axes)
    common = rng.random((2, *(6,) * axes)) ** 4
    masks = [common + 0.3 * rng.random(common.shape) for _ in range(9)]
    overlap = Overlap(axes)
    for mask in [*masks, np.zeros_like(common)]:
        overlap.add(mask)
    pairs = list(itertools.permutations(masks, 2))
    plain = np.mean([cosine(one, other) for one, other in pairs])
    viewed = np.mean([cosine(one, view) for one, other in pairs for view in views(other)])
    assert len(views(common)) == 2 * 2**axes
    assert overlap.left() == pytest.approx(viewed / plain, rel=1e-9)
    assert overlap.left() < 0.95


def test_what_few_or_scattered_masks_say_is_chance() -> None:
    rng = np.random.default_rng(0)
    few, scattered = Overlap(2), Overlap(2)
    for _ in range(7):
        few.add(np.ones((1, 4, 4)))
    for _ in range(30):
        mask = np.zeros((1, 32, 32))
        mask[0, rng.integers(32), rng.integers(32)] = 1
        scattered.add(mask)
    assert math.isnan(few.left())
    assert math.isnan(scattered.left())
    few.add(np.ones((1, 4, 4)))
    assert few.left() == pytest.approx(1)


def write_set(root: Path, corner: bool) -> Path:
    """Bright discs with a mask: all in one corner, or in the middle."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    y, x = np.mgrid[:32, :32]
    for index in range(16):
        middle = rng.uniform(6, 10, 2) if corner else rng.uniform(14, 18, 2)
        mask = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < 25
        image = np.clip(rng.normal(60, 15, (32, 32)) + 120 * mask, 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{index:02d}.png")
        Image.fromarray((255 * mask).astype(np.uint8)).save(root / "masks" / f"{index:02d}.png")
    return root


@pytest.mark.parametrize(
    ("corner", "given", "turned"), [(True, None, False), (False, None, True), (True, True, True), (False, False, False)]
)
def test_flips_and_turns_are_left_out_where_things_lie_one_way(
    tmp_path: Path, corner: bool, given: bool | None, turned: bool
) -> None:
    run = segment(
        str(write_set(tmp_path / "set", corner)), encoder="random:convnext_atto,guide=none,output_stride=16",
        out=str(tmp_path / "run"), features="last", crop_size=32, max_steps=2, augment=given, num_workers=0, quiet=True,
    )  # fmt: skip
    training = json.loads((run / "results.json").read_text())["training"][0]
    assert training["augment"] is turned
    told = [note for note in training["notes"] if note.startswith("Trained without flips and turns")]
    assert len(told) == (corner and given is None)
