from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, multilabel_confusion_matrix, recall_score

from frepa.downstream.scores import summarise, summarise_cases
from frepa.downstream.segmentation.metrics import (
    case_mean,
    centreline_dice,
    count,
    dice,
    score_case,
    sensitivity,
    specificity,
)

rng = np.random.default_rng(0)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("shape", [(13, 17), (5, 6, 7)])
def test_scores_match_scikit_learn(shape: tuple[int, ...]) -> None:
    truth, prediction = rng.integers(0, 4, shape), rng.integers(0, 4, shape)
    inside = rng.random(shape) < 0.6
    for region in (None, inside):
        t, p = (truth.ravel(), prediction.ravel()) if region is None else (truth[region], prediction[region])
        counts = count(truth, prediction, 4, region)
        negatives = multilabel_confusion_matrix(t, p)[:, 0]
        np.testing.assert_allclose(dice(counts), f1_score(t, p, average=None))
        np.testing.assert_allclose(sensitivity(counts), recall_score(t, p, average=None))
        np.testing.assert_allclose(specificity(counts), negatives[:, 0] / negatives.sum(1))


def test_a_class_in_neither_mask_is_undefined_and_left_out() -> None:
    truth = np.array([0, 1, 1, 0])
    counts = count(truth, np.array([0, 1, 0, 0]), 3)
    np.testing.assert_allclose(dice(counts), [0.8, 2 / 3, np.nan])
    assert case_mean(dice(counts), counts) == pytest.approx(2 / 3)


def test_the_mean_is_over_labelled_classes_and_empty_cases_have_none() -> None:
    # Class 2 is predicted but not labelled: the case is judged on class 1.
    counts = count(np.array([1, 1, 0, 0]), np.array([1, 1, 2, 0]), 3)
    assert case_mean(dice(counts), counts) == 1.0
    nothing = np.zeros(4, dtype=int)
    counts = count(nothing, nothing, 3)
    assert math.isnan(case_mean(dice(counts), counts))
    # Nothing to find, something found: a miss, not undefined.
    counts = count(nothing, np.array([0, 2, 0, 0]), 3)
    assert case_mean(dice(counts), counts) == 0.0


def test_field_of_view_scores_are_those_of_the_pixels_inside() -> None:
    truth, prediction = rng.integers(0, 2, (9, 9)), rng.integers(0, 2, (9, 9))
    inside = np.zeros((9, 9), dtype=bool)
    inside[2:7, 3:8] = True
    scores = score_case(truth, prediction, 2, inside=inside)
    assert scores["dsc"] == pytest.approx(overlap(truth > 0, prediction > 0))
    assert scores["dsc_fov"] == pytest.approx(overlap(truth[inside] > 0, prediction[inside] > 0))
    assert set(scores) == {a + b for a in ("dsc", "sensitivity", "specificity") for b in ("", "_fov")}


def test_classes_are_reported_apart_when_there_are_several() -> None:
    scores = score_case(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1]), 4)
    assert (scores["dsc_1"], scores["dsc_2"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert math.isnan(scores["dsc_3"])


def test_centreline_dice_of_lines() -> None:
    truth = np.zeros((40, 40), dtype=bool)
    truth[10:13, 5:35] = True
    assert centreline_dice(truth, truth) == 1.0
    # Thinner by a pixel on either side: the same course, so the centrelines agree although DSC drops to a half. (The
    # skeleton of a bar ends a pixel off its axis.)
    thin = np.zeros_like(truth)
    thin[11, 5:35] = True
    assert centreline_dice(truth, thin) == pytest.approx(1, abs=0.03)
    # Half of the course: all of the prediction's line is right, about half of the true line is found.
    half = truth.copy()
    half[:, 20:] = False
    assert centreline_dice(truth, half) == pytest.approx(2 / 3, abs=0.03)
    assert centreline_dice(truth, np.zeros_like(truth)) == 0.0
    assert math.isnan(centreline_dice(np.zeros_like(truth), np.zeros_like(truth)))
    volume = np.zeros((9, 9, 30), dtype=bool)
    volume[3:6, 3:6, 2:28] = True
    assert centreline_dice(volume, volume) == 1.0


def test_summary_skips_and_counts_what_is_undefined() -> None:
    values = [0.5, math.nan, 0.7, 0.9]
    summary = summarise(values)
    assert summary.mean == pytest.approx(0.7)
    assert summary.std == pytest.approx(np.std([0.5, 0.7, 0.9], ddof=1))
    assert (summary.cases, summary.skipped) == (3, 1)
    assert math.isnan(summarise([0.5]).std)
    assert math.isnan(summarise([]).mean)
    both = summarise_cases([{"dsc": 1.0}, {"dsc": 0.0, "dsc_fov": 0.5}])
    assert (both["dsc"].cases, both["dsc_fov"].cases, both["dsc_fov"].skipped) == (2, 1, 1)


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        count(np.zeros((3, 3), int), np.zeros((3, 4), int), 2)
