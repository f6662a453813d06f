"""A fresh segmenter for a set, the plan by which it is trained, and the training."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from frepa.datasets.reading import LabelledImage, read_case
from frepa.downstream.crops import CaseCache, CropPlan, CropStream, WorkingCase, working_case
from frepa.downstream.fitting import Validation, affordable, fit, planned_steps
from frepa.downstream.resuming import HeadState, digest
from frepa.downstream.scores import summarise
from frepa.downstream.segmentation.baselines import Baselines, fit_baselines
from frepa.downstream.segmentation.data import LabelledCase, SegmentationData
from frepa.downstream.segmentation.loss import LOSSES
from frepa.downstream.segmentation.metrics import case_mean, count, dice
from frepa.downstream.segmentation.model import Segmenter, build_head
from frepa.downstream.segmentation.pool import CropPool
from frepa.downstream.segmentation.probe import ProbeFit, fit_probe, fit_statistics
from frepa.downstream.sharing import shared
from frepa.downstream.windowed import WindowOptions, WindowSettings, crop_sides, fitted_crop
from frepa.encoders.contract import Encoder
from frepa.errors import InputError, nearest
from frepa.heads.reading import check_features, default_features
from frepa.heads.segmenter import HEADS
from frepa.images.geometry import resize
from frepa.machine import autocast_dtype, memory_of

# Cases kept ready, as a share of the memory of the device they are kept on.
_MEMORY_SHARE = 0.25
# Frozen maps of the validation cases' windows kept between validations, likewise.
_MAPS_SHARE = 0.1
# Share of a window that its neighbour covers too, while training chooses among heads; the test has the run's own.
_VAL_OVERLAP = 0.25


_DEFAULT_CROP = {2: 256, 3: 96}
# Share of the images that fit into a default window along each axis.
_FITTED = 0.9
# Share of the overlap of two training masks that has to be left under flips and turns for these to be drawn: the
# hippocampus has 0.22, and vessels, nuclei, blood cells, skin lesions and nodules 0.87 to 1.
_TURNED = 0.5
# Crops of a step, and windows per forward pass at prediction, where nothing is asked for.
_CROPS, _WINDOWS = 2, {2: 8, 3: 2}


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions(WindowOptions):
    """What ``frepa segment`` is told.

    Attributes:
        head: one of ``heads.segmenter.HEADS``; features: of ``heads.reading.FEATURES``, None is the encoder's default;
            reach: positions per axis, 1 or 3, that its linear part reads.
        loss: by name.
        cldice: score the centrelines too.
    """

    head: str
    features: str | None
    reach: int
    loss: str
    cldice: bool

    def check(self) -> None:
        """Raise InputError for values out of range."""
        super().check()
        if self.features is not None:
            check_features(self.features)
        if self.head not in HEADS:
            raise InputError(f"--head {self.head}: not known. {nearest(self.head, HEADS)}")
        if self.head == "linear" and self.fit.tunes:
            raise InputError(
                f"--train {self.fit.train}: --head linear is solved in closed form from what a frozen encoder makes of "
                "the images, and takes no step in which an encoder could learn. Take --head conv, which starts from it."
            )
        if self.reach not in (1, 3):
            raise InputError(f"--reach {self.reach}: expected 1 or 3 positions per axis.")
        if self.loss not in LOSSES:
            raise InputError(f"--loss {self.loss}: not known. {nearest(self.loss, LOSSES)}")


@dataclass(frozen=True)
class HeadPlan:
    """The numbers that decide the result: rate of every step, crops per step, steps per validation, loss, crops.

    ``val_every`` None is as often as a tenth of the training's time allows. ``crops.augment`` is what may be done where
    ``decide``: the training masks may speak against it.
    """

    rates: np.ndarray
    batch_size: int
    val_every: int | None
    loss: str
    crops: CropPlan
    decide: bool = False


@dataclass(frozen=True)
class HeadTraining:
    """What came of it: the step whose head was kept, its validation DSC (NaN if none is defined), time and speed.

    Step 0 is the head as the closed form left it. ``probe`` is what that chose; None for a slice transfer, whose blocks
    train. ``augment``: with flips and turns. ``validating`` of the ``seconds`` went into validations, on ``val_cases``
    cases.
    """

    steps: int
    best_step: int
    best_val_dsc: float
    seconds: float
    crops_per_second: float
    validating: float = 0.0
    val_cases: int = 0
    encoded_once: bool = False
    probe: ProbeFit | None = None
    augment: bool = True
    notes: tuple[str, ...] = ()


def train_head(
    segmenter: Segmenter,
    train: list[LabelledCase],
    val: list[LabelledCase],
    stream: CropStream,
    plan: HeadPlan,
    metrics: Path,
    *,
    marks: Mapping[str, int] | None = None,
    states: HeadState | None = None,
    workers: int,
    quiet: bool,
) -> tuple[HeadTraining, Baselines]:
    """Train the head, and what of the encoder trains with it; leave the weights with the best validation DSC in them.

    The linear part is solved in closed form first (see ``probe.fit_probe``), and a linear head is that alone. Of equal
    heads the earliest stays (see ``fitting.fit``). Every random number is keyed by seed and position, and threads only
    read: the result does not depend on ``workers``.
    ``metrics`` gets one line per step (step, loss, lr) and one per validation (step, val_dsc, at working resolution),
    with the marks: fold and seed, where there are several heads.

    Returns:
        What came of it, and the baselines of the same training part.

    Raises:
        InputError: the training part has no labelled pixel.
        TrainingDiverged: the loss is not finite.
    """
    places = range(len(train)), range(len(train), len(train) + len(val))
    with contextlib.closing(make_cache(segmenter, [*train, *val], workers)) as cache:
        guide, classes = segmenter.encoder.guide, segmenter.head.classes
        baselines = shared(
            lambda: ("baselines", digest(train), segmenter.settings, classes, guide),
            lambda: fit_baselines(cache, places[0], classes, guide),
            lambda made: 0 if made.atlas is None else made.atlas.nbytes,
        )
        plan, decided = _oriented(plan, baselines)
        if segmenter.head.before is not None:
            probe, notes = None, tuple(fit_statistics(segmenter, cache, places[0], quiet=quiet))
        else:
            probe = _closed_form(segmenter, cache, train, val, augment=plan.crops.augment, quiet=quiet)
            notes = probe.notes
        if segmenter.head.kind == "linear" and probe is not None:
            training = HeadTraining(0, 0, probe.val_dsc, probe.seconds, 0.0, val_cases=len(val))
        else:
            training = _train(segmenter, cache, places[1], stream, plan, metrics, marks, states, quiet=quiet)
    return replace(training, probe=probe, augment=plan.crops.augment, notes=(*decided, *notes)), baselines


def _oriented(plan: HeadPlan, baselines: Baselines) -> tuple[HeadPlan, tuple[str, ...]]:
    """The plan without flips and turns where things lie the same way in every image, and a sentence that says so."""
    if not (plan.decide and plan.crops.augment and baselines.turned < _TURNED):
        return plan, ()
    told = (
        f"Trained without flips and turns: things lie the same way in every image, and of the overlap of two training "
        f"masks {100 * baselines.turned:.0f} % is left where one is flipped or turned. --augment has them all the same."
    )
    return replace(plan, crops=replace(plan.crops, augment=False)), (told,)


def _closed_form(
    segmenter: Segmenter,
    cache: CaseCache,
    train: list[LabelledCase],
    val: list[LabelledCase],
    *,
    augment: bool,
    quiet: bool,
) -> ProbeFit:
    """Fit the head's linear part, or take it over from another head of a study: it is the same whatever the seed."""
    head, start = segmenter.head, time.perf_counter()
    places = range(len(train)), range(len(train), len(train) + len(val))

    def fitted() -> tuple[ProbeFit, dict[str, Tensor]]:
        return fit_probe(segmenter, cache, *places, augment=augment, quiet=quiet), head.linear_state()

    def key() -> tuple:
        what = (segmenter.features, head.reach, head.classes, str(segmenter.autocast), augment)
        return "closed form", digest(train, val), segmenter.settings, *what

    probe, state = shared(key, fitted, lambda made: sum(item.nbytes for item in made[1].values()))
    head.load_state_dict({**head.state_dict(), **state})
    if head.overruled:
        head.soften(probe.scale)
    return replace(probe, seconds=time.perf_counter() - start)


