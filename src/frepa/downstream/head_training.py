"""Training of a segmentation head on a frozen encoder: the loop, on one page."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from frepa.downstream.case_reading import LabelledImage, read_case
from frepa.downstream.crops import CaseCache, CropPlan, CropStream, WorkingCase, draw_crops, working_case
from frepa.downstream.devices import deterministic, memory_of
from frepa.downstream.metrics import case_mean, count, dice, summarise
from frepa.downstream.run_folder import append_json_line
from frepa.downstream.segmentation_data import LabelledCase
from frepa.downstream.segmentation_loss import LOSSES
from frepa.downstream.segmenter import Segmenter
from frepa.images.geometry import resize

_LOG_EVERY = 10
# Cases kept ready, as a share of the memory of the device they are kept on.
_MEMORY_SHARE = 0.25


class TrainingDiverged(RuntimeError):
    """The loss became infinite or not a number."""

    plain = True  # the command line shows the sentence, not a traceback


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

    Of equal ones the earliest. Every random number is keyed by seed and position, and threads only read: the result
    does not depend on ``workers``.
    ``metrics`` gets one line per step (step, loss, lr) and one per validation (step, val_dsc, at working resolution).

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    optimizer = torch.optim.Adam(segmenter.trained_parameters(), lr=float(plan.rates[0]))
    cache = make_cache(segmenter, [*train, *val], workers)
    size, steps = plan.batch_size, len(plan.rates)
    pending: list[tuple[int, Tensor]] = []
    best_step, best_dsc = steps, -math.inf
    best_head: dict[str, Tensor] | None = None
    validating, shown = 0.0, {}
    start = time.perf_counter()
    bar = tqdm(total=steps, unit="step", desc="Training the head", disable=quiet, dynamic_ncols=True)
    with bar, contextlib.closing(cache), deterministic(segmenter.device):
        for step in range(1, steps + 1):
            positions = range((step - 1) * size, step * size)
            cases = [cache[index] for index in stream.cases(positions)]
            if step < steps:
                cache.ahead(stream.cases(range(step * size, (step + 1) * size)))
            crops = draw_crops(cases, positions, plan.crops)
            prepare = segmenter.encoder.prepare_input
            inputs = torch.cat([prepare(image[None], guide[None]) for image, guide in zip(crops.image, crops.guide)])
            for group in optimizer.param_groups:
                group["lr"] = float(plan.rates[step - 1])
            segmenter.train()
            loss = LOSSES[plan.loss](segmenter(inputs), crops.classes, crops.valid)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            pending.append((step, loss.detach()))
            if step % _LOG_EVERY == 0 or step == steps:
                shown["loss"] = f"{_log(pending, plan.rates, metrics):.3f}"
            if val and (step % plan.val_every == 0 or step == steps):
                since = time.perf_counter()
                dsc = validate(segmenter, cache, range(len(train), len(train) + len(val)))
                append_json_line(metrics, {"step": step, "val_dsc": dsc})
                shown["val DSC"] = f"{100 * dsc:.2f} %"
                # Strictly better only: of equal heads the earliest stays. Copies, since training goes on in place.
                if dsc > best_dsc:
                    best_step, best_dsc = step, dsc
                    best_head = segmenter.trained_state()
                validating += time.perf_counter() - since
            bar.set_postfix(shown, refresh=False)
            bar.update()
    if best_head is not None:
        segmenter.load_trained_state(best_head)
    segmenter.eval()
    seconds = time.perf_counter() - start
    speed = steps * size / max(seconds - validating, 1e-9)
    return HeadTraining(steps, best_step, best_dsc if best_head is not None else math.nan, seconds, speed)


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


def _log(pending: list[tuple[int, Tensor]], rates: np.ndarray, metrics: Path) -> float:
    """Bring the losses to the host, all at once, and write them; returns the last."""
    losses = torch.stack([loss for _, loss in pending]).tolist()
    for (step, _), loss in zip(pending, losses):
        if not math.isfinite(loss):
            raise TrainingDiverged(f"The loss is {loss} at step {step}. Try a lower --lr, or --precision fp32.")
        append_json_line(metrics, {"step": step, "loss": loss, "lr": float(rates[step - 1])})
    pending.clear()
    return losses[-1]
