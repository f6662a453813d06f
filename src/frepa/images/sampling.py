"""The order of training samples as a function of the position alone: exact, seekable, without memory.

Position ``p`` of a run's endless sample stream always names the same record, whatever the batch size, number of
processes or workers, and whether the run was interrupted. Only NumPy is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from frepa.errors import InputError

# Ten would do for long lists; with fewer than ten records the orders are equally likely from about twenty on
_ROUNDS = 24
#: Samples within which weighted sampling honours its weights exactly.
BLOCK = 1000


class Indexable(Protocol):
    """What an array of integers can pick from."""

    def __getitem__(self, index: Any, /) -> Any: ...


def mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: uint64 to well-mixed uint64, a bijection."""
    values = np.asarray(values, np.uint64)
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def combine(*parts: int | np.ndarray) -> np.ndarray:
    """Hash several integers (or arrays of them, broadcast) into one uint64."""
    state = np.asarray(0x9E3779B97F4A7C15, np.uint64)
    for part in parts:
        word = np.asarray(part % 2**64 if isinstance(part, int) else part).astype(np.uint64)
        with np.errstate(over="ignore"):
            state = mix((state ^ mix(word + np.uint64(0x9E3779B97F4A7C15))) + np.uint64(0xD1B54A32D192ED03))
    return state


