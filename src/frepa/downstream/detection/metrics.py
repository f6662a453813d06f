"""How well found boxes agree with the true ones: FROC and CPM, one operating point, average precision. 2D and 3D alike.

Findings and marks are counted as LUNA16 does, for every criterion of a hit. A mark is a found box. Of several marks on
one finding the highest counts and the others are ignored; a mark may hit several findings; marks that lie on ignored
findings only are dropped; all other marks are false positives, and findings without a mark stay in the denominator.

All scores are fractions in [0, 1], false positives are per image. What is not defined (a class without findings) is
NaN and left out of means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from frepa.downstream.detection.froc import (
    RATES,
    Marks,
    OperatingPoint,
    at_threshold,
    best_f1_threshold,
    froc,
    resampled_sensitivity,
    sensitivity_at_rates,
)
from frepa.downstream.scores import RESAMPLES, Summary, interval, summarise
from frepa.images.boxes import IGNORED, Boxes, Detections, centres, extents

#: The highest marks per image and class that count, in LUNA16 and in COCO.
MOST_MARKS = 100
#: Overlap from which on a found box is a hit by the criterion ``iou``.
LEAST_IOU = 0.5
# Overlaps at which average precision is taken: nnDetection's for volumes, then COCO's ten
_LEVELS = (0.1, *np.linspace(0.5, 0.95, 10))


class DetectionCase(NamedTuple):
    """One image: its true boxes, and the found ones in the same pixel coordinates."""

    truth: Boxes
    found: Detections


class Criterion(NamedTuple):
    """What makes a hit: found ``(m, 2 * dims)`` and true ``(n, 2 * dims)`` corners to ``(m, n)`` bool; and in words."""

    hits: Callable[[np.ndarray, np.ndarray], np.ndarray]
    words: str


class Outcome(NamedTuple):
    """What became of every box of an image at given thresholds.

    Attributes:
        counted: ``(m,)`` bool, found boxes that reach the threshold and do not lie on ignored findings only.
        hits: ``(m,)`` bool, those that hit a finding of their class; counted and not a hit is a false positive.
        missed: ``(n,)`` bool, true boxes that nothing hit; never an ignored one.
    """

    counted: np.ndarray
    hits: np.ndarray
    missed: np.ndarray


class TopOne(NamedTuple):
    """The best found box of each image with one finding.

    Attributes:
        iou: its overlap with the finding, 0 where nothing was found.
        centre_ratio: share of images where its centre lies in the true box.
        iou_ratio: share of images where it overlaps by ``LEAST_IOU`` or more.
    """

    iou: Summary
    centre_ratio: float
    iou_ratio: float


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes: ``(m, 2 * dims)`` and ``(n, 2 * dims)`` to ``(m, n)`` in [0, 1].

    In double precision: MONAI's ``box_iou`` reckons in single precision and adds a small number to the union, so that
    boxes which overlap by exactly a threshold fall below it.
    """
    dims = one.shape[1] // 2
    low = np.maximum(one[:, None, :dims], other[None, :, :dims])
    high = np.minimum(one[:, None, dims:], other[None, :, dims:])
    both = np.clip(high - low, 0, None).prod(-1)
    union = extents(one).prod(1)[:, None] + extents(other).prod(1) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _centre_in_box(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    dims = truth.shape[1] // 2
    middle = centres(found)[:, None]
    return np.all((middle >= truth[:, :dims]) & (middle < truth[:, dims:]), axis=-1)


def _centre_in_ellipsoid(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    offset = centres(found)[:, None] - centres(truth)
    radii = np.broadcast_to(extents(truth) / 2, offset.shape)
    scaled = np.divide(offset, radii, out=np.full(offset.shape, math.inf), where=radii > 0)
    return np.less((scaled**2).sum(-1), 1)


def _overlap(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return iou(found, truth) >= LEAST_IOU


#: A new criterion is one entry.
CRITERIA: dict[str, Criterion] = {
    "centre": Criterion(_centre_in_box, "the centre of the found box lies inside the true box"),
    "sphere": Criterion(
        _centre_in_ellipsoid,
        "the centre of the found box lies inside the sphere (ellipsoid) inscribed in the true box, as in LUNA16",
    ),
    "iou": Criterion(_overlap, f"found and true box overlap by an IoU of {LEAST_IOU} or more"),
}


def _marked(case: DetectionCase, label: int, criterion: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The class's marks (places among the found boxes), which finding each hits ``(m, n)``, and whether an ignored one.

    Marks that tie with the first one too many are all left out, as in LUNA16's script: the order of a list decides
    nothing.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion {criterion!r}: expected one of {', '.join(CRITERIA)}")
    truth, found = case
    chosen = np.flatnonzero(found.classes == label)
    if len(chosen) > MOST_MARKS:
        scores = found.scores[chosen]
        chosen = chosen[scores > np.sort(scores)[-MOST_MARKS - 1]]
    hits = CRITERIA[criterion].hits(found.corners[chosen], truth.corners)
    return chosen, hits[:, truth.classes == label], np.any(hits[:, truth.classes == IGNORED], axis=1)


def marks_of(case: DetectionCase, label: int, criterion: str) -> Marks:
    """Hits and false positives of one class in one image by LUNA16's rules.

    Args:
        criterion: one of ``CRITERIA``. ``sphere`` needs true boxes that were not clipped to the image.

    Raises:
        ValueError: the criterion is not known.
    """
    chosen, hits, ignored = _marked(case, label, criterion)
    scores = case.found.scores[chosen]
    highest = np.where(hits, scores[:, None], -math.inf).max(0, initial=-math.inf)
    return Marks(highest[hits.any(0)], scores[~hits.any(1) & ~ignored], hits.shape[1])


def best_thresholds(cases: Sequence[DetectionCase], classes: int, criterion: str) -> list[float]:
    """`best_f1_threshold` of each class."""
    return [best_f1_threshold([marks_of(case, k, criterion) for case in cases]) for k in range(classes)]


def average_precision(cases: Sequence[DetectionCase], classes: int) -> dict[str, np.ndarray]:
    """COCO's average precision of each class ``(K,)``; NaN for a class without findings.

    Boxes are matched by MONAI. Found boxes that match no finding but overlap an ignored one as much as a match asks
    for are dropped, as COCO does with crowds. At most the ``MOST_MARKS`` highest boxes per image and class.

    Returns:
        ``ap_10`` at IoU 0.1 (nnDetection's for volumes), ``ap_50`` at IoU 0.5, ``ap_50_95`` the mean over IoU 0.5,
        0.55 ... 0.95 (COCO's).
    """
    from monai.apps.detection.metrics.matching import matching_batch

    found: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(classes)]
    for truth, boxes in cases:
        real = truth.classes >= 0
        order = np.argsort(-boxes.scores, kind="stable")
        corners, labels, scores = boxes.corners[order], boxes.classes[order], boxes.scores[order]
        batch = ([corners], [labels], [scores], [truth.corners[real]], [truth.classes[real]])
        for label, item in matching_batch(iou, _LEVELS, *batch, max_detections=MOST_MARKS)[0].items():
            hit = item["dtMatches"] > 0
            ignored = np.zeros_like(hit)
            if not real.all():
                own = corners[labels == label][:MOST_MARKS]
                ignored = ~hit & (iou(own, truth.corners[~real]).max(1) >= np.array(_LEVELS)[:, None])
            found[label].append((item["dtScores"], hit, ignored, item["gtIgnore"]))
    precisions = np.full((classes, len(_LEVELS)), math.nan)
    for label, parts in enumerate(found):
        findings = sum(len(part[3]) for part in parts)
        if findings:
            scores, hit, ignored = (np.concatenate([part[i] for part in parts], axis=-1) for i in range(3))
            order = np.argsort(-scores, kind="stable")
            for level, (hits, dropped) in enumerate(zip(hit[:, order], ignored[:, order])):
                precisions[label, level] = _area_under(hits[~dropped], findings)
    return {"ap_10": precisions[:, 0], "ap_50": precisions[:, 1], "ap_50_95": precisions[:, 1:].mean(1)}


def _area_under(hits: np.ndarray, findings: int) -> float:
    """COCO's mean precision at 101 recalls, of hits and false positives ``(m,)`` bool from the highest score down.

    The precision at a recall is the highest at this or a higher recall. In double precision as COCO's own: in MONAI's
    single one a recall of 9 / 10 falls short of the step at 0.9.
    """
    so_far = np.cumsum(hits)
    precision = np.maximum.accumulate((so_far / np.arange(1, len(hits) + 1))[::-1])[::-1]
    at = np.searchsorted(so_far / findings, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[at].mean())


def top_one(cases: Sequence[DetectionCase]) -> TopOne:
    """Detection ratio and IoU of the highest found box, of any class, in each image with exactly one finding.

    Several boxes of the highest score count as their mean. Boxes whose centre lies in an ignored finding, and not in
    the true one, are left out. A missing box has an IoU of 0 and is no hit.
    """
    rows = []
    for truth, found in cases:
        real = truth.classes >= 0
        if real.sum() != 1:
            continue
        inside = _centre_in_box(found.corners, truth.corners)
        kept = inside[:, real].any(1) | ~inside[:, ~real].any(1)
        best = kept & (found.scores == found.scores[kept].max(initial=-math.inf))
        if not best.any():
            rows.append((0.0, 0.0, 0.0))
            continue
        overlaps = iou(found.corners[best], truth.corners[real])
        rows.append((overlaps.mean(), inside[best][:, real].mean(), (overlaps >= LEAST_IOU).mean()))
    overlap, centre, enough = np.asarray(rows, float).reshape(-1, 3).T
    return TopOne(summarise(overlap), _mean(centre), _mean(enough))


def outcome(case: DetectionCase, thresholds: Sequence[float], criterion: str) -> Outcome:
    """What became of every found and true box; one threshold per class, NaN = nothing is found."""
    truth, found = case
    counted, hit = np.zeros(len(found.scores), bool), np.zeros(len(found.scores), bool)
    missed = truth.classes >= 0
    for label, threshold in enumerate(thresholds):
        chosen, hits, ignored = _marked(case, label, criterion)
        above = found.scores[chosen] >= threshold
        hit[chosen] = above & hits.any(1)
        counted[chosen] = above & (hits.any(1) | ~ignored)
        missed[truth.classes == label] = ~hits[above].any(0)
    return Outcome(counted, hit, missed)


def case_scores(case: DetectionCase, thresholds: Sequence[float], criterion: str) -> dict[str, float]:
    """One image at given thresholds, all classes together.

    Returns:
        ``findings`` to be found; ``boxes`` found, those on ignored findings left out; ``hits`` and ``misses`` of
        findings; ``false_positives``; ``iou``, the mean over findings of the overlap with their best found box of the
        same class (0 where there is none; NaN without findings).
    """
    truth, found = case
    result = outcome(case, thresholds, criterion)
    real = truth.classes >= 0
    overlaps = iou(found.corners[result.counted], truth.corners[real])
    same = found.classes[result.counted][:, None] == truth.classes[real]
    findings, misses = int(real.sum()), int(result.missed.sum())
    return {
        "findings": findings,
        "boxes": int(result.counted.sum()),
        "hits": findings - misses,
        "misses": misses,
        "false_positives": int((result.counted & ~result.hits).sum()),
        "iou": _mean(np.where(same, overlaps, 0).max(0, initial=0)),
    }


def score_detections(
    cases: Sequence[DetectionCase],
    classes: Sequence[str],
    *,
    criterion: str,
    thresholds: Sequence[float],
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All scores of the test images, ready for JSON.

    Args:
        thresholds: one per class, chosen on other images; NaN = nothing is found.
        groups: one name per image (the patient), for the resamples; by default each image for itself.

    Returns:
        ``criterion``, ``images``, ``findings``; ``per_class`` by name and ``mean`` over classes, each with ``cpm`` and
        ``sensitivity_at`` by rate (`Interval` of the resamples, as dictionaries), ``sensitivity``, ``precision``,
        ``f1`` and ``false_positives`` at the threshold, ``ap_10``, ``ap_50``, ``ap_50_95``; per class also
        ``findings``, ``images`` with any, ``threshold`` and ``froc``; ``top_one``.
    """
    precision = average_precision(cases, len(classes))
    per_class: dict[str, dict[str, Any]] = {}
    values, draws = np.zeros((len(classes), len(RATES))), np.zeros((len(classes), RESAMPLES, len(RATES)))
    points: list[OperatingPoint] = []
    for k, (name, threshold) in enumerate(zip(classes, thresholds, strict=True)):
        marks = [marks_of(case, k, criterion) for case in cases]
        curve = froc(marks)
        values[k], draws[k] = sensitivity_at_rates(curve), resampled_sensitivity(marks, groups, seed=seed)
        points.append(at_threshold(marks, threshold))
        per_class[name] = {
            "findings": sum(item.findings for item in marks),
            "images": sum(item.findings > 0 for item in marks),
            **_spread(values[k], draws[k]),
            **points[k]._asdict(),
            **{key: float(found[k]) for key, found in precision.items()},
            "froc": {key: part.tolist() for key, part in curve._asdict().items()},
        }
    together = {key: _mean(np.array([getattr(p, key) for p in points])) for key in OperatingPoint._fields[1:]}
    best = top_one(cases)
    return {
        "criterion": criterion,
        "images": len(cases),
        "findings": sum(item["findings"] for item in per_class.values()),
        "mean": {
            **_spread(_column_means(values), _column_means(draws)),
            **together,
            **{key: _mean(found) for key, found in precision.items()},
        },
        "per_class": per_class,
        "top_one": {**best._asdict(), "iou": best.iou._asdict()},
    }


def _spread(values: np.ndarray, draws: np.ndarray) -> dict[str, Any]:
    """CPM and the sensitivity at each rate ``(7,)`` with their spread over resamples ``(RESAMPLES, 7)``."""
    each = {f"{rate:g}": interval(float(values[i]), draws[:, i])._asdict() for i, rate in enumerate(RATES)}
    return {"cpm": interval(float(values.mean()), draws.mean(1))._asdict(), "sensitivity_at": each}


def _column_means(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis (classes) of what is defined; NaN where nothing is."""
    known = np.isfinite(values)
    total, count = np.where(known, values, 0).sum(0), known.sum(0)
    return np.divide(total, count, out=np.full(total.shape, math.nan), where=count > 0)


def _mean(values: np.ndarray) -> float:
    return float(_column_means(np.asarray(values, float)))


def mostly_single(test: Mapping[str, Any]) -> bool:
    """Whether most test images have exactly one finding, so that the best box alone says something of the set."""
    return 2 * total(test["top_one"]["iou"]["cases"]) > test["images"]


def total(count: Any) -> int:
    """A count, or its sum over the folds; of several seeds every image is counted once."""
    if isinstance(count, Mapping):
        return round(sum(count["folds"]) if "folds" in count else count["value"])
    return count
