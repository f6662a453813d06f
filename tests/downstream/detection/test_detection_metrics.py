from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from frepa.downstream.detection.froc import RATES, cpm, froc, sensitivity_at_rates
from frepa.downstream.detection.metrics import (
    CRITERIA,
    MOST_MARKS,
    DetectionCase,
    average_precision,
    best_thresholds,
    case_scores,
    iou,
    marks_of,
    outcome,
    score_detections,
    top_one,
)
from frepa.images.boxes import IGNORED, Boxes, Detections, around

Rectangle = tuple[float, float, float, float]


def lifted(rectangles: Sequence[Rectangle], dims: int) -> np.ndarray:
    """``(y0, x0, y1, x1)`` as corners; in 3D all from slice 2 to 6, so that overlaps and distances are those in 2D."""
    flat = np.array(rectangles, float).reshape(-1, 4)
    if dims == 2:
        return flat
    ends = np.ones((len(flat), 1))
    return np.concatenate([2 * ends, flat[:, :2], 6 * ends, flat[:, 2:]], axis=1)


def case(
    truth: Sequence[tuple[Rectangle, int]], found: Sequence[tuple[Rectangle, int, float]], dims: int = 2
) -> DetectionCase:
    return DetectionCase(
        Boxes(lifted([box for box, _ in truth], dims), np.array([k for _, k in truth], np.int64)),
        Detections(
            lifted([box for box, _, _ in found], dims),
            np.array([k for _, k, _ in found], np.int64),
            np.array([score for *_, score in found], float),
        ),
    )