def uniform(seed: int, positions: int | Sequence[int] | np.ndarray, stream: int | np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, one per position; they depend on seed, position and stream alone."""
    return (combine(seed, stream, np.asarray(positions)) >> np.uint64(11)) * 2.0**-53


def permute(values: np.ndarray, length: int, key: np.ndarray | int) -> np.ndarray:
    """A pseudo-random permutation of ``0 .. length - 1``, chosen by ``key``, evaluated at ``values``.

    A Feistel network over ``a x b >= length`` cells with ``a, b`` near the square root; what falls outside is sent
    through again until it falls inside, which keeps it a bijection. No table: any position costs the same.

    Args:
        values: int64 in ``[0, length)``.
        length: number of elements.
        key: uint64, one for all or one per value.
    """
    values = np.asarray(values, np.int64)
    if length <= 1:
        return np.zeros_like(values)
    a = math.isqrt(length - 1) + 1
    b = -(-length // a)
    key = np.broadcast_to(np.asarray(key, np.uint64), values.shape)
    result = _feistel(values, a, b, key)
    outside = np.flatnonzero(result >= length)
    while outside.size:
        result.flat[outside] = _feistel(result.flat[outside], a, b, key.flat[outside])
        outside = outside[result.flat[outside] >= length]
    return result


def _feistel(values: np.ndarray, a: int, b: int, key: np.ndarray) -> np.ndarray:
    left, right = values // b, values % b
    for turn in range(_ROUNDS):
        source, cells = (right, a) if turn % 2 == 0 else (left, b)
        with np.errstate(over="ignore"):
            word = key + np.uint64(turn + 1) * np.uint64(0x9E3779B97F4A7C15) + source.astype(np.uint64)
            shift = (mix(mix(word) + key) % np.uint64(cells)).astype(np.int64)
        if turn % 2 == 0:
            left = (left + shift) % a
        else:
            right = (right + shift) % b
    return left * b + right


class Stream(Protocol):
    """Anything that names a record for each position of a run; `SampleStream` is one."""

    @property
    def length(self) -> int:
        """Number of records it chooses from."""

    def at(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Records at ``positions``: int64 of the same shape."""


class SampleStream:
    """Which record each position of a run's sample stream names.

    Without weights, every ``length`` positions are an epoch that visits each record once, in an order of its own.

    With ``groups`` and ``weights`` (modalities, usually), every ``block`` positions hold each group exactly as often as
    its weight says, rounded by largest remainder, in shuffled order; within a group every record is visited once
    before any is visited again.

    Args:
        length: number of records.
        seed: another seed is another order.
        groups: ``(length,)`` integer codes, or None.
        weights: share of each code, any positive scale; 0 leaves a group out. Needs ``groups`` or ``members``.
        members: instead of ``groups``: records sorted by code, then by number, and how many each code has. Anything
            that NumPy integers can index will do, such as a column mapped from disk, which takes no memory of its own.
        block: positions within which the shares are exact.
        names: of the groups, for messages.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        groups: np.ndarray | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
        members: tuple[Indexable, np.ndarray] | None = None,
        block: int = BLOCK,
        names: Sequence[str] | None = None,
    ) -> None:
        if length < 1:
            raise ValueError("a sample stream needs at least one record")
        if weights is None and (groups is not None or members is not None):
            raise ValueError("groups or members need weights")
        self.length, self.seed, self.block = int(length), int(seed), int(block)
        self.weighted = weights is not None
        if weights is not None:
            if members is None:
                if groups is None:
                    raise ValueError("weights need groups or members")
                if len(groups) != length:
                    raise ValueError(f"{len(groups)} group codes for {length} records")
                members = sorted_by_code(groups, len(weights))
            self._members: Indexable
            self._members, counts = members
            if len(counts) > len(weights):
                raise ValueError(f"{len(counts)} groups but {len(weights)} weights")
            if counts.sum() != length:
                raise ValueError(f"{counts.sum()} members for {length} records")
            self.quotas = _quotas(np.asarray(weights, np.float64), counts, self.block, names)
            self._ends = np.cumsum(self.quotas)
            self._counts = counts
            self._firsts = np.cumsum(counts) - counts

    def at(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Records at ``positions`` (any non-negative integers, any order): int64 of the same shape."""
        positions = np.asarray(positions, np.int64)
        if self.weighted:
            return self._weighted(positions)
        return permute(positions % self.length, self.length, combine(self.seed, 0, positions // self.length))

    def epoch(self, position: int) -> int:
        """How many times as many samples as there are records lie before ``position``."""
        return position // self.length

    def _weighted(self, positions: np.ndarray) -> np.ndarray:
        block, slot = positions // self.block, positions % self.block
        slot = permute(slot, self.block, combine(self.seed, 1, block))
        group = np.searchsorted(self._ends, slot, side="right")
        quota = self.quotas[group]
        use = block * quota + slot - (self._ends[group] - quota)
        result = np.empty(positions.shape, np.int64)
        for code in np.unique(group):
            mine = group == code
            count = int(self._counts[code])
            key = combine(self.seed, 2 + int(code), use[mine] // count)
            result[mine] = self._members[self._firsts[code] + permute(use[mine] % count, count, key)]
        return result


def sorted_by_code(codes: np.ndarray, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """Record numbers sorted by code, then by number (int32 if it suffices), and ``(kinds,)`` how many each has."""
    kind = np.int32 if len(codes) < 2**31 else np.int64
    return np.argsort(codes, kind="stable").astype(kind), np.bincount(codes, minlength=kinds)


def _quotas(weights: np.ndarray, counts: np.ndarray, block: int, names: Sequence[str] | None = None) -> np.ndarray:
    """Samples of each group per block: largest remainder, so they sum to ``block``."""

    def named(group: np.integer) -> str:
        return f"group {int(group)}" if names is None else names[int(group)]

    if not np.all(np.isfinite(weights)) or weights.min() < 0 or weights.sum() <= 0:
        raise InputError(f"The sampling weights {weights.tolist()} must be 0 or more, and not all 0.")
    empty = np.flatnonzero((weights > 0) & (counts == 0))
    if empty.size:
        raise InputError(f"There is a sampling weight for {named(empty[0])}, which has no image to train on.")
    exact = weights / weights.sum() * block
    quotas = np.floor(exact).astype(np.int64)
    short = block - int(quotas.sum())
    quotas[np.argsort(-(exact - quotas), kind="stable")[:short]] += 1
    lost = np.flatnonzero((weights > 0) & (quotas == 0))
    if lost.size:
        raise InputError(
            f"The sampling weight {weights[lost[0]]:g} of {named(lost[0])} is less than one image in {block}: "
            "raise it, or set it to 0 to leave it out."
        )
    return quotas