def _train(
    segmenter: Segmenter,
    cache: CaseCache,
    val: range,
    stream: CropStream,
    plan: HeadPlan,
    metrics: Path,
    marks: Mapping[str, int] | None,
    states: HeadState | None,
    *,
    quiet: bool,
) -> HeadTraining:
    size, steps = plan.batch_size, len(plan.rates)
    pool = CropPool(segmenter, cache, stream, plan.crops, total=steps * size)
    val_every, looked = plan.val_every, list(range(len(val)))
    if val_every is None and len(val):
        windows = [segmenter.window_count(tuple(cache[index].planes.shape[1:]), _VAL_OVERLAP) for index in val]
        val_every, looked = affordable(steps, size, windows)
    cases = [val[place] for place in looked]
    seen: dict[int, list[list[Tensor]]] = {}

    def loss_at(step: int) -> dict[str, Tensor]:
        maps, classes, valid = pool.batch(range((step - 1) * size, step * size), following=step < steps)
        logits = segmenter.answer(maps, tuple(classes.shape[1:]))
        return {"loss": LOSSES[plan.loss](logits, classes, valid)}

    def score() -> Validation:
        dsc = validate(segmenter, cache, cases, seen)
        return Validation((dsc,), {"val_dsc": dsc})

    done = fit(
        segmenter,
        plan.rates,
        loss_at,
        metrics,
        val_every=val_every or steps,
        validate=score if cases else None,
        marks=marks,
        from_start=True,
        states=states,
        quiet=quiet,
    )
    return HeadTraining(
        steps,
        done.best_step,
        done.scores.get("val_dsc", math.nan),
        done.seconds,
        steps * size / max(done.seconds - done.validating, 1e-9),
        validating=done.validating,
        val_cases=len(cases),
        encoded_once=pool.size is not None,
    )


