"""Embeddings looked at: which images lie next to each other, and all of them in two dimensions."""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from frepa.errors import InputError

_ROWS_AT_ONCE = 512
# t-SNE is meant for more neighbours than this many vectors have.
_FEWEST = 4


class Neighbours(NamedTuple):
    """Some images with those that are most like them.

    Attributes:
        labels: of every image looked at, None where unknown.
        rows: an image and its nearest ones of other groups each, by place.
        similarities: cosines of the same, [-1, 1]; the image with itself first.
        scores: how often, [0, 1], the nearest image of another group has the same class, and how often any image of
            another group has; {} where fewer than two classes are known.
    """

    labels: list[str | None]
    rows: list[list[int]]
    similarities: list[list[float]]
    scores: dict[str, float]


def look_at(
    vectors: np.ndarray, labels: Sequence[str | None], groups: Sequence[Hashable], *, queries: int, nearest: int
) -> Neighbours:
    """Neighbours by the cosine between vectors from which the mean of all is taken.

    Args:
        vectors: ``(n, C)`` floats.
        labels: class of each, None where unknown. groups: patient of each; neighbours are of other groups alone.
        queries: images shown, spread over the classes. nearest: neighbours of each.
    """
    unit = directions(vectors)
    numbers: dict[Hashable, int] = {}
    codes = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    rows, similarities = [], []
    for place in _spread(labels, queries):
        own = unit @ unit[place]
        others = np.flatnonzero(codes != codes[place])
        order = others[np.argsort(-own[others], kind="stable")[:nearest]]
        rows.append([place, *order.tolist()])
        similarities.append([1.0, *own[order].tolist()])
    return Neighbours(list(labels), rows, similarities, _agreement(unit, labels, codes))


def directions(vectors: np.ndarray) -> np.ndarray:
    """``(n, C)`` float64 of length 1: the vectors without their mean; zeros where nothing is left of one."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)


def _spread(labels: Sequence[str | None], count: int) -> list[int]:
    """Places of up to ``count`` images, the classes in turn, evenly spread within each."""
    members: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        members.setdefault(label or "", []).append(place)
    chosen: dict[int, None] = {}
    kinds = [members[kind] for kind in sorted(members)]
    for turn in range(min(count, len(labels))):
        own = kinds[turn % len(kinds)]
        rank, of = turn // len(kinds), -(-count // len(kinds))
        chosen[own[min(len(own) - 1, (2 * rank + 1) * len(own) // (2 * of))]] = None
    return list(chosen)


def _agreement(unit: np.ndarray, labels: Sequence[str | None], groups: np.ndarray) -> dict[str, float]:
    known = np.array([place for place, label in enumerate(labels) if label is not None], np.int64)
    names, classes = np.unique([str(labels[place]) for place in known], return_inverse=True)
    if len(names) < 2:
        return {}
    hits = tested = 0
    chance = 0.0
    for start in range(0, len(known), _ROWS_AT_ONCE):
        part = known[start : start + _ROWS_AT_ONCE]
        others = groups[part][:, None] != groups[known][None]
        has = others.any(axis=1)
        same = classes[start : start + len(part), None] == classes[None]
        nearest = np.where(others, unit[part] @ unit[known].T, -np.inf).argmax(axis=1)
        hits += int(same[np.arange(len(part)), nearest][has].sum())
        chance += float(((same & others).sum(axis=1)[has] / others.sum(axis=1)[has]).sum())
        tested += int(has.sum())
    return {"nearest of the same class": hits / tested, "by chance": chance / tested} if tested else {}


def principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """``(n, 2)`` along the two axes of largest variance, and their shares of it, [0, 1].

    The sign of each axis is such that its largest entry is positive.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    channels = centred.shape[1]
    axes, sizes = np.zeros((2, channels)), np.zeros(2)
    found = min(2, channels)
    scatter = centred.T @ centred
    values, columns = scipy.linalg.eigh(scatter, subset_by_index=[channels - found, channels - 1])
    axes[:found], sizes[:found] = columns.T[::-1], np.maximum(values[::-1], 0.0)
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    total = float(np.trace(scatter)) or 1.0
    return centred @ (axes * signs[:, None]).T, (float(sizes[0]) / total, float(sizes[1]) / total)


def check_tsne() -> None:
    """Raise InputError where scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(
            "--map tsne needs scikit-learn. Install it with pip install 'frepa[embed]', or take --map pca."
        )


def tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """``(n, 2)`` by scikit-learn's t-SNE; fewer than 4 vectors are laid along their principal axes."""
    if len(vectors) < _FEWEST:
        return principal_axes(vectors)[0]
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="random", random_state=seed).fit_transform(vectors.astype(np.float32))
