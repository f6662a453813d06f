from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score

from frepa.downstream.classification.metrics import (
    accuracy,
    auc_per_class,
    bootstrap,
    confusion,
    macro_auc,
)
from frepa.downstream.scores import RESAMPLES


def cases(n: int = 60, classes: int = 4, several: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + classes)
    # One decimal: many ties, which count half.
    probabilities = rng.dirichlet(np.ones(classes), n).round(1)
    if several:
        return probabilities, (rng.random((n, classes)) < 0.4).astype(np.uint8)
    return probabilities, np.eye(classes, dtype=np.uint8)[rng.integers(0, classes, n)]


@pytest.mark.parametrize("classes", [2, 4])
def test_one_class_per_case_against_scikit_learn(classes: int) -> None:
    probabilities, targets = cases(classes=classes)
    assert macro_auc(probabilities, targets) == pytest.approx(roc_auc_score(targets, probabilities))
    areas = roc_auc_score(targets, probabilities, average=None)
    assert auc_per_class(probabilities, targets) == pytest.approx(areas)
    found, true = probabilities.argmax(1), targets.argmax(1)
    assert accuracy(probabilities, targets) == pytest.approx(accuracy_score(true, found))
    np.testing.assert_array_equal(confusion(probabilities, targets), confusion_matrix(true, found))


def test_several_classes_per_case_against_scikit_learn() -> None:
    probabilities, targets = cases(several=True)
    assert macro_auc(probabilities, targets) == pytest.approx(roc_auc_score(targets, probabilities))
    ours = accuracy(probabilities, targets, several=True)
    assert ours == pytest.approx(accuracy_score(targets.ravel(), (probabilities > 0.5).ravel()))


def test_auc_is_the_share_of_pairs_in_order() -> None:
    probabilities, targets = cases(25, 3)
    for k in range(3):
        high, low = probabilities[targets[:, k] == 1, k], probabilities[targets[:, k] == 0, k]
        pairs = (high[:, None] > low).mean() + (high[:, None] == low).mean() / 2
        assert auc_per_class(probabilities, targets)[k] == pytest.approx(pairs)


def test_a_class_that_is_not_tested_is_left_out_of_the_mean() -> None:
    probabilities, targets = cases(classes=3)
    only = targets[:, 2] == 0
    areas = auc_per_class(probabilities[only], targets[only])
    assert math.isnan(areas[2])
    assert macro_auc(probabilities[only], targets[only]) == pytest.approx(areas[:2].mean())
    assert math.isnan(macro_auc(probabilities[:1], targets[:1]))


def test_spread_of_accuracy_is_the_binomial_one() -> None:
    """Over resamples of n independent cases the accuracy has the standard deviation sqrt(p (1 - p) / n)."""
    n = 400
    right = np.arange(n) < 320
    targets = np.eye(2, dtype=np.uint8)[np.arange(n) % 2]
    probabilities = np.where(right[:, None], targets, 1 - targets) * 0.8 + 0.1
    found = bootstrap(probabilities, targets, [str(i) for i in range(n)], seed=3)
    expected = math.sqrt(0.8 * 0.2 / n)
    assert found["acc"].value == 0.8
    # The standard deviation of a standard deviation over 1000 draws is about 2.2 % of it.
    assert found["acc"].std == pytest.approx(expected, rel=0.1)
    assert found["acc"].low == pytest.approx(0.8 - 1.96 * expected, abs=0.006)
    assert found["acc"].high == pytest.approx(0.8 + 1.96 * expected, abs=0.006)
    # Twice the same case of each patient adds nothing.
    twice = bootstrap(np.tile(probabilities, (2, 1)), np.tile(targets, (2, 1)), [str(i) for i in range(n)] * 2, seed=3)
    assert twice["acc"].std == pytest.approx(found["acc"].std)
    assert RESAMPLES == 1000


def test_resampled_auc_is_that_of_the_repeated_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    from frepa.downstream.classification import metrics as module

    probabilities, targets = cases(30, 3)
    weights = np.random.default_rng(0).integers(0, 3, (5, 30))
    monkeypatch.setattr(module, "resamples", lambda groups, seed: iter([weights]))
    found = bootstrap(probabilities, targets, ["x"] * 30)
    areas = [macro_auc(probabilities.repeat(row, axis=0), targets.repeat(row, axis=0)) for row in weights]
    assert found["auc"].std == pytest.approx(np.std(areas, ddof=1))
    assert found["auc"].value == macro_auc(probabilities, targets)
