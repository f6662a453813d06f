"""Logistic regression on frozen embeddings: convex, solved to convergence, no seed and no learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

#: Penalties tried: of mean log loss + penalty / 2 * |weight|^2 over standardised features (1 / (C * samples) of
#: scikit-learn's C).
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_FOLDS = 4
# Steps of L-BFGS until the gradient is below its bound; a convex problem needs far fewer.
_MOST_STEPS = 5000
_GRADIENT = 1e-7


class Logistic(NamedTuple):
    """``x @ weight + bias``, float64: weight (features, classes), bias (classes,)."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Scores (N, classes) of features (N, features)."""
        return x @ self.weight + self.bias


def fit_logistic(
    x: np.ndarray, targets: np.ndarray, penalty: float, *, several: bool, start: Logistic | None = None
) -> Logistic:
    """Minimise mean log loss + ``penalty`` / 2 * |weight|^2; the intercept has no penalty.

    Args:
        x: (N, features) float64, standardised.
        targets: (N, classes) of 0 and 1: one 1 per row, or any number where ``several``.
        penalty: above 0.
        several: classes do not exclude each other: one sigmoid each instead of a softmax over them.
        start: where to begin; the minimum is the same.

    Raises:
        RuntimeError: L-BFGS did not converge.
    """
    x, targets = np.asarray(x, np.float64), np.asarray(targets, np.float64)
    count, width, classes = len(x), x.shape[1], targets.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: width * classes].reshape(width, classes), flat[width * classes :]
        scores = x @ weight + bias
        if several:
            value = (np.logaddexp(0, scores) - targets * scores).sum()
            slope = expit(scores) - targets
        else:
            value = (logsumexp(scores, axis=1) - (targets * scores).sum(1)).sum()
            slope = softmax(scores, axis=1) - targets
        slope /= count
        gradient = np.concatenate([(x.T @ slope + penalty * weight).ravel(), slope.sum(0)])
        return value / count + penalty / 2 * float((weight**2).sum()), gradient

    first = np.zeros((width + 1) * classes)
    if start is not None:
        first = np.concatenate([start.weight.ravel(), start.bias])
    options = {"maxiter": _MOST_STEPS, "maxfun": 2 * _MOST_STEPS, "gtol": _GRADIENT, "ftol": 0.0, "maxcor": 20}
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options=options)
    # At the bound of float64 the line search may find nothing lower: that is converged too.
    if np.abs(found.jac).max() > 1e-4:
        raise RuntimeError(f"logistic regression did not converge: {found.message}")
    weight, bias = found.x[: width * classes].reshape(width, classes), found.x[width * classes :]
    if not several:
        bias = bias - bias.mean()  # the loss does not see a common shift
    return Logistic(weight, bias)


def log_loss(logits: np.ndarray, targets: np.ndarray, *, several: bool) -> float:
    """Mean over the rows of the log loss, summed over classes where ``several``."""
    if several:
        return float((np.logaddexp(0, logits) - targets * logits).sum(1).mean())
    return float((logsumexp(logits, axis=1) - (targets * logits).sum(1)).mean())


def choose_logistic(
    x: np.ndarray,
    targets: np.ndarray,
    val: tuple[np.ndarray, np.ndarray] | None,
    *,
    several: bool,
    penalties: Sequence[float] = PENALTIES,
) -> tuple[Logistic, float]:
    """The fit to all of ``x`` with the penalty of the smallest log loss on ``val``, and that penalty.

    Without a validation part, or with one of fewer samples than classes (or than four), folds of the training part take
    its place: every fourth sample of each class is left out in turn. Of equal penalties the larger.
    """
    ranked = sorted(penalties, reverse=True)
    splits: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    if val is not None and len(val[0]) >= max(4, targets.shape[1]):
        splits.append((x, targets, *val))
    else:
        fold = _folds(targets)
        for left in (fold == number for number in range(_FOLDS)):
            if left.any() and not left.all():
                splits.append((x[~left], targets[~left], x[left], targets[left]))
    errors = np.zeros(len(ranked))
    model: Logistic | None = None
    for kept, known, seen, truth in splits:
        for place, penalty in enumerate(ranked):
            model = fit_logistic(kept, known, penalty, several=several, start=model)
            errors[place] += len(seen) * log_loss(model.logits(seen), truth, several=several)
    best = int(errors.argmin())
    return fit_logistic(x, targets, ranked[best], several=several, start=model), ranked[best]


def _folds(targets: np.ndarray) -> np.ndarray:
    """Fold of every sample: each combination of classes is dealt out in turn, in order."""
    fold = np.zeros(len(targets), np.int64)
    _, kind = np.unique(targets, axis=0, return_inverse=True)
    for value in np.unique(kind):
        rows = np.flatnonzero(kind.ravel() == value)
        fold[rows] = np.arange(len(rows)) % _FOLDS
    return fold