def random_cases(
    images: int, dims: int, classes: int = 3, *, seed: int = 0, digits: int = 2, ignored: bool = True, found: int = 12
) -> list[DetectionCase]:
    """Found boxes near the true ones and elsewhere, on whole pixels, with ties in score."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(images):
        n, m = int(rng.integers(0, 6)), int(rng.integers(0, found))
        low = rng.integers(0, 30, (n, dims))
        truth = np.concatenate([low, low + rng.integers(3, 12, (n, dims))], axis=1).astype(float)
        labels = rng.integers(-1 if ignored else 0, classes, n)
        low = rng.integers(0, 30, (m, dims))
        boxes = np.concatenate([low, low + rng.integers(3, 12, (m, dims))], axis=1).astype(float)
        own = rng.integers(0, classes, m)
        for i in range(m):
            if n and rng.random() < 0.7:
                j = rng.integers(n)
                boxes[i] = truth[j] + rng.integers(-2, 3, 2 * dims) * (rng.random() < 0.8)
                boxes[i, dims:] = np.maximum(boxes[i, dims:], boxes[i, :dims] + 1)
                own[i] = labels[j] if labels[j] >= 0 else own[i]
        cases.append(DetectionCase(Boxes(truth, labels), Detections(boxes, own, rng.random(m).round(digits))))
    return cases


def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    dims = len(a) // 2
    both = math.prod(max(0.0, min(a[dims + i], b[dims + i]) - max(a[i], b[i])) for i in range(dims))
    return both / (sum(math.prod(c[dims + i] - c[i] for i in range(dims)) for c in (a, b)) - both)


@pytest.mark.parametrize("dims", [2, 3])
def test_iou_against_loops_and_exactly_at_a_half(dims: int) -> None:
    first, second = (
        np.concatenate([item.found.corners for item in random_cases(4, dims, seed=seed)]) for seed in (0, 1)
    )
    expected = [[slow_iou(a, b) for b in second] for a in first]
    np.testing.assert_allclose(iou(first, second), expected)
    whole, half = lifted([(0, 0, 4, 4)], dims), lifted([(0, 0, 4, 2)], dims)
    assert iou(whole, half) == 0.5
    assert CRITERIA["iou"].hits(half, whole).all()
    assert iou(whole[:, [*range(dims)] * 2], whole) == 0  # without extent
    assert iou(whole[:0], whole).shape == (0, 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_centres_at_the_edge(dims: int) -> None:
    truth = lifted([(10, 10, 20, 20)], dims)

    def hits(criterion: str, y: float, x: float) -> bool:
        return bool(CRITERIA[criterion].hits(lifted([(y - 1, x - 2, y + 1, x + 2)], dims), truth))

    diagonal = 15 + 4.99 * math.sqrt(0.5)
    for place in ((10, 10), (19.99, 15)):
        assert hits("centre", *place)
    for place in ((9.99, 15), (20, 15), (15, 20)):
        assert not hits("centre", *place)
    for place in ((15, 19.99), (10.01, 15), (diagonal, diagonal)):
        assert hits("sphere", *place)
    for place in ((15, 20), (10, 15), (diagonal + 0.1, diagonal), (10, 10)):
        assert not hits("sphere", *place)


def luna16(scans: Sequence[tuple[list, list]]) -> tuple[list[tuple[str, float]], int]:
    """LUNA16's count, written as its script goes: findings one by one, each against all marks of the scan, in mm.

    Args:
        scans: findings ``(place, diameter, included)`` and marks ``(place, score)``.

    Returns:
        ``("hit" or "false", score)`` of what enters the curve, and how many findings are included.
    """
    entries, included_findings = [], 0
    for findings, marks in scans:
        left = dict(enumerate(marks))
        if len(left) > 100:
            cut = sorted((score for _, score in marks), reverse=True)[100]
            left = {key: mark for key, mark in left.items() if mark[1] > cut}
        candidates = dict(left)
        for place, diameter, included in findings:
            matches = []
            for key, (at, score) in candidates.items():
                if sum((a - b) ** 2 for a, b in zip(place, at)) < (diameter / 2) ** 2:
                    if included:
                        matches.append(score)
                    left.pop(key, None)
            if included:
                included_findings += 1
                if matches:
                    entries.append(("hit", max(matches)))
        entries += [("false", score) for _, score in left.values()]
    return entries, included_findings


@pytest.mark.parametrize("digits", [2, 9])
@pytest.mark.parametrize("seed", range(3))
def test_volumes_against_a_transcription_of_luna16(seed: int, digits: int) -> None:
    """Spheres in millimetres on a grid of unequal spacing, with axes flipped and exchanged; ours are boxes."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-0.7, 0.8, 2.5])[:, np.roll([2, 1, 0], seed)]
    affine[:3, 3] = rng.normal(size=3) * 100
    scans, cases = [], []
    for number in range(25):
        n = int(rng.integers(0, 5))
        places, diameters = rng.random((n, 3)) * 60, rng.uniform(4, 30, n)
        included = rng.random(n) < 0.7
        m = 130 if number == 0 else int(rng.integers(0, 30))
        at = rng.random((m, 3)) * 60
        for i in range(m):
            if n and rng.random() < 0.6:
                at[i] = places[rng.integers(n)] + rng.normal(size=3) * 5
        scores = rng.random(m).round(digits)
        scans.append((list(zip(places, diameters, included)), list(zip(at, scores))))
        cases.append(
            DetectionCase(
                Boxes(around(places, diameters, affine), np.where(included, 0, IGNORED)),
                Detections(around(at, rng.uniform(1, 20, m), affine), np.zeros(m, np.int64), scores),
            )
        )
    entries, findings = luna16(scans)
    marks = [marks_of(item, 0, "sphere") for item in cases]
    assert sum(item.findings for item in marks) == findings > 20
    assert sorted(s for m in marks for s in m.hits) == sorted(s for kind, s in entries if kind == "hit")
    assert sorted(s for m in marks for s in m.false_positives) == sorted(s for kind, s in entries if kind == "false")
    # The curve, by LUNA16's formulas on scikit-learn's ROC: rates times how many there are
    scores = np.array([s for _, s in entries])
    hit = np.array([kind == "hit" for kind, _ in entries])
    points = [(0.0, 0.0)] + [
        ((scores[~hit] >= t).mean() * (~hit).sum() / len(scans), (scores[hit] >= t).mean() * hit.sum() / findings)
        for t in sorted(set(scores), reverse=True)
    ]
    expected = np.interp(RATES, *zip(*points))
    np.testing.assert_allclose(sensitivity_at_rates(froc(marks)), expected)
    assert cpm(froc(marks)) == pytest.approx(expected.mean())


@pytest.mark.parametrize("criterion", ["centre", "iou"])
@pytest.mark.parametrize("dims", [2, 3])
def test_other_criteria_keep_the_same_rules(dims: int, criterion: str) -> None:
    def hit(box: np.ndarray, truth: np.ndarray) -> bool:
        if criterion == "iou":
            return slow_iou(box, truth) >= 0.5
        return all(truth[i] <= (box[i] + box[dims + i]) / 2 < truth[dims + i] for i in range(dims))

    for truth, found in random_cases(40, dims):
        for k in range(3):
            own = [i for i in range(len(found.scores)) if found.classes[i] == k]
            hits, used = [], set()
            for corners, label in zip(*truth):
                touching = [i for i in own if label in (k, IGNORED) and hit(found.corners[i], corners)]
                used |= set(touching)
                hits += [max(found.scores[i] for i in touching)] if touching and label == k else []
            marks = marks_of(DetectionCase(truth, found), k, criterion)
            assert sorted(marks.hits) == sorted(hits)
            assert sorted(marks.false_positives) == sorted(found.scores[i] for i in own if i not in used)
            assert marks.findings == (truth.classes == k).sum()


