"""The page of a segmentation run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from frepa.datasets.reading import read_case
from frepa.downstream.page import RunPage, best_median_worst, percent
from frepa.downstream.scores import Summary
from frepa.downstream.segmentation.baselines import NAMES
from frepa.downstream.segmentation.testing import TestedSegmenter
from frepa.files import write_bytes
from frepa.report.figures import png_bytes
from frepa.report.overlays import segmentation_overlay
from frepa.report.page import MeanStd

_SHOWN = {
    "dsc": "DSC",
    "dsc_fov": "DSC in FOV",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "cldice": "clDice",
}


def fill_page(page: RunPage, summary: Mapping[str, Any], tested: Sequence[TestedSegmenter]) -> None:
    """Results, and the overlays of the best, median and worst test case of every set."""
    training, labels = summary["training"], tested[0].data.labels
    best = [item["best_val_dsc"] for item in training if math.isfinite(item["best_val_dsc"])]
    facts: dict[str, Any] = {"Head": f"{summary['head']}, on features: {summary['features']}"}
    if training:
        facts["Validation DSC"] = f"{100 * sum(best) / len(best):.2f} %" if best else "none"
        facts["Speed"] = f"{sum(item['crops_per_second'] for item in training) / len(training):.1f} crops/s"
    page.begin(", ".join(summary["sets"]), facts)
    page.section("Results")
    page.text(
        "Per cent, mean and standard deviation over the test cases (one degree of freedom less than cases). DSC is "
        "taken per case over the classes labelled in it, at the image's own resolution. FOV is the field of view."
    )
    page.table([row for name, item in summary["sets"].items() for row in _rows(name, item, summary)])
    for name, item in summary["sets"].items():
        if item["constant"]:
            page.note(f"{name}: {item['constant']}")
    if len(tested) > 1:
        page.table(
            [
                {"Set": name} | {_SHOWN[key]: percent(score) for key, score in item["heads"].items() if key in _SHOWN}
                for name, item in summary["sets"].items()
            ],
            caption="Mean of the cases of each head: mean and standard deviation over folds, or over seeds where there "
            "are no folds (per cent).",
        )
    page.remarks("The guide channel shows ridges to the head directly.")
    for name, item in summary["sets"].items():
        if classes := [key for key in item["test"] if key.startswith("dsc_") and key[4:].isdigit()]:
            values, names = labels[name].values, item["class_names"] or list(map(str, range(len(labels[name].values))))
            rows = [
                {"Class": names[int(key[4:])], "Mask value": values[int(key[4:])], "DSC": _mean_std(item["test"][key]),
                 "Cases": item["test"][key].cases, "Not in case": item["test"][key].skipped}
                for key in classes
            ]  # fmt: skip
            page.table(rows, caption=f"{name}: DSC of each class (per cent).")
    _add_overlays(page, tested)
    page.training(
        "Training loss of the head.",
        "val_dsc",
        "DSC",
        "Mean DSC of the validation cases; step 0 is the closed form",
        [_closed_form(item["probe"]) for item in training if item["probe"]],
    )
    page.section("Data")
    page.table(
        [
            {
                "Set": name,
                "Layout": item["layout"],
                **{part.capitalize(): count for part, count in item["cases"].items()},
                "Images without mask": item["images_without_mask"],
            }
            for name, item in summary["sets"].items()
        ]
    )
    for name, item in summary["sets"].items():
        page.text(f"{name}: split {item['split']}. Masks: {item['labels']}.")


def _add_overlays(page: RunPage, tested: Sequence[TestedSegmenter]) -> None:
    folder = page.root / "overlays"
    folder.mkdir(exist_ok=True)
    page.section("Best, median and worst case")
    for one in tested[0].data.sets:
        every = [(item, case) for item in tested for case in item.cases if case.set_name == one.name]
        scores = [case.scores["dsc"] for _, case in every]
        for word, place in best_median_worst(scores, [case.name for _, case in every]):
            item, result = every[place]
            segmenter = item.model
            labels = item.data.labels[one.name]
            case = next(case for case in item.data.cases_of(one.name) if case.name == result.name)
            truth = read_case(case, labels, segmenter.encoder.dims, segmenter.settings.window)
            # Predicted again rather than read back: files may turn axes, and three more predictions cost little.
            found = item.classes_of(truth.image)
            title = f"{one.name}, {result.name}: DSC {100 * result.scores['dsc']:.1f} %"
            picture = png_bytes(
                segmentation_overlay(truth.image, truth.classes, found, title=title, inside=truth.inside)
            )
            write_bytes(folder / f"{one.name}-{word}.png", picture)
            page.figure(picture, f"{one.name}, {word} test case.", wide=True)


def _rows(name: str, item: Mapping[str, Any], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The head's scores, and below them those of what needs no encoder."""
    scores: Mapping[str, Summary] = item["test"]
    said = f"{summary['head']} on {summary['features']}" + (" (constant output)" if item["constant"] else "")
    row: dict[str, Any] = {"Set": name, "Answer": said, "Guide": summary["guide"]}
    row |= {shown: _mean_std(scores[key]) for key, shown in _SHOWN.items() if key in scores}
    row["Cases"] = scores["dsc"].cases
    if scores["dsc"].skipped:
        row["Nothing to find"] = scores["dsc"].skipped
    empty = dict.fromkeys(row, "")
    floors = [
        empty | {"Set": name, "Answer": NAMES[key], "DSC": _mean_std(floor), "Cases": floor.cases}
        for key, floor in item["baselines"].items()
    ]
    return [row, *floors]


def _mean_std(summary: Summary) -> MeanStd:
    return MeanStd(100 * summary.mean, 100 * summary.std)


def _closed_form(probe: Mapping[str, Any]) -> str:
    return (
        f"The linear part is ridge regression in closed form from {probe['features']:,} features of each of "
        f"{probe['positions']:,} positions, in {probe['seconds']:.0f} s; penalty {probe['penalty']:g}, validation "
        f"DSC {100 * probe['val_dsc']:.2f} %."
    )
