from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from frepa.downstream.detection import froc as module
from frepa.downstream.detection.froc import (
    RATES,
    Marks,
    at_threshold,
    best_f1_threshold,
    cpm,
    froc,
    resampled_sensitivity,
    sensitivity_at_rates,
)


def some_marks(images: int = 30, seed: int = 0, digits: int = 2) -> list[Marks]:
    """Scores of few digits: many ties, also between hits and false positives."""
    rng = np.random.default_rng(seed)
    marks = []
    for _ in range(images):
        findings = int(rng.integers(0, 4))
        hits = rng.beta(4, 2, rng.binomial(findings, 0.8)).round(digits)
        marks.append(Marks(hits, rng.beta(2, 3, rng.integers(0, 25)).round(digits), findings))
    return marks


def slow_sensitivity(marks: Sequence[Marks]) -> list[float]:
    """One point per threshold by counting, then on from the last point at or left of the rate."""
    findings = sum(item.findings for item in marks)
    points = [(0.0, 0.0)]
    for t in sorted({float(s) for item in marks for s in (*item.hits, *item.false_positives)}, reverse=True):
        hits = sum(s >= t for item in marks for s in item.hits)
        others = sum(s >= t for item in marks for s in item.false_positives)
        points.append((others / len(marks), hits / findings))
    values = []
    for rate in RATES:
        i = max(i for i, (x, _) in enumerate(points) if x <= rate)
        (x0, y0), (x1, y1) = points[i], points[min(i + 1, len(points) - 1)]
        values.append(y0 if x1 == x0 else y0 + (rate - x0) * (y1 - y0) / (x1 - x0))
    return values


@pytest.mark.parametrize("digits", [1, 2, 9])
@pytest.mark.parametrize("seed", range(4))
def test_sensitivity_at_rates_against_counting(seed: int, digits: int) -> None:
    marks = some_marks(seed=seed, digits=digits)
    curve = froc(marks)
    np.testing.assert_allclose(sensitivity_at_rates(curve), slow_sensitivity(marks))
    assert cpm(curve) == pytest.approx(np.mean(slow_sensitivity(marks)))
    # Few vertices, and every one of them a count
    assert len(curve.thresholds) <= 2 * sum(len(m.hits) for m in marks) + 2 or digits < 9
    for t, sensitivity, rate in zip(*curve):
        point = at_threshold(marks, t)
        assert (point.sensitivity, point.false_positives) == (sensitivity, rate)


def test_a_curve_by_hand() -> None:
    """Two images, four findings: 0.9 hit, 0.8 false, 0.7 hit and false at once, 0.6 hit; one finding is never hit."""
    marks = [Marks(np.array([0.9, 0.7]), np.array([0.8]), 2), Marks(np.array([0.6]), np.array([0.7]), 2)]
    curve = froc(marks)
    np.testing.assert_array_equal(curve.thresholds, [math.inf, 0.9, 0.8, 0.7, 0.6])
    np.testing.assert_array_equal(curve.sensitivity, [0, 0.25, 0.25, 0.5, 0.75])
    np.testing.assert_array_equal(curve.false_positives, [0, 0, 0.5, 1, 1])
    # At 1/8 and 1/4 on the level line, at 1/2 its end, from 1 on the highest of the two points there
    np.testing.assert_allclose(sensitivity_at_rates(curve), [0.25, 0.25, 0.25, 0.75, 0.75, 0.75, 0.75])
    assert cpm(curve) == pytest.approx(3.75 / 7)


def test_without_false_positives_without_marks_and_without_findings() -> None:
    nothing = np.zeros(0)
    assert cpm(froc([Marks(np.array([0.3]), nothing, 2), Marks(nothing, nothing, 0)])) == 0.5
    assert cpm(froc([Marks(nothing, nothing, 2)])) == 0
    assert cpm(froc([Marks(nothing, np.array([0.5, 0.5]), 2)])) == 0
    assert math.isnan(cpm(froc([Marks(nothing, np.array([0.5]), 0)])))
    assert (resampled_sensitivity([Marks(nothing, nothing, 2)]) == 0).all()
    assert np.isnan(resampled_sensitivity([Marks(nothing, np.array([0.5]), 0)])).all()


def test_the_order_of_images_and_marks_decides_nothing() -> None:
    marks = some_marks(digits=1)
    mixed = [Marks(m.hits[::-1], m.false_positives[::-1], m.findings) for m in reversed(marks)]
    for part, other in zip(froc(marks), froc(mixed)):
        np.testing.assert_array_equal(part, other)
    assert best_f1_threshold(marks) == best_f1_threshold(mixed)


