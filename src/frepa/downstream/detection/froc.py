"""The free-response ROC curve of scored marks, CPM as LUNA16 defines it, and one operating point.

Nothing here knows of boxes: a mark is a score that counts as a hit on a finding or as a false positive. Scores are
fractions in [0, 1], false positives are per image, and what is not defined (no findings) is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from frepa.downstream.scores import resamples

#: False positives per image at which LUNA16 reads the sensitivity; the mean of the seven is CPM.
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_CHUNK_BYTES = 2**26


class Marks(NamedTuple):
    """The marks of one class in one image, as far as they count.

    Attributes:
        hits: ``(h,)`` the highest score on each finding that was hit.
        false_positives: ``(f,)`` scores.
        findings: all that are to be found, hit or not.
    """

    hits: np.ndarray
    false_positives: np.ndarray
    findings: int


class Froc(NamedTuple):
    """Free-response ROC curve: vertices ``(p,)`` from the strictest threshold (infinity: nothing is found) down.

    Sensitivity and false positives per image are those of all marks with a score of at least the threshold; between
    vertices both are linear.
    """

    thresholds: np.ndarray
    sensitivity: np.ndarray
    false_positives: np.ndarray


class OperatingPoint(NamedTuple):
    """Scores of all marks of at least ``threshold``; false positives are per image."""

    threshold: float
    sensitivity: float
    precision: float
    f1: float
    false_positives: float


class _Pooled(NamedTuple):
    """Marks of all images, highest first: whether hit, their image, and where each distinct score begins."""

    scores: np.ndarray
    hit: np.ndarray
    image: np.ndarray
    starts: np.ndarray


def _pooled(marks: Sequence[Marks]) -> _Pooled:
    empty = np.zeros(0)
    scores = np.concatenate([empty, *(part for item in marks for part in (item.hits, item.false_positives))])
    hit = np.concatenate([empty, *(np.repeat((1, 0), (len(m.hits), len(m.false_positives))) for m in marks)]) > 0
    image = np.repeat(np.arange(len(marks)), [len(m.hits) + len(m.false_positives) for m in marks])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    starts = np.flatnonzero(np.diff(scores, prepend=math.inf))
    return _Pooled(scores, hit[order], image[order], starts)


def _counts(pooled: _Pooled) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each distinct score as threshold, and the hits and false positives that reach it; ties come together."""
    last = np.append(pooled.starts[1:], len(pooled.scores))[: len(pooled.starts)] - 1
    return pooled.scores[pooled.starts], np.cumsum(pooled.hit)[last], np.cumsum(~pooled.hit)[last]


def froc(marks: Sequence[Marks]) -> Froc:
    """The curve of one class over images, each one entry of ``marks``, also those without findings or marks.

    Points in line with their neighbours are left out, which changes nothing between vertices.
    """
    thresholds, hits, others = _counts(_pooled(marks))
    thresholds, hits, others = np.r_[math.inf, thresholds], np.r_[0, hits], np.r_[0, others]
    if len(hits) > 2:
        turns = np.r_[True, (np.diff(hits, 2) != 0) | (np.diff(others, 2) != 0), True]
        thresholds, hits, others = thresholds[turns], hits[turns], others[turns]
    findings = sum(item.findings for item in marks)
    sensitivity = hits / findings if findings else np.full(len(hits), math.nan)
    return Froc(thresholds, sensitivity, others / max(len(marks), 1))


def sensitivity_at_rates(curve: Froc) -> np.ndarray:
    """Sensitivity ``(7,)`` at each of ``RATES``, interpolated; right of the curve's end its last value."""
    return np.interp(RATES, curve.false_positives, curve.sensitivity)


def cpm(curve: Froc) -> float:
    """Competition performance metric of LUNA16: mean sensitivity at ``RATES``."""
    return float(sensitivity_at_rates(curve).mean())


def resampled_sensitivity(marks: Sequence[Marks], groups: Sequence[str] | None = None, *, seed: int = 0) -> np.ndarray:
    """Sensitivity at ``RATES`` in each of ``RESAMPLES`` resamples of the images, ``(RESAMPLES, 7)``.

    Args:
        groups: one name per image; images of one name (a patient) are drawn together. By default each for itself.
        seed: the same seed, images and groups draw the same resamples.
    """
    pooled = _pooled(marks)
    findings = np.array([item.findings for item in marks])
    names = [str(i) for i in range(len(marks))] if groups is None else groups
    step = max(1, _CHUNK_BYTES // (8 * max(1, len(pooled.scores))))
    found = [
        _sensitivity_of_resamples(pooled, findings, weights[first : first + step])
        for weights in resamples(names, seed)
        for first in range(0, len(weights), step)
    ]
    return np.concatenate(found)


def _sensitivity_of_resamples(pooled: _Pooled, findings: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sensitivity at ``RATES`` for each row of ``weights`` ``(B, images)``: how often each image counts."""
    hits = others = np.zeros((len(weights), 1))
    if len(pooled.scores):
        here = weights[:, pooled.image]
        hits = np.cumsum(np.add.reduceat(here * pooled.hit, pooled.starts, axis=1), axis=1)
        others = np.cumsum(np.add.reduceat(here * ~pooled.hit, pooled.starts, axis=1), axis=1)
        hits, others = np.pad(hits, ((0, 0), (1, 0))), np.pad(others, ((0, 0), (1, 0)))
    rates = others / weights.sum(1, keepdims=True)
    total = (weights @ findings)[:, None]
    columns = []
    for rate in RATES:
        left = (rates <= rate).sum(1, keepdims=True) - 1
        right = np.minimum(left + 1, rates.shape[1] - 1)
        start, stop = np.take_along_axis(rates, left, 1), np.take_along_axis(rates, right, 1)
        low, high = np.take_along_axis(hits, left, 1), np.take_along_axis(hits, right, 1)
        part = np.divide(rate - start, stop - start, out=np.zeros_like(start), where=stop > start)
        columns.append(low + part * (high - low))
    together = np.concatenate(columns, axis=1)
    return np.divide(together, total, out=np.full(together.shape, math.nan), where=total > 0)


def best_f1_threshold(marks: Sequence[Marks]) -> float:
    """The threshold of the highest F1, the strictest of equals; NaN where no mark hits anything.

    To be chosen on validation images. A mark counts from the threshold on (score >= threshold). It lies midway between
    the lowest score that is to count and the next one (0 where there is none): on other images scores are a little
    lower or higher, and the lowest one itself would cut off half of what is like it.
    """
    thresholds, hits, others = _counts(_pooled(marks))
    if not hits.size or not hits[-1]:
        return math.nan
    findings = sum(item.findings for item in marks)
    best = int(np.argmax(2 * hits / (hits + others + findings)))
    below = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    return float((thresholds[best] + below) / 2)


def at_threshold(marks: Sequence[Marks], threshold: float) -> OperatingPoint:
    """Sensitivity, precision, F1 and false positives per image of the marks of at least ``threshold``.

    Precision is hit findings over hit findings and false positives.
    """
    hits = sum(int((item.hits >= threshold).sum()) for item in marks)
    others = sum(int((item.false_positives >= threshold).sum()) for item in marks)
    findings = sum(item.findings for item in marks)
    return OperatingPoint(
        float(threshold),
        _share(hits, findings),
        _share(hits, hits + others),
        _share(2 * hits, hits + others + findings),
        _share(others, len(marks)),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
