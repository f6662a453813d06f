"""Ridge regression in closed form from sums over any number of batches: no seed, no learning rate, one pass.

Features are standardised per channel within the solution, so the penalty weighs them alike; the intercept has none.
Memory is (features^2 + features * outputs) float64, however many samples there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from frepa.encoders.contract import per_axis
from frepa.heads.standardise import usable_std

#: Penalties tried, as shares of a standardised feature's variance (scikit-learn's ``alpha`` over samples).
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Samples whose products are taken at once: 64 MiB of float64 at 1,024 features.
_ROWS = 8192


class Ridge(NamedTuple):
    """``standardised @ weight + bias``: weight (features, outputs), bias (outputs,), float64.

    ``residual`` (outputs,) is the mean squared error over the samples it was fitted to.
    """

    weight: Tensor
    bias: Tensor
    residual: Tensor


class RidgeSums:
    """The sums that decide a ridge regression: weights, first and second moments of features and targets.

    Sums are taken about the first batch's mean, so that features with a large common part lose no digits, and in
    float64.
    """

    def __init__(self, features: int, outputs: int, device: torch.device | str = "cpu") -> None:
        self.features, self.outputs = features, outputs
        size = features + outputs
        self.count = 0.0
        self.origin: Tensor | None = None
        self.first = torch.zeros(size, dtype=torch.float64, device=device)
        self.gram = torch.zeros(features, features, dtype=torch.float64, device=device)
        self.cross = torch.zeros(features, outputs, dtype=torch.float64, device=device)
        self.squares = torch.zeros(outputs, dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """Take in samples x (N, features), y (N, outputs); ``weight`` (N,) counts them, 0 leaves one out."""
        x, y = x.detach(), y.detach()
        if weight is not None:
            kept = weight > 0
            if not bool(kept.all()):
                x, y, weight = x[kept], y[kept], weight[kept]
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            self._add(x[rows].double(), y[rows].double(), None if weight is None else weight[rows].double())

    def _add(self, x: Tensor, y: Tensor, weight: Tensor | None) -> None:
        if self.origin is None:
            self.origin = x.mean(0)
        x = x - self.origin
        heavy, heavy_y = (x, y) if weight is None else (x * weight[:, None], y * weight[:, None])
        self.count += len(x) if weight is None else float(weight.sum())
        self.first += torch.cat([heavy.sum(0), heavy_y.sum(0)])
        self.gram.addmm_(heavy.T, x)
        self.cross.addmm_(heavy.T, y)
        self.squares += (heavy_y * y).sum(0)

    def minus(self, other: RidgeSums) -> RidgeSums:
        """These sums without those of ``other``, which is a part of them: what a fold leaves for training."""
        return self._plus(other, -1.0)

    def plus(self, other: RidgeSums) -> RidgeSums:
        """The sums over both."""
        return self._plus(other, 1.0)

    def _plus(self, other: RidgeSums, sign: float) -> RidgeSums:
        found = RidgeSums(self.features, self.outputs, self.gram.device)
        if self.origin is None or other.origin is None:
            mine = self if other.origin is None else other
            for name in ("origin", "first", "gram", "cross", "squares"):
                value = getattr(mine, name)
                setattr(found, name, None if value is None else value.clone())
            found.count = mine.count
            return found
        found.origin = self.origin
        moved = other.moved(self.origin)
        found.count = self.count + sign * moved.count
        for name in ("first", "gram", "cross", "squares"):
            setattr(found, name, getattr(self, name) + sign * getattr(moved, name))
        return found

    def moved(self, origin: Tensor) -> RidgeSums:
        """The same sums taken about another point."""
        assert self.origin is not None
        found = RidgeSums(self.features, self.outputs, self.gram.device)
        step = self.origin - origin
        sums_x, sums_y = self.first[: self.features], self.first[self.features :]
        found.count, found.origin, found.squares = self.count, origin, self.squares.clone()
        found.first = torch.cat([sums_x + self.count * step, sums_y])
        both = torch.outer(sums_x, step)
        found.gram = self.gram + both + both.T + self.count * torch.outer(step, step)
        found.cross = self.cross + torch.outer(step, sums_y)
        return found

    @property
    def mean(self) -> Tensor:
        """Mean of the features, (features,) float64."""
        assert self.origin is not None
        return self.origin + self.first[: self.features] / self.count

    @property
    def std(self) -> Tensor:
        """Standard deviation of the features; 0 for one without variance."""
        offset = self.first[: self.features] / self.count
        return usable_std(self.mean, self.gram.diagonal() / self.count - offset.square())

    @property
    def target_mean(self) -> Tensor:
        """Mean of the targets, (outputs,) float64."""
        return self.first[self.features :] / self.count


class RidgePath:
    """Solutions for any penalty from one eigendecomposition of the features' correlations.

    Args:
        sums: of the training samples.
        mean, std: by which features are standardised; by default the training samples' own.
    """

    def __init__(self, sums: RidgeSums, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        found = _correlations(sums, mean, std)
        self.mean, self.std, self.centre, self.target, self.variance = found[:5]
        self.values, self.vectors = torch.linalg.eigh(found.features)
        self.values = self.values.clamp(min=0)
        self.rotated = self.vectors.T @ found.cross

    def at(self, penalty: float) -> Ridge:
        """The minimiser of mean squared error + ``penalty`` * |weight|^2 over standardised features."""
        # A direction without variance, of which rounding leaves a trace, has no weight.
        floor = self.values[-1] * 1e-13
        inverse = torch.where(self.values > floor, 1 / (self.values + penalty), 0.0)
        coordinates = inverse[:, None] * self.rotated
        weight = self.vectors @ coordinates
        explained = 2 * (coordinates * self.rotated).sum(0) - (self.values[:, None] * coordinates.square()).sum(0)
        residual = (self.variance - explained).clamp(min=0)
        return Ridge(weight, self.target - self.centre @ weight, residual)


def solved(sums: RidgeSums, penalty: float, mean: Tensor | None = None, std: Tensor | None = None) -> Ridge:
    """What `RidgePath` gives at one penalty, above 0, by a Cholesky decomposition: a tenth of its time."""
    found = _correlations(sums, mean, std)
    found.features.diagonal().add_(penalty)
    weight = torch.cholesky_solve(found.cross, torch.linalg.cholesky(found.features))
    # features @ weight is cross - penalty * weight by what was solved.
    explained = (weight * (found.cross + penalty * weight)).sum(0)
    return Ridge(weight, found.target - found.centre @ weight, (found.variance - explained).clamp(min=0))


class _Correlations(NamedTuple):
    """mean, std: of the standardisation. centre: the samples' mean in its units, zero where it is their own.

    target, variance: mean and variance of the targets. features, cross: covariance of the standardised features, and
    with the targets.
    """

    mean: Tensor
    std: Tensor
    centre: Tensor
    target: Tensor
    variance: Tensor
    features: Tensor
    cross: Tensor


def _correlations(sums: RidgeSums, mean: Tensor | None, std: Tensor | None) -> _Correlations:
    mean = sums.mean if mean is None else mean.double()
    std = sums.std if std is None else std.double()
    scale = torch.where(std > 0, 1 / std, 0.0)
    offset, target = sums.first[: sums.features] / sums.count, sums.target_mean
    features = (sums.gram / sums.count - torch.outer(offset, offset)) * torch.outer(scale, scale)
    cross = (sums.cross / sums.count - torch.outer(offset, target)) * scale[:, None]
    variance = sums.squares / sums.count - target.square()
    return _Correlations(mean, std, (sums.mean - mean) * scale, target, variance, features, cross)


def squared_error(sums: RidgeSums, ridge: Ridge, mean: Tensor, std: Tensor) -> float:
    """Mean squared error, over samples and outputs, of a ridge on the samples of ``sums``, not looked at again.

    ``mean`` and ``std`` standardise the features as in the fit.
    """
    scale = torch.where(std > 0, 1 / std, 0.0)
    own = sums.moved(mean)
    weight = ridge.weight * scale[:, None]
    sums_x, sums_y = own.first[: own.features], own.first[own.features :]
    total = own.squares - 2 * (weight * own.cross).sum(0) + (weight * (own.gram @ weight)).sum(0)
    total += ridge.bias * (2 * (sums_x @ weight) - 2 * sums_y + own.count * ridge.bias)
    return float(total.sum() / (own.count * own.outputs))


def leaving_out(folds: Sequence[RidgeSums]) -> list[RidgePath]:
    """For each fold the solutions that are fitted to all the others."""
    total = folds[0]
    for fold in folds[1:]:
        total = total.plus(fold)
    return [RidgePath(total.minus(fold)) for fold in folds]


def choose_by_leaving_out(folds: Sequence[RidgeSums], penalties: Sequence[float] = PENALTIES) -> float:
    """The penalty with the smallest squared error on folds left out, of the training part alone.

    Exact and from the sums: each fold is predicted by what is fitted to the others. Of equal ones the larger; the
    largest where there is a single fold, which cannot be left out.
    """
    if len(folds) < 2:
        return max(penalties)
    errors = dict.fromkeys(sorted(penalties, reverse=True), 0.0)
    for fold, path in zip(folds, leaving_out(folds)):
        for penalty in errors:
            errors[penalty] += fold.count * squared_error(fold, path.at(penalty), path.mean, path.std)
    return min(errors, key=lambda penalty: errors[penalty])


def neighbourhood(features: Tensor, reach: int) -> Tensor:
    """Features of every position and of those around it: (B, C, *s) to (B, C * reach^axes, *s), ``reach`` odd.

    Channels of one neighbour lie together. What is beyond the border is the border.
    """
    if reach == 1:
        return features
    side, axes = reach // 2, features.ndim - 2
    padded = F.pad(features, (side,) * (2 * axes), mode="replicate")
    shape = features.shape[2:]
    offsets = torch.cartesian_prod(*(torch.arange(reach),) * axes).tolist()
    found = []
    for offset in offsets:
        own = padded
        for axis, (first, length) in enumerate(zip(offset, shape), start=2):
            own = own.narrow(axis, first, length)
        found.append(own)
    return torch.cat(found, dim=1)


def rows_of(features: Tensor) -> Tensor:
    """(B, C, *s) to one row per position, (B * prod(s), C)."""
    return features.movedim(1, -1).flatten(0, -2)


def blocks_of(pixels: Tensor, stride: int | tuple[int, ...]) -> Tensor:
    """Pixels (B, K, *S), S multiples of the stride, to (B * positions, K * prod(stride)): each position's block."""
    axes = pixels.ndim - 2
    steps = per_axis(stride, axes)
    for axis, step in enumerate(steps):
        pixels = pixels.unflatten(2 + 2 * axis, (-1, step))
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    return pixels.permute(order).flatten(axes + 1).flatten(0, axes)


def unblocked(rows: Tensor, shape: torch.Size | tuple[int, ...], stride: int | tuple[int, ...]) -> Tensor:
    """The inverse of `blocks_of`: rows (B * positions, C * prod(stride)) to images of ``shape``."""
    batch, channels, *size = shape
    steps = per_axis(stride, len(size))
    grid = [n // step for n, step in zip(size, steps)]
    axes = len(size)
    blocks = rows.view(batch, *grid, channels, *steps)
    order = [0, axes + 1, *(place for axis in range(axes) for place in (1 + axis, axes + 2 + axis))]
    return blocks.permute(order).reshape(batch, channels, *size)