@pytest.mark.parametrize("dims", [2, 3])
def test_marks_by_hand(dims: int) -> None:
    truth = [((0, 0, 10, 10), 0), ((0, 5, 10, 15), 0), ((30, 30, 40, 40), 0), ((50, 50, 60, 60), IGNORED)]
    found = [
        ((4, 6, 6, 8), 0, 0.7),  # in the first two at once
        ((4, 1, 6, 3), 0, 0.9),  # in the first
        ((54, 54, 56, 56), 0, 0.8),  # on the ignored one
        ((80, 80, 90, 90), 0, 0.6),  # nowhere
        ((34, 34, 36, 36), 1, 0.5),  # in the third, of another class
    ]
    item = case(truth, found, dims)
    marks = marks_of(item, 0, "centre")
    np.testing.assert_array_equal(marks.hits, [0.9, 0.7])
    np.testing.assert_array_equal(marks.false_positives, [0.6])
    assert marks.findings == 3
    other = marks_of(item, 1, "centre")
    assert (list(other.hits), list(other.false_positives), other.findings) == ([], [0.5], 0)

    counted, hits, missed = outcome(item, [0.65, 0.5], "centre")
    assert counted.tolist() == [True, True, False, False, True]
    assert hits.tolist() == [True, True, False, False, False]
    assert missed.tolist() == [False, False, True, False]
    # Found boxes of 4 pixels a plane; the third finding's only box is of another class
    assert case_scores(item, [0.65, 0.5], "centre") == pytest.approx(
        {"findings": 3, "boxes": 3, "hits": 2, "misses": 1, "false_positives": 1, "iou": (0.04 + 0.04 + 0) / 3}
    )
    assert case_scores(item, [math.nan, math.nan], "centre")["boxes"] == 0
    with pytest.raises(ValueError, match="expected one of centre, sphere, iou"):
        marks_of(item, 0, "center")


def test_an_image_without_anything() -> None:
    empty = DetectionCase(Boxes.empty(3), Detections.empty(3))
    for criterion in CRITERIA:
        marks = marks_of(empty, 0, criterion)
        assert (len(marks.hits), len(marks.false_positives), marks.findings) == (0, 0, 0)
    scores = case_scores(empty, [0.5], "centre")
    assert math.isnan(scores.pop("iou"))
    assert set(scores.values()) == {0}
    only_truth = DetectionCase(Boxes(np.array([[0.0, 0, 2, 2]]), np.zeros(1, np.int64)), Detections.empty(2))
    assert case_scores(only_truth, [0.5], "iou") == {
        "findings": 1, "boxes": 0, "hits": 0, "misses": 1, "false_positives": 0, "iou": 0.0,
    }  # fmt: skip


def test_marks_that_tie_with_the_first_too_many_are_left_out() -> None:
    place = (0.0, 0.0, 2.0, 2.0)
    found = [(place, 0, 0.9)] * 60 + [(place, 0, 0.5)] * 50
    assert len(marks_of(case([], found), 0, "iou").false_positives) == 60
    assert len(marks_of(case([], found[:MOST_MARKS]), 0, "iou").false_positives) == MOST_MARKS


def slow_average_precision(cases: Sequence[DetectionCase], label: int, level: float) -> float:
    """COCO's definition without ignored boxes, in plain loops."""
    entries, findings = [], 0
    for truth, found in cases:
        real = [corners for corners, k in zip(*truth) if k == label]
        findings += len(real)
        taken: set[int] = set()
        own = sorted((i for i, k in enumerate(found.classes) if k == label), key=lambda i: -found.scores[i])
        for i in own[:100]:
            overlaps = [(slow_iou(found.corners[i], t), j) for j, t in enumerate(real) if j not in taken]
            best = max(overlaps, default=(-1.0, -1))
            if best[0] >= level:
                taken.add(best[1])
            entries.append((found.scores[i], best[0] >= level))
    entries.sort(key=lambda entry: -entry[0])
    hits, points = 0, []
    for i, (_, hit) in enumerate(entries, start=1):
        hits += hit
        points.append((hits / findings, hits / i))
    at = [max((p for recall, p in points if recall >= r), default=0.0) for r in np.linspace(0, 1, 101)]
    return float(np.mean(at))


