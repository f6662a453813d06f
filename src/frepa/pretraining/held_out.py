"""A few images kept out of training, without a list of all the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frepa.images.sampling import SampleStream


def held_out_indices(length: int, count: int, seed: int) -> np.ndarray:
    """``min(count, length)`` distinct indices into a source of ``length`` images, sorted, int64; keyed by ``seed``."""
    generator = np.random.default_rng([seed, 0x76616C])
    if count >= length:
        return np.arange(length)
    chosen: set[int] = set()
    while len(chosen) < count:  # count is small: no permutation of millions for eight of them
        chosen.add(int(generator.integers(length)))
    return np.array(sorted(chosen), dtype=np.int64)


class WithoutHeldOut:
    """A stream over ``length - len(held_out)`` samples, mapped past the held-out ones.

    With the k-th held-out index ``h_k`` (sorted), the j-th kept image is ``j + #{k : h_k - k <= j}``: a binary search
    per position and no table as long as the source.
    """

    def __init__(self, stream: SampleStream, held_out: np.ndarray) -> None:
        self.stream = stream
        self.length = stream.length + len(held_out)  # records it points into
        self._thresholds = np.asarray(held_out, dtype=np.int64) - np.arange(len(held_out))

    def at(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Indices into the source at positions of the run, int64, same shape."""
        kept = self.stream.at(positions)
        return kept + np.searchsorted(self._thresholds, kept, side="right")
