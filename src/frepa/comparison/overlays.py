"""The same test case as every encoder of a study saw it: masks side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from frepa.comparison.contents import encoder_content, task_sets
from frepa.comparison.scores import Scored
from frepa.comparison.study import Study, StudyTask
from frepa.datasets.labels import LabelMap
from frepa.datasets.reading import LabelledImage, read_case, read_scan
from frepa.downstream.segmentation.data import sets_under
from frepa.errors import InputError
from frepa.images.hidden_names import Names
from frepa.report.overlays import side_by_side

_MOST = 23


def overlays_of(study: Study, scored: Sequence[Scored], folder: Path, names: Names) -> list[tuple[str, Figure]]:
    """A caption and a figure per set of every segmentation task: its median case, one panel per row and head.

    The case is the median one of the first row that has scores. A task whose files are gone has no figure.
    """
    return [
        found
        for task in study.tasks
        if task.verb == "segment"
        for found in _of_task(task, [item for item in scored if item.cell.task.name == task.name], folder, names)
    ]


def _of_task(task: StudyTask, scored: Sequence[Scored], folder: Path, names: Names) -> Iterator[tuple[str, Figure]]:
    shown = {(item.cell.row.name, item.cell.head): item for item in reversed(scored) if item.sets}
    if not shown:
        return
    chosen = list(reversed(shown.values()))[:_MOST]
    for name, scores in chosen[0].sets.items():
        known = scores.of_cases["dsc"]
        order = np.argsort(np.where(np.isfinite(known), known, -1), kind="stable")
        order = order[np.isfinite(known[order])]
        if not order.size:
            continue
        case = scores.cases[order[(len(order) - 1) // 2]]
        try:
            read = _read(task, name, case, chosen[0], folder, names)
            panels = {
                _title(item, name, case): _prediction(item, name, case, folder, read.classes)
                for item in chosen
                if name in item.sets and case in item.sets[name].cases
            }
        except (OSError, InputError, ValueError, KeyError):
            continue  # the scores stand without a picture
        caption = f"{task.name}, {name}, case {case}: the median case of {chosen[0].cell.row.name}."
        if len(shown) > len(chosen):
            caption += f" The first {len(chosen)} of {len(shown)} rows."
        yield caption, side_by_side(read.image, read.classes, read.inside, panels)


def _title(item: Scored, name: str, case: str) -> str:
    scores = item.sets[name]
    value = 100 * float(scores.of_cases["dsc"][scores.cases.index(case)])
    head = f", {item.cell.head}" if item.cell.head else ""
    return f"{item.cell.row.name}{head}: {value:.1f} %"


def _labels(item: Scored, folder: Path) -> LabelMap:
    place = folder / item.cell.key
    # A baseline has no head, and tells it with its results.
    told = next(iter(sorted(place.rglob("head.json"))), place / "results.json")
    known = json.loads(told.read_text("utf-8"))["labels"]
    return LabelMap(tuple(known["values"]), known["threshold"])


def _read(task: StudyTask, name: str, case: str, item: Scored, folder: Path, names: Names) -> LabelledImage:
    """Image, classes and field of view of a case."""
    dims = encoder_content(item.cell.encoder).dims if item.cell.encoder else item.cell.content["dims"]
    sets = sets_under(task_sets(task, dims, item.cell.seed), names)
    found = next(one for own in sets if own.name == name for one in own.cases if one.name == case)
    return read_case(found, _labels(item, folder), dims, task.options.get("window"))


def _prediction(item: Scored, name: str, case: str, folder: Path, truth: np.ndarray) -> np.ndarray:
    """Classes that a cell found in a case, ``(*S)``."""
    labels = _labels(item, folder)
    for place in sorted((folder / item.cell.key).rglob("predictions")):
        for ending in (".png", ".nii.gz"):
            path = place / name / f"{case}{ending}"
            if path.is_file():
                values = read_scan(path, truth.ndim).array[0]
                return labels.to_classes(values, path.name)
    raise KeyError(case)
