"""Trained runs of a few steps on sets of a few small images, for tests of what is done with them afterwards."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

import tiny_encoders  # noqa: F401 (registers them)
from frepa.downstream.segmentation.model import Prediction, Segmenter
from frepa.verbs.classify import classify
from frepa.verbs.detect import detect
from frepa.verbs.segment import segment

ENCODER, ENCODER3D = "random:tiny_for_tests", "random:tiny3d_for_tests"
QUICK = {"max_steps": 4, "batch_size": 2, "quiet": True, "num_workers": 0}


def balls(size: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy bright ball, uint8, and its mask."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    centre = np.array([rng.uniform(n / 4, 3 * n / 4) for n in size]).reshape(-1, *[1] * len(size))
    mask = ((grid - centre) ** 2).sum(0) < (min(size) / 3.5) ** 2
    image = 60 + 120 * mask + rng.normal(0, 8, size)
    return np.clip(image, 0, 255).astype(np.uint8), mask.astype(np.uint8)


def masked_set(root: Path, count: int = 8, size: tuple[int, ...] = (28, 32)) -> Path:
    """images/ and masks/ of balls: PNG, or npy volumes in imagesTr/ and labelsTr/."""
    folders = ("images", "masks") if len(size) == 2 else ("imagesTr", "labelsTr")
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for i in range(count):
        image, mask = balls(size, i)
        for folder, array in zip(folders, (image, mask * (255 if len(size) == 2 else 1))):
            if len(size) == 2:
                Image.fromarray(array).save(root / folder / f"{i}.png")
            else:
                np.save(root / folder / f"{i}.npy", array)
    return root


def class_folders(root: Path, count: int = 12) -> Path:
    """A folder per class; bright and dark, with noise, so that nothing is certain."""
    for kind, factor in (("bright", 1.0), ("dark", 0.8)):
        (root / kind).mkdir(parents=True)
        for i in range(count):
            image = balls((20, 24), i)[0] * factor + np.random.default_rng(i).normal(0, 40)
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / kind / f"{i}.png")
    return root


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def segmenting(root: Path, size: tuple[int, ...] = (28, 32), **options: object) -> Path:
    """A run of ``segment`` on ``root/set``, in ``root/run``."""
    source = masked_set(root / "set", size=size)
    flat = len(size) == 2
    chosen = {"encoder": ENCODER if flat else ENCODER3D, "head": "linear", "crop_size": 32 if flat else 16}
    return segment([str(source)], out=str(root / "run"), **{**chosen, **QUICK, **options})


def classifying(root: Path, **options: object) -> Path:
    """A run of ``classify`` on bright and dark images in ``root/set``, in ``root/run``."""
    for kind, factor in (("bright", 1.0), ("dark", 0.5)):
        (root / "set" / kind).mkdir(parents=True)
        for i in range(10):
            image = balls((20, 24), i)[0] * factor
            Image.fromarray(image.astype(np.uint8)).save(root / "set" / kind / f"{i}.png")
    return classify(str(root / "set"), out=str(root / "run"), **{"encoder": ENCODER, **QUICK, **options})


def detecting(root: Path, **options: object) -> Path:
    """A run of ``detect`` on bright and dark blocks listed in ``root/set/boxes.csv``, in ``root/run``."""
    (root / "set").mkdir(parents=True)
    rows = ["path,label,x_min,y_min,x_max,y_max"]
    for i in range(14):
        rng = np.random.default_rng(i)
        image = rng.normal(120, 6, (40, 48))
        for kind, change, left in (("bright", 100, 0), ("dark", -100, 24)):
            y, x = int(rng.integers(0, 28)), left + int(rng.integers(0, 12))
            image[y : y + 11, x : x + 10] += change
            rows.append(f"{i}.png,{kind},{x},{y},{x + 10},{y + 11}")
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / "set" / f"{i}.png")
    (root / "set" / "boxes.csv").write_text("\n".join(rows) + "\n")
    # Few boxes: to find the hundred best takes longer than all else. Two validations are enough.
    few = {"max_steps": 60, "lr": 1e-2, "max_boxes": 10, "val_every": 30}
    chosen = {"encoder": ENCODER, **QUICK, **few, **options}
    return detect(str(root / "set" / "boxes.csv"), out=str(root / "run"), **chosen)


def threshold(self: Segmenter, image: np.ndarray) -> Prediction:
    """Stands for a head that answers what the image shows: bright or not."""
    found = (image[0] > 0.5).astype(np.uint8)
    return Prediction(found, np.stack([1.0 - found, found]).astype(np.float32))


def speckles(size: tuple[int, ...], seed: int = 3) -> np.ndarray:
    """100 in a third of the voxels, 0 elsewhere: any exchange or flip of axes shows."""
    return (100 * (np.random.default_rng(seed).random(size) < 0.3)).astype(np.int16)
