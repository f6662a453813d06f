"""Is one encoder better than another, beyond chance: paired tests, corrected for their number, and ranks over tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Ranks(NamedTuple):
    """Ranks of several encoders over several tasks (Demšar 2006).

    mean: of each encoder, 1 the best. statistic, p: of Friedman's test that all are alike. difference: the mean ranks
    of two encoders differ by chance as long as they differ by less (Nemenyi, 5 %). NaN where there is too little.
    """

    mean: np.ndarray
    statistic: float
    p: float
    difference: float


def holm(p: Sequence[float]) -> np.ndarray:
    """P-values corrected for their number by Holm's method, ``(n,)``; those that are NaN stay so and count nothing."""
    values = np.asarray(p, float)
    corrected = np.full(len(values), math.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * (len(order) - np.arange(len(order)))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else []
    return corrected


def wilcoxon(differences: np.ndarray) -> float:
    """P-value of Wilcoxon's signed-rank test that paired ``differences (n,)`` are symmetric about zero, two-sided.

    Pairs without difference are left out, NaN too; 1 where none is left, NaN where nothing was compared.
    """
    from scipy import stats

    known = differences[np.isfinite(differences)]
    if not known.size:
        return math.nan
    # Means of scores that are equal differ in their last digits.
    known = np.where(np.abs(known) < 1e-12, 0.0, known)
    if not known.any():
        return 1.0
    return float(stats.wilcoxon(known, zero_method="wilcox").pvalue)


def bootstrap_p(drawn: np.ndarray) -> float:
    """Two-sided p-value that a difference is zero, from the same difference over resamples ``(B,)``; NaN left out.

    Twice the share of resamples on the other side of zero; at least 2 / (B + 1), because B resamples say no more.
    """
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return math.nan
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)))


def critical_difference(encoders: int, tasks: int, alpha: float = 0.05) -> float:
    """By how much mean ranks over ``tasks`` differ by chance at most (Nemenyi; Demšar 2006, section 3.2.2)."""
    from scipy import stats

    quantile = stats.studentized_range.ppf(1 - alpha, encoders, math.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(encoders * (encoders + 1) / (6 * tasks)))


def ranks(scores: np.ndarray) -> Ranks:
    """Mean ranks of encoders ``(k,)`` from their scores ``(tasks, k)``, larger the better; equals share their ranks."""
    from scipy import stats

    tasks, encoders = scores.shape
    if not tasks or encoders < 2:
        return Ranks(np.full(encoders, math.nan), math.nan, math.nan, math.nan)
    each = stats.rankdata(-scores, axis=1)
    # Friedman's test is told for three and more; of two encoders the ranks say nothing that a paired test does not.
    alike = bool((each == each[:, :1]).all())
    statistic, p = (math.nan, math.nan) if encoders < 3 or tasks < 2 or alike else stats.friedmanchisquare(*scores.T)
    difference = critical_difference(encoders, tasks) if tasks > 1 else math.nan
    return Ranks(each.mean(0), float(statistic), float(p), difference)


def cliques(mean_ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Groups of encoders whose mean ranks do not differ beyond chance: first and last place in the order of ranks.

    Only groups of two and more, and none that lies inside another.
    """
    ordered = np.sort(np.asarray(mean_ranks, float))
    found: list[tuple[int, int]] = []
    for first in range(len(ordered)):
        last = int(np.flatnonzero(ordered - ordered[first] <= difference)[-1])
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
