"""The page of a segmentation run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frepa.datasets.reading import read_case
from frepa.downstream.segmentation.baselines import NAMES
from frepa.downstream.segmentation.data import SegmentationData
from frepa.downstream.segmentation.metrics import Summary
from frepa.downstream.segmentation.model import Segmenter
from frepa.downstream.segmentation.testing import CaseResult
from frepa.files import write_bytes
from frepa.report.figures import loss_curves, png_bytes
from frepa.report.overlays import segmentation_overlay
from frepa.report.page import MeanStd, Page
from frepa.run_folders import CONFIG

_SHOWN = {
    "dsc": "DSC",
    "dsc_fov": "DSC in FOV",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "cldice": "clDice",
}


def write_report(
    root: Path,
    summary: Mapping[str, Any],
    results: Sequence[CaseResult],
    data: SegmentationData,
    segmenter: Segmenter,
) -> Path:
    """Write ``report.html`` and the overlays of the best, median and worst test case of every set."""
    encoder, training = summary["encoder"], summary["training"]
    page = Page(
        f"Segmentation with {encoder['name']}",
        f"{', '.join(summary['sets'])}; frozen encoder, guide channel: {summary['guide']}",
    )
    blocks = {"Trained with the head": f"{encoder['trained'] / 1e6:.2f} M in blocks"} if encoder["trained"] else {}
    page.facts(
        {
            "Encoder": encoder["name"],
            "Pretrained by": encoder["method"] or "not stated",
            "Guide channel": summary["guide"],
            "Head": f"{summary['head']}, on features: {summary['features']}",
            "Encoder parameters": f"{encoder['parameters'] / 1e6:.2f} M",
            **blocks,
            "Steps": training["steps"],
            "Head kept from step": training["best_step"],
            "Validation DSC": _percent(training["best_val_dsc"]),
            "Training": f"{training['seconds'] / 60:.1f} min, {training['crops_per_second']:.1f} crops/s",
            "Device": summary["device"],
        }
    )
    page.section("Results")
    page.text(
        "Per cent, mean and standard deviation over the test cases (one degree of freedom less than cases). DSC is "
        "taken per case over the classes labelled in it, at the image's own resolution. FOV is the field of view."
    )
    page.table([row for name, item in summary["sets"].items() for row in _rows(name, item, summary)])
    for name, item in summary["sets"].items():
        if item["constant"]:
            page.note(f"{name}: {item['constant']}")
    for sentence in training["notes"]:
        page.note(sentence)
    if summary["guide"] != "none":
        page.note(
            "The guide channel shows ridges to the head directly. Compare with encoders that were given the same "
            f"channel; the floor is an untrained one: `{encoder['untrained']}`."
        )
    for name, item in summary["sets"].items():
        if classes := [key for key in item["test"] if key.startswith("dsc_") and key[4:].isdigit()]:
            values = data.labels[name].values
            rows = [
                {"Class": int(key[4:]), "Mask value": values[int(key[4:])], "DSC": _mean_std(item["test"][key]),
                 "Cases": item["test"][key].cases, "Not in case": item["test"][key].skipped}
                for key in classes
            ]  # fmt: skip
            page.table(rows, caption=f"{name}: DSC of each class (per cent).")
    _add_overlays(page, root, results, data, segmenter)
    page.section("Training")
    written = root / "metrics.jsonl"
    lines = [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
    losses = [(row["step"], row["loss"]) for row in lines if "loss" in row]
    if probe := training["probe"]:
        page.text(
            f"The linear part is ridge regression in closed form from {probe['features']:,} features of each of "
            f"{probe['positions']:,} positions, in {probe['seconds']:.0f} s; penalty {probe['penalty']:g}, validation "
            f"DSC {_percent(probe['val_dsc'])}."
        )
    if losses:
        page.figure(
            loss_curves({"loss": tuple(zip(*losses))}, smooth=max(1, len(losses) // 50)),  # type: ignore[dict-item]
            "Training loss of the head.",
        )
    scores = [(row["step"], 100 * row["val_dsc"]) for row in lines if row.get("val_dsc") is not None]
    if scores:
        page.figure(
            loss_curves({"DSC": tuple(zip(*scores))}, ylabel="validation DSC (%)"),  # type: ignore[dict-item]
            "Mean DSC of the validation cases; the head of the highest point was kept; step 0 is the closed form.",
        )
    page.section("Data")
    page.table(
        [
            {
                "Set": name,
                "Layout": item["layout"],
                **{part.capitalize(): item["cases"][part] for part in ("train", "val", "test")},
                "Images without mask": item["images_without_mask"],
            }
            for name, item in summary["sets"].items()
        ]
    )
    for name, item in summary["sets"].items():
        page.text(f"{name}: split {item['split']}. Masks: {item['labels']}.")
    page.section("How it was made")
    page.code("Test cases", (root / "cases.csv").read_text(encoding="utf-8"))
    page.code("Configuration", (root / CONFIG).read_text(encoding="utf-8"))
    versions = "\n".join(f"{name} {number}" for name, number in summary["versions"].items())
    page.code("Encoder and versions", f"{json.dumps(encoder, indent=2)}\n\n{versions}")
    return page.save(root / "report.html")


def best_median_worst(results: Sequence[CaseResult]) -> list[tuple[str, CaseResult]]:
    """The cases with the highest, middle and lowest DSC, as far as there are; cases without a DSC are left out."""
    ranked = sorted(
        (item for item in results if math.isfinite(item.scores["dsc"])),
        key=lambda item: (-item.scores["dsc"], item.case.name),
    )
    if not ranked:
        return []
    places = {"best": 0, "median": (len(ranked) - 1) // 2, "worst": len(ranked) - 1}
    chosen: dict[int, str] = {}
    for word, place in places.items():
        chosen.setdefault(place, word)
    return [(word, ranked[place]) for place, word in chosen.items()]


def _add_overlays(
    page: Page, root: Path, results: Sequence[CaseResult], data: SegmentationData, segmenter: Segmenter
) -> None:
    folder = root / "overlays"
    folder.mkdir(exist_ok=True)
    page.section("Best, median and worst case")
    for item in data.sets:
        labels = data.labels[item.name]
        for word, result in best_median_worst([r for r in results if r.set_name == item.name]):
            truth = read_case(result.case, labels, segmenter.encoder.dims, segmenter.settings.window)
            # Predicted again rather than read back: files may turn axes, and three more predictions cost little.
            found = segmenter.predict(truth.image).classes
            title = f"{item.name}, {result.case.name}: DSC {100 * result.scores['dsc']:.1f} %"
            picture = png_bytes(
                segmentation_overlay(truth.image, truth.classes, found, title=title, inside=truth.inside)
            )
            write_bytes(folder / f"{item.name}-{word}.png", picture)
            page.figure(picture, f"{item.name}, {word} test case.", wide=True)


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


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %" if math.isfinite(value) else "none"
