"""Ridges alone, thresholded: what the guide, or Sato's filter, tells without any network.

What cannot beat it has shown nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.filters import sato

from frepa.comparison.baselines.answering import Answer, answer_cases, read
from frepa.comparison.study import StudyTask
from frepa.corruption.guide import hessian_guide, luminance
from frepa.datasets.reading import LabelledImage
from frepa.downstream.segmentation.data import LabelledCase, SegmentationData
from frepa.downstream.segmentation.probe import best_offsets
from frepa.errors import InputError
from frepa.images.geometry import placement, resize

#: What is tried; scales in pixels.
OPTIONS: dict[str, Any] = {
    "polarities": ["frangi", "frangi_dark", "frangi_bright", "hessian_dark", "hessian_bright", "sato_dark"],
    "scales": ["0.5-1-1.5", "1-2-3", "2-4-6"],
    "channels": ["luminance", "green"],
}
# Pixels that the choice is made on: as many whole images as that.
_PIXELS = 2e7
# Answers to faint ridges are small: roots of them are spread over the thresholds that are tried.
_ROOT = 0.25


def guide_alone(
    task: StudyTask,
    *,
    out: str,
    seed: int,
    options: Mapping[str, Any],
    dims: int,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Polarity, scales, channel and threshold with the best mean DSC on the validation part, put on the test part.

    Without a validation part they are chosen on the training part.
    """

    def prepare(data: SegmentationData) -> tuple[Answer, Mapping[str, Any]]:
        if data.classes > 2:
            raise InputError(f"the guide tells ridges from the rest, and {task.name} has {data.classes - 1} classes.")
        part = "val" if data.part("val") else "train"
        channel, kind, threshold, score = _choose(data.part(part), task, options, dims)

        def answer(item: LabelledCase, labelled: LabelledImage) -> np.ndarray:
            return (_filtered(labelled.image, kind, channel, task) > threshold).astype(np.uint8)

        chosen = {
            "channel": channel, "guide": kind, "threshold": threshold ** (1 / _ROOT), "dsc": score, "chosen_on": part
        }  # fmt: skip
        return answer, chosen

    return answer_cases(task, prepare, out=out, seed=seed, dims=dims, resume=resume, overwrite=overwrite)


def _choose(
    cases: list[LabelledCase], task: StudyTask, options: Mapping[str, Any], dims: int
) -> tuple[str, str, float, float]:
    images, pixels = [], 0
    for item in cases:
        labelled = read(item, task, dims)
        images.append(labelled)
        pixels += labelled.classes.size
        if pixels > _PIXELS:
            break
    truths = [labelled.classes.astype(np.int64) for labelled in images]
    coloured = any(len(labelled.image) == 3 for labelled in images)
    channels = options["channels"] if coloured else ["luminance"]
    best: tuple[str, str, float, float] | None = None
    for channel, polarity, scales in itertools.product(channels, options["polarities"], options["scales"]):
        kind = f"{polarity}:{scales}"
        found = [_filtered(labelled.image, kind, channel, task)[None] for labelled in images]
        offsets, score = best_offsets(found, truths)
        if best is None or score > best[3] or best[3] != best[3]:
            best = (channel, kind, float(1 - offsets[1]) / 2, score)
    assert best is not None
    return best


def _filtered(image: np.ndarray, kind: str, channel: str, task: StudyTask) -> np.ndarray:
    """The guide of an image ``(C, *S)`` at its own size, made at the size that the task works at; ``(*S)`` float32."""
    size = tuple(image.shape[1:])
    side = task.options.get("image_size")
    working = size if side is None else placement(size, (side,) * len(size)).inner
    shown = resize(image, working)
    if channel == "green" and len(shown) == 3:
        shown = shown[1:2]
    if kind.startswith("sato"):
        name, _, scales = kind.partition(":")
        grey = luminance(torch.from_numpy(np.ascontiguousarray(shown))[None])[0].numpy()
        sigmas = [float(sigma) for sigma in scales.split("-")]
        guide = sato(grey, sigmas=sigmas, black_ridges=name != "sato_bright")[None].astype(np.float32)
    else:
        guide = hessian_guide(torch.from_numpy(np.ascontiguousarray(shown))[None], kind=kind)[0].numpy()
    return resize(guide, size, "bilinear")[0] ** _ROOT
