"""How large windows are: what is asked for per axis, and no more than the images need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_encoders  # noqa: F401 (registers them)
from frepa.downstream.detection.model import load_detector
from frepa.downstream.segmentation.model import load_segmenter
from frepa.downstream.windowed import crop_sides, fitted_crop
from frepa.errors import InputError
from frepa.verbs.detect import detect
from frepa.verbs.segment import segment


def test_one_side_or_one_per_axis() -> None:
    assert crop_sides(32, 3) == (32, 32, 32)
    assert crop_sides("32", 2) == (32, 32)
    assert crop_sides("8,48,40", 3) == crop_sides([8, 48, 40], 3) == (8, 48, 40)
    with pytest.raises(InputError, match=r"--crop-size 8,48: expected one number, or three .* such as 8,48,48"):
        crop_sides("8,48", 3)
    with pytest.raises(InputError, match=r"--crop-size 8,x,48: expected a number of pixels, or one per axis"):
        crop_sides("8,x,48", 3)


def test_no_axis_is_larger_than_the_images_need() -> None:
    sizes = [(4, 40, 44)] * 9 + [(60, 90, 44)]
    assert fitted_crop((96, 96, 48), sizes, 8, 3) == (64, 96, 48)
    assert fitted_crop((96, 96, 32), sizes, 8, 3, needed_by=0.9) == (64, 96, 32)
    assert fitted_crop((96, 96, 32), [*sizes, sizes[0]], 8, 3, needed_by=0.9) == (8, 40, 32)


def _stacks(root: Path, depths: list[int]) -> Path:
    draw = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, depth in enumerate(depths):
        mask = np.zeros((depth, 12, 12), np.uint8)
        mask[:, 2:8, 3:9] = 1
        np.save(root / "images" / f"{number}.npy", (draw.normal(60, 10, mask.shape) + 80 * mask).astype(np.float32))
        np.save(root / "masks" / f"{number}.npy", mask)
    return root


def test_windows_of_thin_stacks_are_thin(tmp_path: Path) -> None:
    source = str(_stacks(tmp_path / "set", [3] * 19 + [20]))
    options = {
        "encoder": "random:tiny3d_for_tests", "max_steps": 1, "num_workers": 0, "quiet": True,
        "overlap": 0.25,
    }  # fmt: skip
    run = segment([source], out=str(tmp_path / "default"), **options)
    assert load_segmenter(run).settings.crop == (4, 12, 12)  # a multiple of the stride, 2
    # The one deep stack is covered by windows all the same.
    found = load_segmenter(run).predict(np.random.default_rng(0).random((1, 20, 12, 12)).astype(np.float32))
    assert found.classes.shape == (20, 12, 12)
    asked = segment([source], out=str(tmp_path / "asked"), crop_size="2,8,12", **options)
    assert load_segmenter(asked).settings.crop == (2, 8, 12)
    found = detect(source, out=str(tmp_path / "boxes"), crop_size=[4, 8, 12], **options)
    assert load_detector(found).settings.crop == (4, 8, 12)
    with pytest.raises(InputError, match=r"--crop-size 4,8: expected one number, or three"):
        segment([source], out=str(tmp_path / "wrong"), crop_size="4,8", **options)
    with pytest.raises(InputError, match=r"--crop-size 0: expected a number from 1"):
        segment([source], out=str(tmp_path / "none"), crop_size="4,0,8", **options)
