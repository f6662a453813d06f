"""Neighbours and maps of embeddings, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from frepa.analysis.neighbours import directions, look_at, principal_axes, tsne


def test_neighbours_are_those_of_scikit_learn() -> None:
    vectors = np.random.default_rng(0).normal(3, 1, (60, 12)).astype(np.float32)
    found = look_at(vectors, [None] * 60, range(60), queries=60, nearest=4)
    model = NearestNeighbors(n_neighbors=5, metric="cosine").fit(vectors - vectors.mean(0))
    distances, places = model.kneighbors(vectors - vectors.mean(0))
    order = [row[0] for row in found.rows]
    assert sorted(order) == list(range(60))
    np.testing.assert_array_equal(found.rows, places[order])
    np.testing.assert_allclose(1 - np.array(found.similarities), distances[order], atol=1e-6)
    assert found.scores == {}


def test_neighbours_are_of_other_patients() -> None:
    """Two images of each patient that are nearly the same, and classes that patients have."""
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(20), 2)
    classes = [None if patient == 19 else "ab"[patient % 2] for patient in patients]
    vectors = rng.normal(0, 1, (20, 6))[patients] + rng.normal(0, 0.01, (40, 6))
    found = look_at(vectors, classes, patients.tolist(), queries=6, nearest=3)
    for row in found.rows:
        assert len(row) == 4
        assert patients[row[0]] not in patients[row[1:]]
    # Classes in turn, unknown ones first
    assert [classes[row[0]] for row in found.rows] == [None, "a", "b", None, "a", "b"]
    unit = directions(vectors)
    right, chance = [], []
    for i in np.flatnonzero(patients < 19):
        others = [j for j in range(38) if patients[j] != patients[i]]
        best = max(others, key=lambda j: float(unit[i] @ unit[j]))
        right.append(classes[best] == classes[i])
        chance.append(np.mean([classes[j] == classes[i] for j in others]))
    assert found.scores["nearest of the same class"] == pytest.approx(np.mean(right))
    assert found.scores["by chance"] == pytest.approx(np.mean(chance))


def test_nothing_can_be_said_where_nothing_differs() -> None:
    found = look_at(np.ones((5, 3)), ["a", "b"] * 2 + ["a"], [0] * 5, queries=2, nearest=3)
    assert found.rows == [[0], [1]] or all(len(row) == 1 for row in found.rows)
    assert found.scores == {}
    points, share = principal_axes(np.ones((5, 3)))
    assert not points.any()
    assert share == (0.0, 0.0)


@pytest.mark.parametrize("shape", [(50, 8), (5, 40), (30, 1)])
def test_principal_axes_are_those_of_scikit_learn(shape) -> None:
    vectors = np.random.default_rng(2).normal(0, 1, shape) * np.linspace(3, 1, shape[1]) + 7
    points, share = principal_axes(vectors)
    model = PCA(min(2, shape[1])).fit(vectors)
    known = model.transform(vectors)
    for axis in range(known.shape[1]):
        sign = np.sign(points[:, axis] @ known[:, axis])
        np.testing.assert_allclose(points[:, axis], sign * known[:, axis], atol=1e-8)
        assert share[axis] == pytest.approx(model.explained_variance_ratio_[axis])
    if shape[1] == 1:
        assert not points[:, 1].any()


def test_two_clouds_stay_apart_in_the_plane() -> None:
    rng = np.random.default_rng(3)
    vectors = np.concatenate([rng.normal(0, 1, (20, 10)), rng.normal(20, 1, (20, 10))])
    points = tsne(vectors, seed=0)
    np.testing.assert_array_equal(points, tsne(vectors, seed=0))
    _, nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points)
    assert ((nearest[:, 1] < 20) == (np.arange(40) < 20)).all()
    assert tsne(vectors[:2], seed=0).shape == (2, 2)
