"""The page of a detection run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frepa.downstream.detection.baselines import NAME
from frepa.downstream.detection.froc import RATES
from frepa.downstream.detection.metrics import outcome
from frepa.downstream.detection.testing import FoundCase, case_row
from frepa.downstream.detection.training import VALIDATION_AP
from frepa.files import write_bytes
from frepa.images.intensity import Window
from frepa.report.boxes import box_overlay, froc_curve
from frepa.report.figures import loss_curves, png_bytes
from frepa.report.page import MeanStd, Page
from frepa.run_folders import CONFIG

if TYPE_CHECKING:
    from frepa.downstream.detection.task import Tested

_AP = {"ap_10": "AP 10", "ap_50": "AP 50", "ap_50_95": "AP 50-95"}
# Longer lists are in cases.csv beside the page.
_MOST_CASES_SHOWN = 200


def write_report(root: Path, summary: Mapping[str, Any], tested: Sequence[Tested], *, window: Window = None) -> Path:
    """Write ``report.html`` and the overlays of the best, median and worst test image; ``window`` is for these."""
    encoder, test = summary["encoder"], summary["test"]
    page = Page(
        f"Detection with {encoder['name']}",
        f"{', '.join(summary['classes'])}; frozen encoder, guide channel: {summary['guide']}",
    )
    training = summary["training"]
    blocks = {"Trained with the head": f"{encoder['trained'] / 1e6:.2f} M in blocks"} if encoder["trained"] else {}
    page.facts(
        {
            "Encoder": encoder["name"],
            "Pretrained by": encoder["method"] or "not stated",
            "Guide channel": summary["guide"],
            "Head": f"{summary['head']}, on features: {summary['features']}",
            "Encoder parameters": f"{encoder['parameters'] / 1e6:.2f} M",
            **blocks,
            "Images": f"{summary['images']:,}",
            "Test findings": f"{test['findings']:,} in {test['images']:,} images",
            "Steps": training[0]["steps"] if len(training) == 1 else f"{len(training)} x {training[0]['steps']}",
            "Training": f"{sum(item['seconds'] for item in training) / 60:.1f} min",
            "Device": summary["device"],
        }
    )
    page.section("Results")
    definitions = summary["definitions"]
    page.text(
        f"Per cent. A hit: {definitions['criterion']}. CPM: {definitions['cpm']}; what follows ± is the standard "
        f"deviation {definitions['std']}. Sensitivity, precision and false positives per image (FP) are those "
        f"at {definitions['threshold']}. AP is COCO's average precision at an IoU of 0.1, of 0.5, and over 0.5 to 0.95."
    )
    dims = encoder["dims"]
    rows = [_row(name, item, dims) for name, item in test["per_class"].items()]
    if len(rows) > 1:
        rows.append(_row("mean", test["mean"], dims))
    page.table(rows, caption="The output is constant." if summary["constant"] else "")
    floor = summary["baselines"]["usual"]
    page.table([{_AP[level]: 100 * value for level, value in floor.items()}], caption=f"Without an encoder: {NAME}.")
    top = test["top_one"]
    if mostly_single(test):
        page.table(
            [
                {
                    "Images with one finding": f"{_total(top['iou']['cases']):,}",
                    "IoU": MeanStd(100 * _value(top["iou"]["mean"]), 100 * _std(top["iou"])),
                    "Detection ratio, centre in box": _percent(top["centre_ratio"]),
                    "Detection ratio, IoU 0.5": _percent(top["iou_ratio"]),
                }
            ],
            caption=f"{definitions['top_one']}.",
        )
    for sentence in summary["warnings"]:
        page.note(sentence, level="warning")
    if summary["guide"] != "none":
        page.note(
            "The guide channel shows edges and ridges to the head directly. Compare with encoders that were given the "
            f"same channel; the floor is an untrained one: `{encoder['untrained']}`."
        )
    _add_curves(page, test, tested)
    _add_overlays(page, root, tested, summary["criterion"], window)
    page.section("Training")
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    page.figure(
        loss_curves(_courses(lines, "loss"), smooth=max(1, len(lines) // 50)),
        "Training loss of the head: quality focal loss + 2 GIoU loss + 0.5 smooth L1 loss.",
    )
    if scores := _courses(lines, "val_ap", 100):
        shown = _AP[VALIDATION_AP[dims]]
        page.figure(
            loss_curves(scores, ylabel=f"validation {shown} (%)"),
            "Average precision of the validation images; the head of the highest point was kept.",
        )
    page.section("Data")
    page.text(f"Boxes: {summary['boxes']}. Split: {summary['split']}.")
    if summary["cases"]:
        page.table([{"Part": part, "Images": count} for part, count in summary["cases"].items()])
    if summary["left_out"]:
        page.text(f"{summary['left_out']:,} images could not be read and were left out; `skipped.csv` lists them.")
    page.section("How it was made")
    cases = (root / "cases.csv").read_text(encoding="utf-8").splitlines()
    more = [f"... {len(cases) - 1 - _MOST_CASES_SHOWN:,} more in cases.csv"] if len(cases) > _MOST_CASES_SHOWN else []
    page.code("Test cases", "\n".join([*cases[: _MOST_CASES_SHOWN + 1], *more]))
    page.code("Configuration", (root / CONFIG).read_text(encoding="utf-8"))
    versions = "\n".join(f"{name} {number}" for name, number in summary["versions"].items())
    page.code("Encoder and versions", f"{json.dumps(encoder, indent=2)}\n\n{versions}")
    return page.save(root / "report.html")


def mostly_single(test: Mapping[str, Any]) -> bool:
    """Whether most test images have exactly one finding, so that the best box alone says something of the set."""
    return 2 * _total(test["top_one"]["iou"]["cases"]) > test["images"]


def _add_curves(page: Page, test: Mapping[str, Any], tested: Sequence[Tested]) -> None:
    """FROC of each class, with the 95 % interval over resamples; of folds their mean at the rates of CPM."""
    curves, intervals = {}, {}
    for name, item in test["per_class"].items():
        rates = [item["sensitivity_at"][f"{rate:g}"] for rate in RATES]
        if tested[0].fold is None:
            curves[name] = (item["froc"]["false_positives"], item["froc"]["sensitivity"])
            intervals[name] = ([rate["low"] for rate in rates], [rate["high"] for rate in rates])
        else:
            curves[name] = (RATES, [rate["value"] for rate in rates])
    caption = "Sensitivity against false positives per image (FROC) on the test images"
    caption += ", with the 95 % interval over resamples." if intervals else ", mean over the folds."
    page.figure(froc_curve(curves, RATES, intervals=intervals or None), caption)


def best_median_worst(cases: Sequence[tuple[FoundCase, float]]) -> list[tuple[str, int]]:
    """Places of the cases with the highest, middle and lowest score, as far as there are; NaN are left out."""
    ranked = sorted(
        (place for place, (_, score) in enumerate(cases) if math.isfinite(score)),
        key=lambda place: (-cases[place][1], cases[place][0].name),
    )
    if not ranked:
        return []
    chosen: dict[int, str] = {}
    for word, place in {"best": 0, "median": (len(ranked) - 1) // 2, "worst": len(ranked) - 1}.items():
        chosen.setdefault(place, word)
    return [(word, ranked[place]) for place, word in chosen.items()]


def _add_overlays(page: Page, root: Path, tested: Sequence[Tested], criterion: str, window: Window) -> None:
    """Chosen by the mean overlap of an image's findings with their best boxes above the threshold."""
    folder = root / "overlays"
    folder.mkdir(exist_ok=True)
    page.section("Best, median and worst image")
    every = [(item, case) for item in tested for case in item.cases]
    scored = [(case, float(case_row(case, item.thresholds, criterion)["iou"])) for item, case in every]
    for word, place in best_median_worst(scored):
        item, found = every[place]
        image = item.data.read(found.row, window).image
        result = outcome(found.case, item.thresholds, criterion)
        kept = result.counted
        truth = found.case.truth
        figure = box_overlay(
            image,
            truth.corners[truth.classes >= 0],
            found.case.found.corners[kept],
            found.case.found.scores[kept],
            result.hits[kept],
            missed=result.missed[truth.classes >= 0],
            title=f"{found.name}: mean IoU {100 * scored[place][1]:.1f} %",
        )
        picture = png_bytes(figure)
        write_bytes(folder / f"{word}.png", picture)
        page.figure(picture, f"{word.capitalize()} test image, with the boxes above the threshold.", wide=True)


