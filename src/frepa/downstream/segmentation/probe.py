"""The closed-form part of a segmentation head: ridge from frozen features to the pixels of every position.

One pass over the training images gives the features' statistics and the regression's sums; the validation images choose
the penalty, and what is added to each class before the largest is taken. Nothing is drawn at random.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from frepa.downstream.crops import CaseCache, cover
from frepa.downstream.scores import summarise
from frepa.downstream.segmentation.metrics import Counts, case_mean, dice
from frepa.downstream.segmentation.model import Segmenter
from frepa.downstream.sharing import sharing
from frepa.errors import InputError
from frepa.heads.reading import grid_channels
from frepa.heads.ridge import (
    PENALTIES,
    Ridge,
    RidgePath,
    RidgeSums,
    blocks_of,
    choose_by_leaving_out,
    neighbourhood,
    rows_of,
    solved,
)
from frepa.heads.segmenter import MOST_FEATURES, BlockMap
from frepa.heads.standardise import Moments, constant_channels

# Images of the training part the sums are kept apart for, to be left out in turn where there is no validation part.
_FOLDS = 4
# As many placements, flips and turns of the training part as give this many samples per feature, and no more pixels
# than that: on DRIVE 85 samples per feature gave what 600 did.
_SAMPLES_PER_FEATURE = 40
_PIXELS = 4e7
_MOST_VIEWS = {2: 8, 3: 4}
# Validation DSC that the images as they are have to gain, before flips and turns, which are more samples, are left out.
_PLAIN_GAIN = 0.01
# Validation pixels the choice is made on, and what is tried: probability of a class against the background.
_VAL_PIXELS = 2e7
_THRESHOLDS = np.concatenate([np.arange(0.02, 0.2, 0.01), np.arange(0.2, 0.82, 0.02), [0.85, 0.9, 0.95]])


@dataclass(frozen=True)
class ProbeFit:
    """What the closed-form fit chose, and from how much.

    penalty: of the ridge. offsets: added to the probability of each class before the largest is taken, 0 for the
    background. val_dsc: mean DSC of the validation cases it was chosen on, at working size; NaN without. positions:
    samples of the regression. features: their number of features. notes: sentences for the user.
    scale: the logit that the linear head gives to a probability of 1.
    """

    penalty: float
    offsets: tuple[float, ...]
    val_dsc: float
    positions: int
    features: int
    seconds: float
    notes: tuple[str, ...]
    scale: float


@torch.no_grad()
def fit_statistics(segmenter: Segmenter, cache: CaseCache, train: Sequence[int], *, quiet: bool = False) -> list[str]:
    """Standardise what goes into a slice transfer's blocks; returns sentences for the user.

    Raises:
        InputError: no labelled pixel in the training part.
    """
    assert segmenter.head.before is not None
    check_foreground([1, sum(len(cache[index].points) for index in train)])
    moments = Moments(len(segmenter.head.before.mean), segmenter.device)
    for index in tqdm(train, unit="case", desc="Statistics of the features", disable=quiet, leave=False):
        for planes in cover(cache[index].planes, segmenter.settings.crop, 0):
            moments.add(segmenter.read(_inputs(segmenter, [planes]))[0])
    segmenter.head.before.set(moments.mean, moments.std)
    return constant_channels([segmenter.head.before])


@torch.no_grad()
def fit_probe(
    segmenter: Segmenter,
    cache: CaseCache,
    train: Sequence[int],
    val: Sequence[int],
    *,
    augment: bool = True,
    quiet: bool = False,
) -> ProbeFit:
    """Fit the head's linear part and the statistics of its features; ``train`` and ``val`` are places in ``cache``.

    Raises:
        InputError: no labelled pixel in the training part, or images smaller than a position.
    """
    start = time.perf_counter()
    head = segmenter.head
    with sharing(None):  # not these maps, whose sums alone are needed, and which would leave no room for others
        folds, moments, foreground = _sums(segmenter, cache, train, augment=augment, by_view=bool(val), quiet=quiet)
    check_foreground(foreground.tolist())
    for layer, seen in zip(head.statistics, moments):
        layer.set(seen.mean, seen.std)
    mean, std = _on_grid(segmenter, moments)
    total = folds[0]
    for fold in folds[1:]:
        total = total.plus(fold)
    path, notes = RidgePath(total, mean, std), constant_channels(head.statistics)
    if val:
        ridges = {penalty: path.at(penalty) for penalty in PENALTIES}
        penalty, offsets, score = _choose(segmenter, cache, val, ridges, quiet=quiet)
        ridge = ridges[penalty]
        if len(folds) > 1:  # where things lie the same way in every image, flips and turns may cost more than they give
            plain = {at: solved(folds[0], at, mean, std) for at in [p for p in PENALTIES if p >= penalty][:2]}
            own, own_offsets, own_score = _choose(segmenter, cache, val, plain, quiet=quiet)
            if own_score > score + _PLAIN_GAIN:
                notes.append(
                    f"The linear part was fitted without flips and turns: {100 * own_score:.1f} % DSC on the "
                    f"validation part, and {100 * score:.1f} % with them."
                )
                penalty, offsets, score, ridge, total = own, own_offsets, own_score, plain[own], folds[0]
    else:
        penalty = choose_by_leaving_out(folds)
        ridge = path.at(penalty)
        _, offsets, _ = _choose(segmenter, cache, train, {penalty: ridge}, quiet=quiet)
        score = math.nan
    scale = head.start_from(ridge, torch.from_numpy(offsets))
    if len(head.read) < len(head.shapes):
        strides = ", ".join(str(max(shape.stride)) for shape in head.read_shapes)
        notes.append(
            f"The linear part reads {len(head.read)} of {len(head.shapes)} maps (strides {strides}): all of them would "
            f"be more than {MOST_FEATURES:,} features per position."
        )
    count_, seconds = round(total.count), time.perf_counter() - start
    return ProbeFit(penalty, tuple(offsets.tolist()), score, count_, total.features, seconds, tuple(notes), scale)


def check_foreground(pixels: Sequence[int]) -> None:
    """Raise InputError where the training part has no labelled pixel; ``pixels`` per class, background first."""
    if not any(pixels[1:]):
        raise InputError(
            "No training image has a labelled pixel: their masks are all background, and there is nothing to learn. "
            "Look at the masks of the training part (and at --mask-threshold), or divide the set otherwise (--split "
            "random, another --seed)."
        )


def _views(segmenter: Segmenter, pixels: int, features: int, *, augment: bool) -> list[int]:
    """As many views of each case as the regression needs, of ``pixels`` in all."""
    axes = segmenter.encoder.dims
    if not augment:
        return [0]
    needed = math.ceil(_SAMPLES_PER_FEATURE * features * math.prod(segmenter.head.stride) / max(pixels, 1))
    count_ = max(1, min(_MOST_VIEWS[axes], needed, int(_PIXELS // max(pixels, 1))))
    # Every flip alone and all of them together before the quarter turns.
    order = [0, 3, 5, 6, 1, 2, 4, 7] if axes == 2 else [0, 7, 11, 13]
    return order[:count_]


def _inputs(segmenter: Segmenter, planes: Sequence[Tensor]) -> Tensor:
    """Encoder inputs of windows' planes (image, guide, class, 1)."""
    prepare = segmenter.encoder.prepare_input
    return torch.cat([prepare(each[None, :-3], each[None, -3:-2]) for each in planes])


