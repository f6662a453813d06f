"""How sure a score of the test cases is: its spread over resamples of the patients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

#: Resamples of the test cases.
RESAMPLES = 1000
_CHUNK_BYTES = 2**26


class Interval(NamedTuple):
    """A score, its standard deviation over resamples, and the 2.5th and 97.5th percentile of these."""

    value: float
    std: float
    low: float
    high: float


def interval(value: float, drawn: np.ndarray) -> Interval:
    """A score with its spread ``drawn (n,)`` over resamples; those in which it is not defined (NaN) are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 2:
        return Interval(value, math.nan, math.nan, math.nan)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(value, float(drawn.std(ddof=1)), float(low), float(high))


def resamples(groups: Sequence[str], seed: int) -> Iterator[np.ndarray]:
    """How often each case is in each of ``RESAMPLES`` resamples, ``(B, n)`` int64, a few at a time.

    Groups (patients) are drawn whole, with replacement, as many as there are.
    """
    _, group = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    count = int(group.max()) + 1
    draw = np.random.default_rng(seed)
    step = max(1, _CHUNK_BYTES // (8 * len(group)))
    for first in range(0, RESAMPLES, step):
        times = draw.multinomial(count, np.full(count, 1 / count), size=min(step, RESAMPLES - first))
        yield times[:, group]
