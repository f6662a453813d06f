"""Accuracy and area under the ROC curve of predicted classes, and how sure they are.

All scores are fractions in [0, 1]. What is not defined (a class that no case, or every case, is of) is NaN, and left
out of means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from frepa.downstream.scores import Interval, interval, mean_of_known, resamples


def accuracy(probabilities: np.ndarray, targets: np.ndarray, *, several: bool = False) -> float:
    """Share of right answers.

    Args:
        probabilities: ``(n, K)``, any range.
        targets: ``(n, K)`` of 0 and 1; one 1 per row unless ``several``.
        several: count every class of every case as an answer, yes above 0.5; otherwise the most probable class is the
            answer, the first of equals.
    """
    return float(_right(probabilities, targets, several).mean())


def auc_per_class(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class against the rest ``(K,)``; ties count half (Mann-Whitney)."""
    ones = np.ones((1, len(targets)), np.int64)
    return np.array([_weighted_auc(p, t, ones)[0] for p, t in zip(probabilities.T, targets.T)])


def macro_auc(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean of ``auc_per_class`` over the classes it is defined for: macro, one versus rest."""
    return _mean(auc_per_class(probabilities, targets))


def macro_auc_of(probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`macro_auc` where every case counts as often as ``weights (B, n)`` says; ``(B,)``, NaN where not defined."""
    return mean_of_known(np.stack([_weighted_auc(p, t, weights) for p, t in zip(probabilities.T, targets.T)]))


def confusion(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cases ``(K, K)`` int64 by true class (rows) and most probable class (columns); one class per case."""
    classes = targets.shape[1]
    pairs = targets.argmax(1).astype(np.int64) * classes + probabilities.argmax(1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def bootstrap(
    probabilities: np.ndarray, targets: np.ndarray, groups: Sequence[str], *, several: bool = False, seed: int = 0
) -> dict[str, Interval]:
    """``acc`` and ``auc`` with their spread over resamples of the test groups (patients), drawn with replacement.

    Resamples in which a score is not defined are left out of its spread.
    """
    right = _right(probabilities, targets, several).reshape(len(targets), -1).mean(1)
    found: dict[str, list[np.ndarray]] = {"acc": [], "auc": []}
    for weights in resamples(groups, seed):
        found["acc"].append(weights @ right / weights.sum(1))
        found["auc"].append(macro_auc_of(probabilities, targets, weights))
    values = {
        "acc": accuracy(probabilities, targets, several=several),
        "auc": macro_auc(probabilities, targets),
    }
    return {name: interval(values[name], np.concatenate(drawn)) for name, drawn in found.items()}


def _weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P(score of a positive > of a negative) for each row of ``weights`` ``(B, n)``: how often each case counts."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    here = weights[:, order]
    true = positive[order].astype(bool)
    hits = np.add.reduceat(here * true, starts, axis=1).astype(float)
    others = np.add.reduceat(here * ~true, starts, axis=1).astype(float)
    below = np.cumsum(others, axis=1) - others
    pairs = hits.sum(1) * others.sum(1)
    return np.divide((hits * (below + others / 2)).sum(1), pairs, out=np.full(len(pairs), math.nan), where=pairs > 0)


def _right(probabilities: np.ndarray, targets: np.ndarray, several: bool) -> np.ndarray:
    if several:
        return (probabilities > 0.5) == targets.astype(bool)
    return probabilities.argmax(1) == targets.argmax(1)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan
