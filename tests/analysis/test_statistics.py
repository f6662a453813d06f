"""Tests and ranks against SciPy, tabulated values, and counting by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from frepa.analysis.statistics import bootstrap_p, cliques, critical_difference, holm, ranks, wilcoxon


def test_holm_by_hand():
    """Holm (1979): p sorted, times 4, 3, 2, 1, never falling, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    found = holm([0.01, math.nan, 0.02])
    assert found[[0, 2]] == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])
    assert len(holm([])) == 0


def test_holm_refuses_what_stepping_down_refuses():
    """At every level the same hypotheses as the procedure's own words: reject while p is below alpha / those left."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.1, 6)
        corrected = holm(p)
        for alpha in (0.01, 0.05, 0.1):
            rejected = set()
            for left, place in zip(range(6, 0, -1), np.argsort(p)):
                if p[place] > alpha / left:
                    break
                rejected.add(int(place))
            assert rejected == set(np.flatnonzero(corrected <= alpha).tolist())


def test_wilcoxon_counts_every_sign():
    """Exact for few pairs: the share of all sign patterns that are as extreme."""
    differences = np.array([0.3, -0.1, 0.7, 0.5, 0.2, 0.9, -0.4])
    size = stats.rankdata(np.abs(differences))
    middle = size.sum() / 2
    seen = abs(size[differences > 0].sum() - middle)
    every = [
        abs(sum(r for r, sign in zip(size, signs) if sign) - middle)
        for signs in itertools.product((False, True), repeat=len(size))
    ]
    assert wilcoxon(differences) == pytest.approx(np.mean(np.array(every) >= seen - 1e-9))
    assert wilcoxon(np.append(differences, [math.nan, 1e-16])) == pytest.approx(wilcoxon(differences))
    assert wilcoxon(np.zeros(5)) == 1.0
    assert math.isnan(wilcoxon(np.array([math.nan])))


def test_bootstrap_p_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(1)
    drawn = rng.normal(2.0, 1.0, 200_000)  # a difference two standard errors from zero
    assert bootstrap_p(drawn) == pytest.approx(2 * stats.norm.sf(2), rel=0.02)
    assert bootstrap_p(-drawn) == bootstrap_p(drawn)
    assert bootstrap_p(np.ones(999)) == pytest.approx(2 / 1000)
    assert bootstrap_p(np.zeros(9)) == 1.0


# Two-tailed Nemenyi test at 5 %, Demšar (2006), table 5
@pytest.mark.parametrize(
    ("encoders", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (8, 3.031), (10, 3.164)]
)
def test_critical_difference_of_the_table(encoders, quantile):
    expected = quantile * math.sqrt(encoders * (encoders + 1) / (6 * 14))
    assert critical_difference(encoders, 14) == pytest.approx(expected, abs=0.001)


def test_ranks_and_friedman_by_the_formula():
    scores = np.random.default_rng(2).normal(size=(9, 4)) + np.array([0, 0.3, 0.6, 0.9])
    found = ranks(scores)
    each = np.array([[1 + (row > value).sum() for value in row] for row in scores])
    assert found.mean == pytest.approx(each.mean(0))
    tasks, encoders = scores.shape
    chi = 12 * tasks / (encoders * (encoders + 1)) * ((each.mean(0) ** 2).sum() - encoders * (encoders + 1) ** 2 / 4)
    assert found.statistic == pytest.approx(chi)
    assert found.p == pytest.approx(stats.chi2.sf(chi, encoders - 1))


def test_equal_scores_share_their_ranks():
    assert ranks(np.array([[0.5, 0.5, 0.1], [0.9, 0.2, 0.2]])).mean == pytest.approx([1.25, 2.0, 2.75])
    assert math.isnan(ranks(np.ones((3, 4))).p)  # nothing to tell apart
    assert np.isnan(ranks(np.zeros((0, 2))).mean).all()


def test_cliques_are_the_longest_groups():
    """Mean ranks 1, 1.5, 2.4, 4 with a difference of 1: the first two, then the next two by pairs."""
    assert cliques([4, 1, 2.4, 1.5], 1.0) == [(0, 1), (1, 2)]
    assert cliques([1, 2, 3], 0.5) == []
    assert cliques([1, 1.2, 1.4], 1.0) == [(0, 2)]