@pytest.mark.parametrize("dims", [2, 3])
def test_average_precision_against_loops(dims: int) -> None:
    cases = random_cases(25, dims, ignored=False, digits=9)
    found = average_precision(cases, 4)
    assert math.isnan(found["ap_50"][3])  # no such finding
    for k in range(3):
        assert found["ap_10"][k] == pytest.approx(slow_average_precision(cases, k, 0.1))
        assert found["ap_50"][k] == pytest.approx(slow_average_precision(cases, k, 0.5))
        levels = [slow_average_precision(cases, k, level) for level in np.linspace(0.5, 0.95, 10)]
        assert found["ap_50_95"][k] == pytest.approx(np.mean(levels))


def test_average_precision_is_that_of_coco() -> None:
    cases = random_cases(30, 2, ignored=False, digits=9)
    true, own, found = COCO(), list[dict[str, Any]](), list[dict[str, Any]]()

    def boxes(of: Boxes | Detections) -> Iterator[dict[str, Any]]:
        for (top, left, bottom, right), category in zip(of.corners.tolist(), of.classes.tolist()):
            box = [left, top, right - left, bottom - top]
            yield {"bbox": box, "area": box[2] * box[3], "category_id": category, "iscrowd": 0}

    for image, (truth, made) in enumerate(cases):
        own += [{**box, "image_id": image} for box in boxes(truth)]
        found += [{**box, "image_id": image, "score": s} for box, s in zip(boxes(made), made.scores.tolist())]
    true.dataset = {
        "images": [{"id": image} for image in range(len(cases))],
        "annotations": [{**box, "id": number} for number, box in enumerate(own, start=1)],
        "categories": [{"id": k} for k in range(3)],
        "info": {},
    }
    true.createIndex()
    judge = COCOeval(true, true.loadRes(found), "bbox")
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][..., 0, 2]  # level, recall, class; boxes of all areas, a hundred an image
    ours = average_precision(cases, 3)
    assert ours["ap_50_95"] == pytest.approx(precision.mean((0, 1)))
    assert ours["ap_50"] == pytest.approx(precision[0].mean(0))


@pytest.mark.parametrize("dims", [2, 3])
def test_average_precision_by_hand_and_with_ignored_findings(dims: int) -> None:
    first, second, elsewhere = (0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 60, 60)
    truth = [(first, 0), (second, 0)]
    found = [(first, 0, 0.9), (elsewhere, 0, 0.8), (second, 0, 0.7)]
    # Precision 1 up to a recall of 1/2 (51 of the 101 steps), 2/3 beyond it
    ap = average_precision([case(truth, found, dims)], 1)
    for name in ("ap_10", "ap_50", "ap_50_95"):
        assert ap[name] == pytest.approx([(51 + 50 * 2 / 3) / 101])
    # Where the box between them lies on an ignored finding it is dropped, and a second one too
    twice = [*found, (elsewhere, 0, 0.75)]
    assert average_precision([case([*truth, (elsewhere, IGNORED)], twice, dims)], 1)["ap_50"] == pytest.approx([1])
    # Overlapping it by 0.6 is enough at IoU 0.5 and not at 0.65
    near = (50, 50, 60, 56)
    ap = average_precision([case([*truth, (near, IGNORED)], found, dims)], 1)
    assert ap["ap_50"] == pytest.approx([1])
    assert ap["ap_50_95"] == pytest.approx([(3 + 7 * (51 + 50 * 2 / 3) / 101) / 10])
    # A match with a finding counts, though an ignored one lies there too
    assert average_precision([case([*truth, (first, IGNORED)], found, dims)], 1)["ap_50"] == pytest.approx(
        [(51 + 50 * 2 / 3) / 101]
    )
    assert average_precision([case(truth, [], dims)], 1)["ap_50"] == [0]
    assert np.isnan(average_precision([case([(first, IGNORED)], found, dims)], 1)["ap_50"]).all()


def test_a_recall_on_a_step_reaches_it() -> None:
    """Nine of ten findings, a false positive, the last finding: precision 1 at 91 of the 101 recalls, then 10 / 11."""
    places = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(11)]
    found = [(place, 0, 1 - i / 20) for i, place in enumerate([*places[:9], places[10], places[9]])]
    ap = average_precision([case([(place, 0) for place in places[:10]], found)], 1)
    assert ap["ap_50"] == pytest.approx([(91 + 10 * 10 / 11) / 101])


