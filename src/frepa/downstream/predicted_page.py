"""The page about predictions: what was found in all scans, pictures of some, and which scans were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frepa.downstream.trained import TrainedHead
from frepa.images.scan import Skipped
from frepa.report.page import Page

_PICTURES, _LISTED = 12, 100
_NOT_FOUND = ("image", "mask", "boxes", "overlay", "probabilities", "notes", "files")


def write_page(
    path: Path, head: TrainedHead[Any], rows: Iterable[dict[str, Any]], skipped: Sequence[Skipped], device: str
) -> None:
    """Write the page; ``rows`` are the lines of ``predictions.csv``, gone through once and not kept."""
    count = 0
    numbers: dict[str, list[float]] = {}
    classes: Counter[str] = Counter()
    pictures, noted = list[tuple[str, str]](), list[tuple[str, str]]()
    for row in rows:
        count += 1
        for name, value in row.items():
            if name == "predicted":
                classes[str(value)] += 1
            elif name not in _NOT_FOUND and isinstance(value, int | float):
                numbers.setdefault(name, []).append(float(value))
        if "overlay" in row and len(pictures) < _PICTURES:
            pictures.append((row["image"], row["overlay"]))
        if row.get("notes") and len(noted) < _LISTED:
            noted.append((row["image"], row["notes"]))
    page = Page(f"Predictions: {head.task}", head.describe())
    page.facts(
        {
            "Scans": count,
            "Left out": len(skipped),
            "Heads": len(head.files),
            "Encoder": head.reference.weights[:12],
            "Device": device,
        }
    )
    page.section("What was found")
    if classes:
        page.table([{"Class": name, "Scans": found} for name, found in classes.most_common()])
    if numbers:
        page.table(
            [
                {
                    "Column": name,
                    "Scans above 0": sum(value > 0 for value in values),
                    "Smallest": min(values),
                    "Median": float(np.median(values)),
                    "Largest": max(values),
                }
                for name, values in numbers.items()
            ],
            caption="The columns of `predictions.csv` over all scans.",
        )
    page.section("Pictures")
    if pictures:
        for name, file in pictures:
            page.figure((path.parent / file).read_bytes(), name, wide=True)
    else:
        page.text("None were asked for: `--overlays` writes a picture of each scan with what was found.")
    if noted or skipped:
        page.section("To look at")
        if noted:
            page.table(noted, ["Scan", "What is odd"], caption="Predicted all the same.")
        if skipped:
            listed = [(entry.path, entry.reason) for entry in skipped[:_LISTED]]
            more = f" The first {_LISTED} of {len(skipped):,}." if len(skipped) > _LISTED else ""
            page.table(listed, ["Scan", "Reason"], caption=f"Left out, as `skipped.csv` has it.{more}")
    page.save(path)