def build_segmenter(
    encoder: Encoder, data: SegmentationData, options: SegmentationOptions, seed: int, device: torch.device
) -> Segmenter:
    """Encoder and a fresh head on ``device``; the head's weights depend on the seed alone."""
    asked = crop_sides(options.crop_size or _DEFAULT_CROP[encoder.dims], encoder.dims)
    # Of stacks that are thin but for a few, windows as deep as the deepest would be padding for the most part.
    needed_by = _FITTED if options.crop_size is None and options.run.feature_cache is None else 1.0
    settings = WindowSettings(
        crop=asked,
        image_size=options.data.image_size,
        window=options.data.window,
        overlap=options.overlap,
        batch_size=options.fit.batch_size or _WINDOWS[encoder.dims],
    )
    kind, features = options.head, options.features or default_features(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = build_head(encoder, data.classes, kind=kind, features=features, reach=options.reach)
    labels = data.labels[data.sets[0].name]
    whole = Segmenter(encoder, head, settings, labels, features=features)
    sizes = [whole.working_size(size) for size in data.sizes.values()]
    crop = fitted_crop(asked, sizes, encoder.size_multiple, encoder.dims, needed_by=needed_by)
    settings = replace(settings, crop=crop)
    autocast = autocast_dtype(options.run.precision, device)
    return Segmenter(encoder, head, settings, labels, features=features, autocast=autocast).to(device)


def plan_training(
    segmenter: Segmenter, data: SegmentationData, options: SegmentationOptions, seed: int
) -> tuple[CropStream, HeadPlan]:
    """Which crops in which order, and the learning rates. An epoch is as many crops as cover the images once."""
    crop = segmenter.settings.crop
    sizes = [segmenter.working_size(data.sizes[item.case.image]) for item in data.part("train")]
    stream = CropStream(sizes, crop, seed)
    size = options.fit.batch_size or _CROPS
    segmenter.check_batch(size)
    rates = planned_steps(options.fit, stream.length, size)
    augment = options.fit.augment
    crops = CropPlan(crop, seed, options.foreground, augment is not False)
    return stream, HeadPlan(rates, size, options.fit.val_every, options.loss, crops, decide=augment is None)


def validate(
    segmenter: Segmenter,
    cache: CaseCache,
    indices: Sequence[int],
    seen: dict[int, list[list[Tensor]]] | None = None,
) -> float:
    """Mean over cases of the DSC of whole images at working size; NaN if no case has a defined one.

    ``seen`` keeps the frozen maps of every case's windows for the next time, as far as memory goes.
    """
    scores = []
    for position, index in enumerate(indices):
        cache.ahead(indices[position : position + 2])
        case = cache[index]
        answer = segmenter if seen is None or segmenter.tuning else _remembering(segmenter, seen, index)
        found = segmenter.over_windows(case.image, case.guide, answer, overlap=_VAL_OVERLAP).argmax(0)
        counts = count(case.classes.long().cpu().numpy(), found.cpu().numpy(), segmenter.head.classes)
        scores.append(case_mean(dice(counts), counts))
    return summarise(scores).mean


def _remembering(segmenter: Segmenter, seen: dict[int, list[list[Tensor]]], index: int) -> Callable[[Tensor], Tensor]:
    """The segmenter's answer to the windows of one case, in the order in which they always come."""
    known, kept = seen.get(index), list[list[Tensor]]()
    limit = _MAPS_SHARE * memory_of(segmenter.device)
    used = sum(item.nbytes for case in seen.values() for maps in case for item in maps)
    turn = iter(known or ())

    def answer(windows: Tensor) -> Tensor:
        nonlocal used
        maps = next(turn, None)
        if maps is None:
            maps = segmenter.read(windows)
            used += sum(item.nbytes for item in maps)
            if known is None and used < limit:
                kept.append(maps)
                seen[index] = kept
        return segmenter.answer(maps, tuple(windows.shape[2:]))

    return answer


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