def _row(name: str, item: Mapping[str, Any], dims: int) -> dict[str, Any]:
    shown = ["ap_10", "ap_50"] if dims == 3 else ["ap_50", "ap_50_95"]
    row: dict[str, Any] = {"Class": name, "CPM": MeanStd(100 * item["cpm"]["value"], 100 * item["cpm"]["std"])}
    row |= {"Sensitivity": _percent(item["sensitivity"]), "Precision": _percent(item["precision"])}
    row |= {"FP / image": _value(item["false_positives"])}
    row |= {_AP[key]: _percent(item[key]) for key in shown}
    if "findings" in item:
        row["Findings"] = _total(item["findings"])
    return row


def _value(score: Any) -> float:
    """A score, or its mean over folds."""
    value = score["value"] if isinstance(score, Mapping) else score
    return math.nan if value is None else float(value)


def _std(score: Mapping[str, Any]) -> float:
    """The standard deviation over images, or where there are folds that of the folds' means."""
    mean = score["mean"]
    return _value(mean["std"] if isinstance(mean, Mapping) else score["std"])


def _total(count: Any) -> int:
    return sum(count["folds"]) if isinstance(count, Mapping) else count


def _percent(score: Any) -> Any:
    if isinstance(score, Mapping):
        return MeanStd(100 * _value(score), 100 * _value(score["std"]))
    return 100 * _value(score)


def _courses(lines: Sequence[Mapping[str, Any]], key: str, factor: float = 1) -> dict[str, Any]:
    """``{name: (steps, values)}`` of every fold, those without a value left out."""
    courses: dict[str, Any] = {}
    for fold in dict.fromkeys(line.get("fold") for line in lines):
        points = [(r["step"], factor * r[key]) for r in lines if r.get("fold") == fold and r.get(key) is not None]
        if points:
            courses[key if fold is None else f"fold {fold}"] = tuple(np.asarray(points).T)
    return courses
