"""The page of a classification run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frepa.files import write_bytes
from frepa.report.confusion import confusion_matrix
from frepa.report.figures import loss_curves, png_bytes
from frepa.report.page import MeanStd, Page
from frepa.run_folders import CONFIG

# Longer lists are in cases.csv beside the page.
_MOST_CASES_SHOWN = 200


def write_report(root: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``report.html``, and ``confusion.png`` where classes exclude each other."""
    encoder, scores = summary["encoder"], summary["test"]
    page = Page(
        f"Classification with {encoder['name']}",
        f"{len(summary['classes'])} classes; frozen encoder, guide channel: {summary['guide']}",
    )
    seconds = sum(item["seconds"] for item in summary["training"])
    facts = {
        "Encoder": encoder["name"],
        "Pretrained by": encoder["method"] or "not stated",
        "Guide channel": summary["guide"],
        "Head": f"{summary['head']}, on the embedding",
        "Encoder parameters": f"{encoder['parameters'] / 1e6:.2f} M",
        "Images": f"{summary['images']:,}",
        "Image size": f"{summary['image_size']} px",
        "Encoding once": f"{summary['encoding_seconds']:.1f} s",
        "Training": f"{seconds:.1f} s",
        "Device": summary["device"],
    }
    if encoder["trained"]:
        facts["Trained with the head"] = f"{encoder['trained'] / 1e6:.2f} M in blocks"
        facts["Reading once"] = facts.pop("Encoding once")
    page.facts(facts)
    page.section("Results")
    definitions = summary["definitions"]
    page.text(
        f"Per cent. ACC: {definitions['acc']}. AUC: {definitions['auc']}. What follows ± and the interval: "
        f"{definitions['std']}."
    )
    said = f"{summary['head']} head" + (" (constant output)" if summary["constant"] else "")
    row: dict[str, Any] = {"Answer": said, "Guide": summary["guide"]}
    for name in ("acc", "auc"):
        row[name.upper()] = MeanStd(100 * scores[name]["value"], 100 * scores[name]["std"])
        if "low" in scores[name]:
            row[f"{name.upper()}, 95 %"] = f"{100 * scores[name]['low']:.2f} to {100 * scores[name]['high']:.2f}"
    floor = dict.fromkeys(row, "") | {"Answer": "commonest training answer for every case"}
    floor |= {name.upper(): 100 * value for name, value in summary["baselines"]["majority"].items()}
    page.table([row, floor])
    if summary["constant"]:
        page.note(summary["constant"], level="warning")
    if "folds" in scores["acc"]:
        page.table(
            [
                {"Fold": number, "ACC": 100 * acc, "AUC": 100 * auc}
                for number, (acc, auc) in enumerate(zip(scores["acc"]["folds"], scores["auc"]["folds"]), start=1)
            ]
        )
    for sentence in summary["warnings"]:
        page.note(sentence, level="warning")
    if summary["guide"] != "none":
        page.note(
            "The guide channel changes scores by itself. Compare with encoders that were given the same channel; the "
            f"floor is an untrained one: `{encoder['untrained']}`."
        )
    over = "; AUC is the mean over the folds" if "folds" in scores["acc"] else ""
    page.table(
        [
            {"Class": name, "Test cases": item["cases"], "Sensitivity": 100 * item["sensitivity"],
             "AUC": 100 * item["auc"]}
            for name, item in summary["per_class"].items()
        ],
        caption=f"Each class against the rest (per cent){over}.",
    )  # fmt: skip
    if summary["confusion"] is not None:
        picture = png_bytes(confusion_matrix(np.asarray(summary["confusion"]), summary["classes"]))
        write_bytes(root / "confusion.png", picture)
        page.figure(picture, "Test cases by true class (rows) and by the most probable class.")
    _add_training(page, root)
    page.section("Data")
    parts = summary["cases"]
    if parts is not None:
        page.table([{name.capitalize(): count for name, count in parts.items()}])
    left_out = f"{summary['unlabelled']:,} images without a label and {summary['left_out']:,} unreadable ones left out."
    page.text(f"Labels from {summary['labels']}. Split: {summary['split']}. {left_out}")
    page.section("How it was made")
    lines = (root / "cases.csv").read_text(encoding="utf-8").splitlines()
    more = len(lines) - 1 - _MOST_CASES_SHOWN
    shown = lines[: _MOST_CASES_SHOWN + 1] + ([f"({more:,} more in cases.csv)"] if more > 0 else [])
    page.code("Test cases", "\n".join(shown))
    page.code("Configuration", (root / CONFIG).read_text(encoding="utf-8"))
    versions = "\n".join(f"{name} {number}" for name, number in summary["versions"].items())
    page.code("Encoder and versions", f"{json.dumps(encoder, indent=2)}\n\n{versions}")
    return page.save(root / "report.html")


def _add_training(page: Page, root: Path) -> None:
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    folds = list(dict.fromkeys(line.get("fold") for line in lines))

    def curves(key: str, factor: float = 1) -> dict[str, Any]:
        found = {}
        for fold in folds:
            points = [
                (line["step"], factor * line[key])
                for line in lines
                if line.get("fold") == fold and line.get(key) is not None and math.isfinite(line[key])
            ]
            if points:
                found[f"fold {fold}" if fold is not None else key] = tuple(zip(*points))
        return found

    page.section("Training")
    losses = curves("loss")
    if losses:
        longest = max(len(x) for x, _ in losses.values())
        page.figure(loss_curves(losses, smooth=max(1, longest // 50)), "Training loss of the head.")
    else:
        page.text("Logistic regression solved to convergence: no steps were taken.")
    areas = curves("val_auc", 100)
    if areas and losses:
        page.figure(
            loss_curves(areas, ylabel="validation AUC (%)"),
            "Macro AUC of the validation images; the head of the highest point was kept.",
        )
