"""Training of a segmentation head on a frozen encoder: the loop, on one page."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from frepa.datasets.reading import LabelledImage, read_case
from frepa.downstream.crops import CaseCache, CropPlan, CropStream, WorkingCase, draw_crops, working_case
from frepa.downstream.fitting import fit
from frepa.downstream.segmentation.data import LabelledCase
from frepa.downstream.segmentation.loss import LOSSES
from frepa.downstream.segmentation.metrics import case_mean, count, dice, summarise
from frepa.downstream.segmentation.model import Segmenter
from frepa.images.geometry import resize
from frepa.machine import memory_of

# Cases kept ready, as a share of the memory of the device they are kept on.
_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class HeadPlan:
    """The numbers that decide the result: rate of every step, crops per step, steps per validation, loss, crops."""

    rates: np.ndarray
    batch_size: int
    val_every: int
    loss: str
    crops: CropPlan


@dataclass(frozen=True)
class HeadTraining:
    """What came of it: the step whose head was kept, its validation DSC (NaN if none is defined), time and speed."""

    steps: int
    best_step: int
    best_val_dsc: float
    seconds: float
    crops_per_second: float


def train_head(
    segmenter: Segmenter,
    train: list[LabelledCase],
    val: list[LabelledCase],
    stream: CropStream,
    plan: HeadPlan,
    metrics: Path,
    *,
    workers: int,
    quiet: bool,
) -> HeadTraining:
    """Train the head, and what of the encoder trains with it; leave the weights with the best validation DSC in them.

    Of equal ones the earliest (see ``fitting.fit``). Every random number is keyed by seed and position, and threads
    only read: the result does not depend on ``workers``.
    ``metrics`` gets one line per step (step, loss, lr) and one per validation (step, val_dsc, at working resolution).

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    cache = make_cache(segmenter, [*train, *val], workers)
    size, steps = plan.batch_size, len(plan.rates)
    prepare = segmenter.encoder.prepare_input

    def loss_at(step: int) -> dict[str, Tensor]:
        positions = range((step - 1) * size, step * size)
        cases = [cache[index] for index in stream.cases(positions)]
        if step < steps:
            cache.ahead(stream.cases(range(step * size, (step + 1) * size)))
        crops = draw_crops(cases, positions, plan.crops)
        inputs = torch.cat([prepare(image[None], guide[None]) for image, guide in zip(crops.image, crops.guide)])
        return {"loss": LOSSES[plan.loss](segmenter(inputs), crops.classes, crops.valid)}

    def score() -> float:
        return validate(segmenter, cache, range(len(train), len(train) + len(val)))

    with contextlib.closing(cache):
        done = fit(
            segmenter,
            plan.rates,
            loss_at,
            metrics,
            device=segmenter.device,
            val_every=plan.val_every,
            validate=score if val else None,
            score=("val_dsc", "val DSC"),
            quiet=quiet,
        )
    speed = steps * size / max(done.seconds - done.validating, 1e-9)
    return HeadTraining(steps, done.best_step, done.best_score, done.seconds, speed)


def validate(segmenter: Segmenter, cache: CaseCache, indices: range) -> float:
    """Mean over cases of the DSC of whole images at working size; NaN if no case has a defined one."""
    scores = []
    for position, index in enumerate(indices):
        cache.ahead(indices[position : position + 2])
        case = cache[index]
        found = segmenter.window_probabilities(case.image, case.guide).argmax(0)
        counts = count(case.classes.long().cpu().numpy(), found.cpu().numpy(), segmenter.head.classes)
        scores.append(case_mean(dice(counts), counts))
    return summarise(scores).mean


def make_cache(segmenter: Segmenter, cases: list[LabelledCase], workers: int) -> CaseCache[LabelledImage, WorkingCase]:
    """Cases at working size on the segmenter's device."""

    def read(index: int) -> LabelledImage:
        case, _, labels = cases[index]
        full = read_case(case, labels, segmenter.encoder.dims, segmenter.settings.window)
        size = segmenter.working_size(full.classes.shape)
        return LabelledImage(resize(full.image, size), resize(full.classes[None], size, "nearest")[0], None)

    return CaseCache(
        read,
        lambda labelled: working_case(labelled, segmenter.guide, segmenter.device),
        limit=int(_MEMORY_SHARE * memory_of(segmenter.device)),
        workers=workers,
    )