def _sums(
    segmenter: Segmenter, cache: CaseCache, train: Sequence[int], *, augment: bool, by_view: bool, quiet: bool
) -> tuple[list[RidgeSums], list[Moments], Tensor]:
    """Sums of the regression, statistics of every map, pixels per class.

    The sums are in folds of images; ``by_view``: of the images as they are, and of all their other views.
    """
    head, device = segmenter.head, segmenter.device
    features = grid_channels(head.read_shapes) * head.reach**segmenter.encoder.dims
    outputs = (head.classes - 1) * math.prod(head.stride)
    moments = [Moments(shape.channels, device) for shape in head.shapes]
    pixels = torch.zeros(head.classes, dtype=torch.int64, device=device)
    # Judged by the first few: large sets do not fit into memory, and none is read twice for this.
    sizes = [cache[index].planes[0].numel() for index in train[:4]]
    views = _views(segmenter, sum(sizes) * len(train) // len(sizes), features, augment=augment)
    kept = min(2, len(views)) if by_view else min(_FOLDS, len(train))
    folds = [RidgeSums(features, outputs, device) for _ in range(kept)]
    crop, batch = segmenter.settings.crop, segmenter.settings.batch_size
    bar = tqdm(train, unit="case", desc="Closed form", disable=quiet, leave=False)
    for number, index in enumerate(bar):
        cache.ahead(train[number : number + 2])
        case = cache[index]
        pixels += torch.bincount(case.classes.long().flatten(), minlength=head.classes)
        every = [
            (min(rank, 1) if by_view else number % len(folds), planes)
            for rank, view in enumerate(views)
            for planes in cover(case.planes, crop, view)
        ]
        for place, planes in _batches(every, batch):
            maps = segmenter.read(_inputs(segmenter, planes))
            stacked = torch.stack(planes)
            # Padding up to the encoder's multiple, and beyond a small image, is no sample.
            full = [n * step for n, step in zip(maps[-1].shape[2:], head.stride)]
            grown = [n for to, had in reversed(list(zip(full, crop))) for n in (0, to - had)]
            wanted = F.one_hot(F.pad(stacked[:, -2], grown).long(), head.classes).movedim(-1, 1)[:, 1:]
            inside = blocks_of(F.pad(stacked[:, -1:], grown), head.stride).min(1).values > 0.5
            x = rows_of(neighbourhood(head.grid(maps), head.reach))[inside]
            folds[place].add(x, blocks_of(wanted, head.stride)[inside])
            for seen, item in zip(moments, maps):
                seen.add(item)
    if not any(fold.count for fold in folds):
        raise InputError(
            f"Every training image is smaller than one position of the encoder ({' x '.join(map(str, head.stride))} "
            "pixels). Give larger images, or an encoder of smaller stride."
        )
    return [fold for fold in folds if fold.count], moments, pixels


def _batches(items: Sequence[tuple[int, Tensor]], size: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Tensors in order, up to ``size`` at a time of those that belong to the same place, and the place."""
    for place, group in itertools.groupby(items, key=lambda item: item[0]):
        tensors = [tensor for _, tensor in group]
        for at in range(0, len(tensors), size):
            yield place, tensors[at : at + size]


def _on_grid(segmenter: Segmenter, moments: Sequence[Moments]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every feature of the regression, from those of the maps' channels."""
    head = segmenter.head
    found = []
    for values in ([m.mean for m in moments], [m.std for m in moments]):
        maps = [
            value.view(1, -1, *(1,) * len(head.stride)).expand(
                1, -1, *(max(1, to // own) for own, to in zip(shape.stride, head.stride))
            )
            for value, shape in zip(values, head.shapes)
        ]
        grid = head.grid(maps).flatten()
        found.append(grid.repeat(head.reach ** len(head.stride)))
    return found[0], found[1]


@torch.no_grad()
def _choose(
    segmenter: Segmenter, cache: CaseCache, cases: Sequence[int], ridges: dict[float, Ridge], *, quiet: bool
) -> tuple[float, np.ndarray, float]:
    """Penalty and offsets with the best mean DSC over cases, and that DSC. Of equal penalties the larger."""
    head = segmenter.head
    kinds = head.classes - 1
    probe = BlockMap(grid_channels(head.read_shapes), head.stride, len(ridges) * kinds, reach=head.reach)
    probe.set(torch.cat([r.weight for r in ridges.values()], 1), torch.cat([r.bias for r in ridges.values()]))
    probe.to(segmenter.device)

    def answer(windows: Tensor) -> Tensor:
        maps = segmenter.read(windows)
        found = probe(head.grid(head.standardised(maps)).float())
        return found[(..., *(slice(0, n) for n in windows.shape[2:]))]

    truths, answers, pixels = [], [], 0
    for number, index in enumerate(tqdm(cases, unit="case", desc="Choosing", disable=quiet, leave=False)):
        case = cache[index]
        if number and pixels + case.planes[0].numel() > _VAL_PIXELS:
            break
        pixels += case.planes[0].numel()
        truths.append(case.classes.long().cpu().numpy())
        found = segmenter.over_windows(case.image, case.guide, answer, overlap=0.25).unflatten(0, (len(ridges), kinds))
        answers.append(found.half().cpu().numpy())
    best: tuple[float, np.ndarray, float] | None = None
    for place in sorted(range(len(ridges)), key=lambda at: -list(ridges)[at]):
        offsets, score = best_offsets([each[place].astype(np.float32) for each in answers], truths)
        if best is None or score > best[2] or math.isnan(best[2]):
            best = (list(ridges)[place], offsets, score)
    assert best is not None
    return best


def best_offsets(answers: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """Offsets per class, 0 for the background, with the best mean DSC over cases, and that DSC (NaN if undefined).

    ``answers``: per case the probabilities of the foreground classes ``(K - 1, *S)``, as a regression gives them;
    ``truths``: classes ``(*S)``. Each class in turn, twice, over a grid of thresholds.
    """
    kinds = len(answers[0])
    offsets = np.zeros(kinds + 1)
    score = math.nan
    for _ in range(1 if kinds == 1 else 2):
        for kind in range(1, kinds + 1):
            tried = np.stack([_scores(answer, truth, offsets, kind) for answer, truth in zip(answers, truths)])
            means = [summarise(column).mean for column in tried.T]
            if not all(math.isnan(mean) for mean in means):
                place = int(np.nanargmax(means))
                offsets[kind], score = 1 - 2 * _THRESHOLDS[place], means[place]
    return offsets, score


def _scores(answer: np.ndarray, truth: np.ndarray, offsets: np.ndarray, kind: int) -> np.ndarray:
    """DSC of a case at every threshold of one class, the other offsets as they are.

    A pixel goes to the class once its threshold is below the margin by which it wins, so that one histogram per true
    class and runner-up holds every threshold's counts.
    """
    classes = len(answer) + 1
    every = np.concatenate([1 - answer.sum(0, keepdims=True), answer]).reshape(classes, -1)
    every += offsets[:, None].astype(np.float32)
    own = every[kind] - np.float32(offsets[kind])
    every[kind] = -np.inf
    second = every.argmax(0)
    margin = every.max(0) - own  # the offset from which on the class wins
    steps = np.sort(1 - 2 * _THRESHOLDS)
    wins = np.searchsorted(steps, margin, side="left")  # index of the first offset that is enough
    flat = truth.reshape(-1)
    table = np.bincount((flat * classes + second) * (len(steps) + 1) + wins, minlength=classes**2 * (len(steps) + 1))
    table = table.reshape(classes, classes, len(steps) + 1)
    won = table[..., :-1].cumsum(-1)  # taken by the class at each offset
    kept = table.sum(-1, keepdims=True) - won
    scores = []
    for at in range(len(steps)):
        confusion = kept[..., at].copy()
        confusion[:, kind] += won[..., at].sum(1)
        both, truths, found = np.diagonal(confusion), confusion.sum(1), confusion.sum(0)
        scores.append(_case_dice(both, truths, found))
    return np.asarray(scores)[::-1]  # thresholds rise where offsets fall


def _case_dice(both: np.ndarray, truth: np.ndarray, found: np.ndarray) -> float:
    counts = Counts(both, truth, found, int(truth.sum()))
    return case_mean(dice(counts), counts)
