"""Overlap of a predicted and a true segmentation, per case, and its summary over cases.

All scores are fractions in [0, 1]. A score that is not defined for a case (neither mask has the class) is NaN; it is
left out of summaries, and how many were left out is reported.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from skimage.morphology import skeletonize


class Counts(NamedTuple):
    """Pixels per class ``(K,)`` int64: in both, in the truth, in the prediction; and all pixels that were looked at."""

    both: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    total: int


def count(truth: np.ndarray, prediction: np.ndarray, classes: int, inside: np.ndarray | None = None) -> Counts:
    """Count the pixels of every class.

    Args:
        truth, prediction: ``(*S)`` classes 0 to ``classes - 1``, 0 = background; 2D or 3D.
        inside: ``(*S)`` bool; pixels outside are not looked at.

    Raises:
        ValueError: the arrays differ in size.
    """
    if truth.shape != prediction.shape or (inside is not None and inside.shape != truth.shape):
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} (and field of view) differ in size")
    t, p = (truth, prediction) if inside is None else (truth[inside], prediction[inside])
    table = np.bincount(t.ravel().astype(np.int64) * classes + p.ravel(), minlength=classes**2)
    table = table.reshape(classes, classes)
    return Counts(np.diagonal(table).copy(), table.sum(1), table.sum(0), int(table.sum()))


def dice(counts: Counts) -> np.ndarray:
    """DSC = 2 |P and G| / (|P| + |G|) of every class ``(K,)``; NaN where both are empty."""
    return _ratio(2 * counts.both, counts.truth + counts.prediction)


def sensitivity(counts: Counts) -> np.ndarray:
    """Share of the true pixels that were found, per class ``(K,)``; NaN where there are none."""
    return _ratio(counts.both, counts.truth)


def specificity(counts: Counts) -> np.ndarray:
    """Share of the other pixels that were left alone, per class ``(K,)``; NaN where there are none."""
    others = counts.total - counts.truth
    return _ratio(others - (counts.prediction - counts.both), others)


def case_mean(scores: np.ndarray, counts: Counts) -> float:
    """Mean of a score over the classes that are labelled in the case, background left out.

    Where nothing is labelled but something was predicted the case counts as a miss: the mean over the predicted
    classes. NaN where neither mask has anything.
    """
    labelled = counts.truth[1:] > 0
    if not labelled.any():
        labelled = counts.prediction[1:] > 0
    chosen = scores[1:][labelled]
    chosen = chosen[np.isfinite(chosen)]
    return float(chosen.mean()) if chosen.size else math.nan


def centreline_dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """clDice of two bool masks ``(*S)`` (Shit et al., CVPR 2021); NaN where both are empty, 0 where one is.

    The harmonic mean of how much of the prediction's skeleton lies in the truth and of the truth's in the prediction.
    """
    truth, prediction = np.asarray(truth, dtype=bool), np.asarray(prediction, dtype=bool)
    if not truth.any() and not prediction.any():
        return math.nan
    if not truth.any() or not prediction.any():
        return 0.0
    true_lines, found_lines = skeletonize(truth) > 0, skeletonize(prediction) > 0
    precision = float(truth[found_lines].mean()) if found_lines.any() else 0.0
    recall = float(prediction[true_lines].mean()) if true_lines.any() else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def score_case(
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: int,
    *,
    inside: np.ndarray | None = None,
    centreline: bool = False,
) -> dict[str, float]:
    """All scores of a case.

    Returns:
        ``dsc``, ``sensitivity``, ``specificity`` (means over the labelled classes); ``dsc_fov``, ``sensitivity_fov``,
        ``specificity_fov`` where ``inside`` is given; ``cldice`` when asked for (all classes as one foreground); and
        ``dsc_1`` ... per class when there are more than two.
    """
    scores: dict[str, float] = {}
    regions = [("", None), ("_fov", inside)] if inside is not None else [("", None)]
    for suffix, region in regions:
        counts = count(truth, prediction, classes, region)
        for name, measure in (("dsc", dice), ("sensitivity", sensitivity), ("specificity", specificity)):
            values = measure(counts)
            scores[name + suffix] = case_mean(values, counts)
            if name == "dsc" and classes > 2 and not suffix:
                per_class = {f"dsc_{k}": float(values[k]) for k in range(1, classes)}
    if classes > 2:
        scores |= per_class
    if centreline:
        scores["cldice"] = centreline_dice(truth > 0, prediction > 0)
    return scores


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), math.nan), where=whole > 0)
