"""A fresh detector for a set, the plan by which it is trained, and the training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frepa.downstream.crops import CaseCache, CropPlan, CropStream, cover
from frepa.downstream.detection.crops import WorkingImage, draw_finding_crops, working_image
from frepa.downstream.detection.data import DetectionData, Reading
from frepa.downstream.detection.loss import detection_loss
from frepa.downstream.detection.metrics import CRITERIA, DetectionCase, average_precision
from frepa.downstream.detection.model import DetectionSettings, Detector, whole_cells
from frepa.downstream.fitting import Validation, affordable, fit, planned_steps
from frepa.downstream.options import FitOptions, check_least
from frepa.downstream.resuming import HeadState
from frepa.downstream.scores import summarise
from frepa.downstream.windowed import WindowOptions, crop_sides, fitted_crop
from frepa.encoders.contract import Encoder
from frepa.errors import InputError, nearest
from frepa.heads.detector import DetectionHead, grid_step
from frepa.images.boxes import Boxes, extents
from frepa.images.geometry import placement, resize
from frepa.machine import autocast_dtype, memory_of

# Images kept ready, as a share of the memory of the device they are kept on.
_MEMORY_SHARE = 0.25
#: The average precision that chooses the head, by the number of axes: at IoU 0.5, and nnDetection's 0.1 for volumes.
VALIDATION_AP = {2: "ap_50", 3: "ap_10"}
_DEFAULT_CROP = {2: 512, 3: 96}
_DEFAULT_NMS = {2: 0.5, 3: 0.2}
# A volume shows few findings among many cells: at the rate of images boxes of nodules had an IoU of 56 instead of 60 %
# after 400 steps, and images at the rate of volumes a CPM of 73 instead of 76 (docs/results/detection.md).
_DEFAULT_LR = {2: 2e-3, 3: 5e-4}
# Cells are made for the smaller findings: a tenth of them is smaller still.
_SMALL = 10


@dataclass(frozen=True, kw_only=True)
class DetectionOptions(WindowOptions):
    """What ``frepa detect`` is told.

    Attributes:
        criterion: what makes a box a hit; None is the data's own.
        nms_iou: of two boxes of a class that overlap by more only the better one stays; None is the default.
        max_boxes: the most boxes kept per image.
    """

    criterion: str | None
    nms_iou: float | None
    max_boxes: int

    def check(self) -> None:
        """Raise InputError for values out of range."""
        super().check()
        if self.criterion is not None and self.criterion not in CRITERIA:
            raise InputError(f"--criterion {self.criterion}: not known. {nearest(self.criterion, CRITERIA)}")
        if self.nms_iou is not None and not 0 <= self.nms_iou <= 1:
            raise InputError(f"--nms-iou {self.nms_iou}: expected an overlap from 0 to 1.")
        check_least(1, max_boxes=self.max_boxes)

    def fit_of(self, dims: int) -> FitOptions:
        """As the user said it; the rate is the default for images or for volumes where nobody did."""
        return self.fit if self.fit.lr is not None else replace(self.fit, lr=_DEFAULT_LR[dims])


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
    marks: Mapping[str, int] | None = None,
    states: HeadState | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> DetectorTraining:
    """Train the head, and what of the encoder trains with it; leave the weights with the best validation AP in them.

    Of equal ones the earliest (see ``fitting.fit``). Every random number is keyed by seed and position, and threads
    only read: the result does not depend on ``workers``.
    ``metrics`` gets one line per step (step, loss, class, giou, l1, lr) and one per validation (step, val_ap: average
    precision at an IoU of 0.5 in 2D and 0.1 in 3D, at working resolution), with the marks.

    Args:
        detector: encoder and fresh head, on the device.
        reading: images and findings; ``stream`` numbers the training part's rows.
        stream, plan: which crops in which order, and the rest.
        marks: stand in every line of ``metrics``: fold and seed, where there are several heads.
        states: where the state is kept between steps.

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

        def score() -> Validation:
            precision = validate(detector, cache, places)
            return Validation((precision,), {"val_ap": precision})

        done = fit(
            detector,
            plan.rates,
            loss_at,
            metrics,
            val_every=val_every or steps,
            validate=score if places else None,
            marks=marks,
            states=states,
            quiet=quiet,
        )
    speed = steps * size / max(done.seconds - done.validating, 1e-9)
    best = done.scores.get("val_ap", math.nan)
    return DetectorTraining(
        steps, done.best_step, best, done.seconds, speed, done.validating, len(places), tuple(notes)
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


def build_detector(
    encoder: Encoder, data: DetectionData, options: DetectionOptions, seed: int, device: torch.device
) -> Detector:
    """Encoder and a fresh head on ``device``; its grid and typical box are those of the training part's findings."""
    dims = encoder.dims
    side = options.data.image_size
    sizes = [size if side is None else placement(size, (side,) * dims).inner for size in data.shapes]
    found = _extents(data, data.rows("train").tolist(), sizes)
    small = np.percentile(found, _SMALL, axis=0)
    if options.fit.augment:  # quarter turns exchange the last two axes
        small[-2:] = small[-2:].min()
    step = grid_step(encoder.stride, small.tolist(), dims)
    asked = crop_sides(options.crop_size or _DEFAULT_CROP[dims], dims)
    crop = fitted_crop(asked, sizes, encoder.size_multiple, dims)
    settings = DetectionSettings(
        crop=whole_cells(crop, step, encoder.size_multiple),
        image_size=side,
        window=options.data.window,
        overlap=options.overlap,
        batch_size=options.batch_size,
        nms_iou=options.nms_iou if options.nms_iou is not None else _DEFAULT_NMS[dims],
        max_boxes=options.max_boxes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the head's initial weights depend on the seed alone
        head = DetectionHead(
            encoder.channels,
            encoder.stride,
            len(data.classes),
            dims,
            step=step,
            extent=np.exp(np.log(np.maximum(found, 1e-3)).mean(0)).tolist(),
            before=encoder.frozen_part.channels if encoder.stacks else None,
        )
    autocast = autocast_dtype(options.run.precision, device)
    return Detector(encoder, head, settings, data.classes, autocast=autocast).to(device)


def cut_findings(detector: Detector, data: DetectionData) -> Iterable[str]:
    """A sentence where findings are larger than a window: of these the detector never sees a whole one."""
    found = _extents(data, range(len(data.records)), [detector.working_size(shape) for shape in data.shapes])
    larger = np.any(found > detector.settings.crop, axis=1)
    if larger.any():
        crop = " x ".join(map(str, detector.settings.crop))
        largest = " x ".join(f"{n:.0f}" for n in found.max(0))
        yield (
            f"{larger.sum():,} of {len(found):,} findings are larger than a window of {crop} px (largest: {largest})"
            ", so that no window shows them whole. Give a larger --crop-size, or a smaller --image-size."
        )


def _extents(data: DetectionData, rows: Iterable[int], sizes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Extents ``(n, dims)`` of the findings of these rows, in pixels of working sizes."""
    own = []
    for row in rows:
        boxes = data.boxes[row]
        own.append(extents(boxes.corners[boxes.classes >= 0]) * np.divide(sizes[row], data.shapes[row]))
    return np.concatenate(own)


def plan_training(
    detector: Detector, data: DetectionData, options: DetectionOptions, seed: int
) -> tuple[CropStream, DetectorPlan]:
    """Which crops in which order, and the learning rates. An epoch is as many crops as cover the images once."""
    crop = detector.settings.crop
    sizes = [detector.working_size(data.shapes[row]) for row in data.rows("train").tolist()]
    stream = CropStream(sizes, crop, seed)
    detector.check_batch(options.batch_size)
    rates = planned_steps(options.fit_of(detector.encoder.dims), stream.length, options.batch_size)
    crops = CropPlan(crop, seed, options.foreground, bool(options.fit.augment))
    return stream, DetectorPlan(rates, options.batch_size, options.fit.val_every, crops)
