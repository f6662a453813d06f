"""The page of a detection run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frepa.downstream.detection.baselines import NAME
from frepa.downstream.detection.froc import RATES
from frepa.downstream.detection.metrics import mostly_single, outcome, total
from frepa.downstream.detection.testing import TestedDetector, case_row
from frepa.downstream.detection.training import VALIDATION_AP
from frepa.downstream.page import RunPage, best_median_worst, percent, value_of
from frepa.files import write_bytes
from frepa.images.intensity import Window
from frepa.report.boxes import box_overlay, froc_curve
from frepa.report.figures import png_bytes
from frepa.report.page import MeanStd

_AP = {"ap_10": "AP 10", "ap_50": "AP 50", "ap_50_95": "AP 50-95"}


def fill_page(
    page: RunPage, summary: Mapping[str, Any], tested: Sequence[TestedDetector], *, window: Window = None
) -> None:
    """Results, curves, and the overlays of the best, median and worst test image; ``window`` is for these."""
    test, dims = summary["test"], summary["encoder"]["dims"]
    page.begin(
        ", ".join(summary["classes"]),
        {
            "Head": f"{summary['head']}, on features: {summary['features']}",
            "Images": f"{summary['images']:,}",
            "Test findings": f"{test['findings']:,} in {test['images']:,} images",
        },
    )
    page.section("Results")
    definitions = summary["definitions"]
    page.text(
        f"Per cent. A hit: {definitions['criterion']}. CPM: {definitions['cpm']}; what follows ± is the standard "
        f"deviation {definitions['std']}. Sensitivity, precision and false positives per image (FP) are those "
        f"at {definitions['threshold']}. AP is COCO's average precision at an IoU of 0.1, of 0.5, and over 0.5 to 0.95."
    )
    rows = [_row(name, item, dims) for name, item in test["per_class"].items()]
    if len(rows) > 1:
        rows.append(_row("mean", test["mean"], dims))
    page.table(rows, caption="The output is constant." if summary["constant"] else "")
    for floor in summary["baselines"].values():
        row = {_AP[level]: 100 * value for level, value in floor.items()}
        page.table([row], caption=f"Without an encoder: {NAME}.")
    top = test["top_one"]
    if mostly_single(test):
        page.table(
            [
                {
                    "Images with one finding": f"{total(top['iou']['cases']):,}",
                    "IoU": MeanStd(100 * value_of(top["iou"]["mean"]), 100 * _std(top["iou"])),
                    "Detection ratio, centre in box": percent(top["centre_ratio"]),
                    "Detection ratio, IoU 0.5": percent(top["iou_ratio"]),
                }
            ],
            caption=f"{definitions['top_one']}.",
        )
    page.remarks("The guide channel shows edges and ridges to the head directly.")
    _add_curves(page, test, tested)
    _add_overlays(page, page.root, tested, summary["criterion"], window)
    page.training(
        "Training loss of the head: quality focal loss + 2 GIoU loss + 0.5 smooth L1 loss.",
        "val_ap",
        _AP[VALIDATION_AP[dims]],
        "Average precision of the validation images",
    )
    page.section("Data")
    page.text(f"Boxes: {summary['boxes']}. Split: {summary['split']}.")
    if summary["cases"]:
        page.table([{"Part": part, "Images": count} for part, count in summary["cases"].items() if count])
    if summary["left_out"]:
        page.text(f"{summary['left_out']:,} images could not be read and were left out; `skipped.csv` lists them.")


def _add_curves(page: RunPage, test: Mapping[str, Any], tested: Sequence[TestedDetector]) -> None:
    """FROC of each class, with the 95 % interval over resamples; of folds their mean at the rates of CPM."""
    curves, intervals = {}, {}
    for name, item in test["per_class"].items():
        rates = [item["sensitivity_at"][f"{rate:g}"] for rate in RATES]
        if len(tested) == 1:
            curves[name] = (item["froc"]["false_positives"], item["froc"]["sensitivity"])
            intervals[name] = ([rate["low"] for rate in rates], [rate["high"] for rate in rates])
        else:
            curves[name] = (RATES, [rate["value"] for rate in rates])
    caption = "Sensitivity against false positives per image (FROC) on the test images"
    caption += ", with the 95 % interval over resamples." if intervals else ", mean over the heads."
    page.figure(froc_curve(curves, RATES, intervals=intervals or None), caption)


def _add_overlays(page: RunPage, root: Path, tested: Sequence[TestedDetector], criterion: str, window: Window) -> None:
    """Chosen by the mean overlap of an image's findings with their best boxes above the threshold."""
    folder = root / "overlays"
    folder.mkdir(exist_ok=True)
    page.section("Best, median and worst image")
    every = [(item, case) for item in tested for case in item.cases]
    scored = [float(case_row(case, item.thresholds, criterion)["iou"]) for item, case in every]
    for word, place in best_median_worst(scored, [case.name for _, case in every]):
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
            title=f"{found.name}: mean IoU {100 * scored[place]:.1f} %",
        )
        picture = png_bytes(figure)
        write_bytes(folder / f"{word}.png", picture)
        page.figure(picture, f"{word.capitalize()} test image, with the boxes above the threshold.", wide=True)


def _row(name: str, item: Mapping[str, Any], dims: int) -> dict[str, Any]:
    shown = ["ap_10", "ap_50"] if dims == 3 else ["ap_50", "ap_50_95"]
    row: dict[str, Any] = {"Class": name, "CPM": MeanStd(100 * item["cpm"]["value"], 100 * item["cpm"]["std"])}
    row |= {"Sensitivity": percent(item["sensitivity"]), "Precision": percent(item["precision"])}
    row |= {"FP / image": value_of(item["false_positives"])}
    row |= {_AP[key]: percent(item[key]) for key in shown}
    if "findings" in item:
        row["Findings"] = total(item["findings"])
    return row


def _std(score: Mapping[str, Any]) -> float:
    """The standard deviation over images, or where there are folds that of the folds' means."""
    mean = score["mean"]
    return value_of(mean["std"] if isinstance(mean, Mapping) else score["std"])