@pytest.mark.parametrize("digits", [1, 9])
def test_a_resample_is_the_curve_of_the_repeated_images(digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = some_marks(20, digits=digits)
    weights = np.random.default_rng(1).multinomial(20, np.full(20, 1 / 20), size=50)
    weights[-1] = 0
    weights[-1, 3] = 20  # one image only
    monkeypatch.setattr(module, "resamples", lambda groups, seed: iter([weights[:30], weights[30:]]))
    monkeypatch.setattr(module, "_CHUNK_BYTES", 8 * 7 * 400)  # several parts
    expected = [sensitivity_at_rates(froc([item for item, n in zip(marks, row) for _ in range(n)])) for row in weights]
    np.testing.assert_allclose(resampled_sensitivity(marks), expected)


def test_resamples_are_seeded_and_draw_patients_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = some_marks(12)
    first = resampled_sensitivity(marks, seed=5)
    assert first.shape == (1000, 7)
    np.testing.assert_array_equal(first, resampled_sensitivity(marks, seed=5))
    assert not np.array_equal(first, resampled_sensitivity(marks, seed=6))
    # Two images of each patient that say the same have the spread of one
    twice = resampled_sensitivity(marks * 2, [f"patient {i}" for i in range(12)] * 2, seed=5)
    alone = resampled_sensitivity(marks, [f"patient {i}" for i in range(12)], seed=5)
    np.testing.assert_allclose(twice, alone)

    seen: list[list[str]] = []

    def resamples(groups: list[str], seed: int) -> Iterator[np.ndarray]:
        seen.append(groups)
        return iter([np.ones((1, len(groups)), int)])

    monkeypatch.setattr(module, "resamples", resamples)
    np.testing.assert_allclose(resampled_sensitivity(marks)[0], sensitivity_at_rates(froc(marks)))
    assert len(set(seen[0])) == 12


def test_spread_of_sensitivity_is_the_binomial_one() -> None:
    """One finding per image, nothing false: over resamples of n images the deviation is sqrt(p (1 - p) / n)."""
    nothing = np.zeros(0)
    marks = [Marks(np.array([0.5]) if i < 160 else nothing, nothing, 1) for i in range(200)]
    drawn = resampled_sensitivity(marks, seed=2).mean(1)
    assert drawn.mean() == pytest.approx(0.8, abs=0.005)
    assert drawn.std(ddof=1) == pytest.approx(math.sqrt(0.8 * 0.2 / 200), rel=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_best_f1_against_all_thresholds(seed: int) -> None:
    marks = some_marks(seed=seed)

    def f1(threshold: float) -> float:
        hits = sum(s >= threshold for m in marks for s in m.hits)
        others = sum(s >= threshold for m in marks for s in m.false_positives)
        precision, recall = hits / max(hits + others, 1), hits / sum(m.findings for m in marks)
        return 2 * precision * recall / (precision + recall) if hits else 0.0

    scores = sorted({float(s) for m in marks for s in (*m.hits, *m.false_positives)})
    best = best_f1_threshold(marks)
    assert f1(best) == pytest.approx(max(map(f1, scores)))
    assert at_threshold(marks, best).f1 == pytest.approx(f1(best))


def test_operating_point_by_hand() -> None:
    nothing = np.zeros(0)
    marks = [Marks(np.array([0.9, 0.4]), np.array([0.5, 0.5, 0.1]), 3), Marks(nothing, np.array([0.6, 0.55]), 1)]
    point = at_threshold(marks, 0.5)  # of the same score: counts
    assert point == pytest.approx((0.5, 1 / 4, 1 / 5, 2 / (1 + 4 + 4), 4 / 2))
    assert at_threshold(marks, 0.95)[1:] == pytest.approx((0, math.nan, 0, 0), nan_ok=True)
    # 2 / 5 at 0.9 and 4 / 10 at 0.4: the strictest of equals, midway to the next score
    assert best_f1_threshold(marks) == pytest.approx((0.9 + 0.6) / 2)
    assert best_f1_threshold([Marks(np.array([0.8]), nothing, 1)]) == pytest.approx(0.4)
    assert math.isnan(best_f1_threshold([Marks(nothing, np.array([0.5]), 2)]))
    assert math.isnan(best_f1_threshold([Marks(nothing, nothing, 0)]))
    # A threshold that was never found finds nothing
    assert at_threshold(marks, math.nan).sensitivity == 0
