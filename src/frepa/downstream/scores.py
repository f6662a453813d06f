"""Scores of cases and of heads brought together: means, standard deviations, and how sure a score is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

#: Delta degrees of freedom of every standard deviation: the spread of cases seen as a sample of all cases.
DDOF = 1
#: Resamples of the test cases.
RESAMPLES = 1000
_CHUNK_BYTES = 2**26


class Summary(NamedTuple):
    """Mean and standard deviation (ddof = 1) over ``cases`` cases; ``skipped`` more had no defined score."""

    mean: float
    std: float
    cases: int
    skipped: int


class Interval(NamedTuple):
    """A score, its standard deviation over resamples, and the 2.5th and 97.5th percentile of these."""

    value: float
    std: float
    low: float
    high: float


def summarise(values: Iterable[float]) -> Summary:
    """Mean and standard deviation of the values that are defined; NaN where there are too few."""
    every = np.asarray(list(values), dtype=float)
    known = every[np.isfinite(every)]
    mean = float(known.mean()) if known.size else math.nan
    std = float(known.std(ddof=DDOF)) if known.size > DDOF else math.nan
    return Summary(mean, std, int(known.size), int(every.size - known.size))


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of ``(k, n)`` of what is defined, ``(n,)``; NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), math.nan)


def summarise_cases(cases: Iterable[Mapping[str, float]]) -> dict[str, Summary]:
    """Summary of every score that occurs in any of the cases."""
    rows = list(cases)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: summarise(row.get(name, math.nan) for row in rows) for name in names}


def over_heads(values: Sequence[float], folds: Sequence[int | None], seeds: Sequence[int]) -> dict[str, Any]:
    """One score of several heads, each trained with another fold left out, another seed, or both.

    Args:
        values: one per head; NaN where it is not defined.
        folds: what each head was tested on; None where there are no folds.
        seeds: what each head was trained with.

    Returns:
        ``value``, the mean over heads, and ``std``: over folds, of the means over seeds, where there are folds, else
        over seeds. ``folds`` and ``seeds``, the mean of each, as far as there are several; of both also ``std_seeds``.
    """
    scores: dict[str, Any] = {"value": summarise(values).mean}
    of_folds, of_seeds = (_means(values, keys) for keys in (folds, seeds))
    scores["std"] = summarise(of_seeds if folds[0] is None else of_folds).std
    if folds[0] is not None:
        scores["folds"] = of_folds
    if len(of_seeds) > 1:
        scores["seeds"] = of_seeds
        if folds[0] is not None:
            scores["std_seeds"] = summarise(of_seeds).std
    return scores


def _means(values: Sequence[float], keys: Sequence[Any]) -> list[float]:
    """Mean of the values of each key, keys in order of appearance; a single value stays as it is."""
    groups: dict[Any, list[float]] = {}
    for value, key in zip(values, keys):
        groups.setdefault(key, []).append(value)
    return [own[0] if len(own) == 1 else summarise(own).mean for own in groups.values()]


def interval(value: float, drawn: np.ndarray) -> Interval:
    """A score with its spread ``drawn (n,)`` over resamples; those in which it is not defined (NaN) are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 2:
        return Interval(value, math.nan, math.nan, math.nan)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(value, float(drawn.std(ddof=1)), float(low), float(high))


def resamples(groups: Sequence[str], seed: int, times: int = RESAMPLES) -> Iterator[np.ndarray]:
    """How often each case is in each of ``times`` resamples, ``(B, n)`` int64, a few at a time.

    Groups (patients) are drawn whole, with replacement, as many as there are.
    """
    # Numbered as they come, not by name: the same patients go by other names in a store
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(str(name), len(numbers)) for name in groups], np.int64)
    count = int(group.max()) + 1
    draw = np.random.default_rng(seed)
    step = max(1, _CHUNK_BYTES // (8 * len(group)))
    for first in range(0, times, step):
        drawn = draw.multinomial(count, np.full(count, 1 / count), size=min(step, times - first))
        yield drawn[:, group]
