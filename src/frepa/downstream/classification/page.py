"""The page of a classification run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from frepa.downstream.page import RunPage
from frepa.files import write_bytes
from frepa.report.confusion import confusion_matrix
from frepa.report.figures import png_bytes
from frepa.report.page import MeanStd


def fill_page(page: RunPage, summary: Mapping[str, Any]) -> None:
    """Results; and ``confusion.png`` where classes exclude each other."""
    scores = summary["test"]
    once = "Reading once" if summary["encoder"]["trained"] else "Encoding once"
    seconds = summary.get("encoding_seconds")
    page.begin(
        f"{len(summary['classes'])} classes",
        {
            "Head": f"{summary['head']}, on the embedding",
            "Images": f"{summary['images']:,}",
            "Image size": f"{summary['image_size']} px",
            **({} if seconds is None else {once: f"{seconds:.1f} s"}),
        },
    )
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
    rows = [row]
    for known in summary["baselines"].values():
        floor = dict.fromkeys(row, "") | {"Answer": "commonest training answer for every case"}
        rows.append(floor | {name.upper(): 100 * value for name, value in known.items()})
    page.table(rows)
    if summary["constant"]:
        page.note(summary["constant"], level="warning")
    for name in ("folds", "seeds"):
        if name in scores["acc"]:
            pairs = enumerate(zip(scores["acc"][name], scores["auc"][name]), start=1)
            page.table([{name[:-1].capitalize(): n, "ACC": 100 * acc, "AUC": 100 * auc} for n, (acc, auc) in pairs])
    page.remarks("The guide channel changes scores by itself.")
    over = "; AUC is the mean over the heads" if len(summary["training"]) > 1 else ""
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
        write_bytes(page.root / "confusion.png", picture)
        page.figure(picture, "Test cases by true class (rows) and by the most probable class.")
    solved = ["Logistic regression solved to convergence: no steps were taken."] if summary["head"] == "linear" else []
    caption = "Macro AUC of the validation images"
    page.training("Training loss of the head.", "val_auc", "AUC", caption, solved)
    page.section("Data")
    parts = summary["cases"]
    if parts is not None:
        page.table([{name.capitalize(): count for name, count in parts.items() if count}])
    left_out = f"{summary['unlabelled']:,} images without a label and {summary['left_out']:,} unreadable ones left out."
    page.text(f"Labels from {summary['labels']}. Split: {summary['split']}. {left_out}")