@pytest.mark.parametrize("dims", [2, 3])
def test_best_box_of_images_with_one_finding(dims: int) -> None:
    place = (0, 0, 10, 10)
    cases = [
        case([(place, 0)], [((0, 0, 10, 10), 1, 0.9), ((0, 0, 5, 5), 0, 0.2)], dims),  # of any class: IoU 1
        case([(place, 0)], [((0, 0, 10, 4), 0, 0.9)], dims),  # 0.4, centre inside
        case([(place, 0)], [], dims),
        case([(place, 0)], [((0, 0, 10, 10), 0, 0.5), ((20, 0, 30, 10), 0, 0.5)], dims),  # two at the top: half each
        case([(place, 0), ((50, 50, 60, 60), IGNORED)], [((51, 51, 59, 59), 0, 0.9), (place, 0, 0.1)], dims),  # 1
        case([(place, 0), (place, 0)], [(place, 0, 0.9)], dims),  # two findings: not asked
        case([(place, IGNORED)], [(place, 0, 0.9)], dims),  # none: not asked
    ]
    found = top_one(cases)
    overlaps = [1, 0.4, 0, 0.5, 1]
    assert found.iou == pytest.approx((np.mean(overlaps), np.std(overlaps, ddof=1), 5, 0))
    assert found.centre_ratio == pytest.approx((1 + 1 + 0 + 0.5 + 1) / 5)
    assert found.iou_ratio == pytest.approx((1 + 0 + 0 + 0.5 + 1) / 5)
    nothing = top_one(cases[-2:])
    assert nothing.iou.cases == 0
    assert math.isnan(nothing.iou.mean)
    assert math.isnan(nothing.centre_ratio)


@pytest.mark.parametrize("dims", [2, 3])
def test_all_scores_together(dims: int) -> None:
    cases, names = random_cases(30, dims), ("a", "b", "c", "never")
    thresholds = best_thresholds(random_cases(20, dims, seed=9), 4, "centre")
    assert math.isnan(thresholds[3])
    result = score_detections(cases, names, criterion="centre", thresholds=thresholds, seed=1)
    json.dumps(result)
    assert result["images"] == 30
    assert result["findings"] == sum((item.truth.classes >= 0).sum() for item in cases)
    assert list(result["per_class"]) == list(names)
    one, mean = result["per_class"]["b"], result["mean"]
    marks = [marks_of(item, 1, "centre") for item in cases]
    assert one["cpm"]["value"] == cpm(froc(marks))
    assert one["cpm"]["low"] < one["cpm"]["value"] < one["cpm"]["high"]
    assert one["sensitivity_at"]["0.125"]["value"] == sensitivity_at_rates(froc(marks))[0]
    assert list(one["sensitivity_at"]) == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    assert one["images"] == sum((item.truth.classes == 1).any() for item in cases)
    for name in ("sensitivity", "f1", "ap_10", "ap_50", "ap_50_95"):  # "never" has none of them
        assert mean[name] == pytest.approx(np.mean([result["per_class"][c][name] for c in "abc"]))
    assert mean["cpm"]["value"] == pytest.approx(np.mean([result["per_class"][c]["cpm"]["value"] for c in "abc"]))
    # The classes are resampled together: the spread of their mean is less than the mean of their spreads
    assert 0 < mean["cpm"]["std"] < np.mean([result["per_class"][c]["cpm"]["std"] for c in "abc"])
    assert math.isnan(result["per_class"]["never"]["ap_50"])
    assert math.isnan(result["per_class"]["never"]["cpm"]["value"])
    again = score_detections(cases, names, criterion="centre", thresholds=thresholds, seed=1)
    assert json.dumps(again) == json.dumps(result)
    rows = [case_scores(item, thresholds, "centre") for item in cases]
    hits = sum(result["per_class"][c]["sensitivity"] * result["per_class"][c]["findings"] for c in "abc")
    assert sum(row["hits"] for row in rows) == pytest.approx(hits)
    others = 30 * sum(item["false_positives"] for item in result["per_class"].values())
    assert sum(row["false_positives"] for row in rows) == pytest.approx(others)
    with pytest.raises(ValueError):
        score_detections(cases, names, criterion="centre", thresholds=thresholds[:2])
