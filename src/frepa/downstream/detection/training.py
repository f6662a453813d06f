"""Training of a detection head on a frozen encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frepa.downstream.crops import CaseCache, CropPlan, CropStream, cover
from frepa.downstream.detection.crops import WorkingImage, draw_finding_crops, working_image
from frepa.downstream.detection.loss import detection_loss
from frepa.downstream.detection.metrics import DetectionCase, average_precision
from frepa.downstream.detection.model import Detector
from frepa.downstream.detection.reading import Reading
from frepa.downstream.fitting import affordable, fit
from frepa.downstream.segmentation.metrics import summarise
from frepa.images.boxes import Boxes
from frepa.images.geometry import resize
from frepa.machine import memory_of

# Images kept ready, as a share of the memory of the device they are kept on.
_MEMORY_SHARE = 0.25
#: The average precision that chooses the head, by the number of axes: at IoU 0.5, and nnDetection's 0.1 for volumes.
VALIDATION_AP = {2: "ap_50", 3: "ap_10"}


@dataclass(frozen=True)
class DetectorPlan:
    """The numbers that decide the result: rate of every step, crops per step, steps per validation, crops.

    ``val_every`` None is as often as a tenth of the training's time allows.
    """

    rates: np.ndarray
    batch_size: int
    val_every: int | None
    crops: CropPlan


@dataclass(frozen=True)
class DetectorTraining:
    """What came of it: the step whose head was kept, its validation AP (NaN if none is defined), time and speed.

    ``validating`` of the ``seconds`` went into validations, on ``val_cases`` images; ``notes`` are for the user.
    """

    steps: int
    best_step: int
    best_val_ap: float
    seconds: float
    crops_per_second: float
    validating: float = 0.0
    val_cases: int = 0
    notes: tuple[str, ...] = ()


def train_detector(
    detector: Detector,
    reading: Reading,
    stream: CropStream,
    plan: DetectorPlan,
    metrics: Path,
    *,
    fold: int | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> DetectorTraining:
    """Train the head, and what of the encoder trains with it; leave the weights with the best validation AP in them.

    Of equal ones the earliest (see ``fitting.fit``). Every random number is keyed by seed and position, and threads
    only read: the result does not depend on ``workers``.
    ``metrics`` gets one line per step (step, loss, class, giou, l1, lr) and one per validation (step, val_ap: average
    precision at an IoU of 0.5 in 2D and 0.1 in 3D, at working resolution), with the fold where there are any.

    Args:
        detector: encoder and fresh head, on the device.
        reading: images and findings; ``stream`` numbers the training part's rows.
        stream, plan: which crops in which order, and the rest.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    train, val = reading.data.rows("train"), reading.data.rows("val")
    cache = make_cache(detector, reading, np.concatenate([train, val]), workers)
    size, steps = plan.batch_size, len(plan.rates)
    prepare = detector.encoder.prepare_input

    def loss_at(step: int) -> dict[str, Tensor]:
        positions = range((step - 1) * size, step * size)
        drawn = {at: cache[index] for at, index in zip(positions, stream.cases(positions))}
        if step < steps:
            cache.ahead(stream.cases(range(step * size, (step + 1) * size)))
        drawn = {at: item for at, item in drawn.items() if not item.broken}
        if not drawn:  # nothing to learn from
            nothing = torch.stack([parameter.sum() for parameter in detector.trained_parameters()]).sum() * 0
            return dict.fromkeys(("loss", "class", "giou", "l1"), nothing)
        crops = draw_finding_crops(list(drawn.values()), list(drawn), plan.crops)
        inputs = torch.cat([prepare(image[None], guide[None]) for image, guide in zip(crops.image, crops.guide)])
        return detection_loss(detector.head, detector(inputs), crops.targets)

    def windows() -> Iterator[Tensor]:
        for index in range(len(train)):
            cache.ahead(range(index, min(index + 2, len(train))))
            item = cache[index]
            for planes in () if item.broken else cover(item.planes, plan.crops.size, 0):
                yield prepare(planes[None, :-1], planes[None, -1:])

    with contextlib.closing(cache):
        notes = detector.standardise_by(windows())
        val_every, looked = plan.val_every, list(range(len(val)))
        if val_every is None and len(val):
            sizes = [reading.data.shapes[row] for row in val]
            counts = [detector.window_count(detector.working_size(shape)) for shape in sizes]
            val_every, looked = affordable(steps, size, counts)
        places = [len(train) + place for place in looked]
        done = fit(
            detector,
            plan.rates,
            loss_at,
            metrics,
            device=detector.device,
            val_every=val_every or steps,
            validate=(lambda: validate(detector, cache, places)) if places else None,
            score=("val_ap", "val AP"),
            label="Training the head" if fold is None else f"Fold {fold}",
            extra={} if fold is None else {"fold": fold},
            quiet=quiet,
        )
    speed = steps * size / max(done.seconds - done.validating, 1e-9)
    return DetectorTraining(
        steps, done.best_step, done.best_score, done.seconds, speed, done.validating, len(places), tuple(notes)
    )


def validate(detector: Detector, cache: CaseCache[Any, WorkingImage], indices: Sequence[int]) -> float:
    """Mean over classes of the average precision of whole images at working size; NaN if there is no finding."""
    cases = []
    for position, index in enumerate(indices):
        cache.ahead(indices[position : position + 2])
        item = cache[index]
        if item.broken:
            continue
        cases.append(DetectionCase(item.boxes, detector.detect_working(item.image, item.guide)))
    precision = average_precision(cases, detector.head.classes)[VALIDATION_AP[detector.encoder.dims]]
    return summarise(precision).mean


def make_cache(
    detector: Detector, reading: Reading, rows: Sequence[int] | np.ndarray, workers: int
) -> CaseCache[tuple[np.ndarray, Boxes] | None, WorkingImage]:
    """Images of ``rows`` at working size on the detector's device, numbered as in ``rows``."""

    def read(index: int) -> tuple[np.ndarray, Boxes] | None:
        item = reading(int(rows[index]))
        if item is None:
            return None
        size = tuple(item.image.shape[1:])
        inner = detector.working_size(size)
        corners = item.boxes.corners * np.tile(np.divide(inner, size), 2)
        return resize(item.image, inner), Boxes(corners, item.boxes.classes)

    def finish(both: tuple[np.ndarray, Boxes] | None) -> WorkingImage:
        if both is None:
            return WorkingImage.of_broken(detector.encoder.dims)
        return working_image(*both, detector.guide, detector.device)

    return CaseCache(read, finish, limit=int(_MEMORY_SHARE * memory_of(detector.device)), workers=workers)
