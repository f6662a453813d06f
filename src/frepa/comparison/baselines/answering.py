"""Segmentation without a network: whatever answers a case, scored and written as ``frepa segment`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frepa.comparison.contents import task_sets
from frepa.comparison.study import StudyTask
from frepa.datasets.reading import LabelledImage, read_case
from frepa.downstream.contract import CASE_COLUMNS
from frepa.downstream.scores import summarise_cases
from frepa.downstream.segmentation.data import LabelledCase, SegmentationData, check_sets
from frepa.downstream.segmentation.testing import CaseResult, scored
from frepa.errors import InputError
from frepa.files import write_csv, write_json
from frepa.images.hidden_names import naming
from frepa.run_folders import out_folder

#: Answers a case: its classes ``(*S)`` uint8.
Answer = Callable[[LabelledCase, LabelledImage], np.ndarray]


def read(item: LabelledCase, task: StudyTask, dims: int) -> LabelledImage:
    """Image and classes of a case as the task's options say."""
    return read_case(item.case, item.labels, dims, task.options.get("window"))


def answer_cases(
    task: StudyTask,
    prepare: Callable[[SegmentationData], tuple[Answer, Mapping[str, Any]]],
    *,
    out: str,
    seed: int,
    dims: int,
    resume: bool,
    overwrite: bool,
) -> Path:
    """Answer every test case of a task; ``prepare`` may look at the training and validation part of each division.

    Writes ``predictions``, ``cases.csv`` and ``results.json`` into ``out``; what ``prepare`` tells goes into the last.

    Raises:
        InputError: the task's data do not suit; ``prepare`` says so.
    """
    options = task.options
    with (
        naming(task.anonymous, task.sources, keep=[out]) as names,
        out_folder(out, "compare", overwrite=overwrite, resume=resume, key=names.key) as folder,
    ):
        data = check_sets(task_sets(task, dims, seed), dims=dims, threshold=options.get("mask_threshold"), workers=0)
        folds = options.get("folds")
        divided = data.folds(folds, seed) if folds else [data]
        results: list[tuple[int | None, CaseResult]] = []
        told = []
        folder.start({} if names.hidden else {"source": task.sources})
        for number, part in enumerate(divided, start=1):
            answer, said = prepare(part)
            told.append(dict(said))
            for item, named in zip(part.part("test"), part.under(names).part("test")):
                labelled = read(item, task, dims)
                found = answer(item, labelled)
                results.append(
                    (
                        number if folds else None,
                        scored(
                            named,
                            labelled,
                            found,
                            folder.root / "predictions",
                            classes=data.classes,
                            floors={},
                            centreline=bool(options.get("cldice")),
                        ),
                    )
                )
        _write(folder.root, data.under(names), results, seed, told)
    return Path(out)


def _write(
    root: Path, data: SegmentationData, results: list[tuple[int | None, CaseResult]], seed: int, told: list[Any]
) -> None:
    if not results:
        raise InputError("no test case could be answered.")
    groups = data.group_numbers()
    names = list(dict.fromkeys(name for _, case in results for name in case.scores))
    rows = [
        {"set": case.set_name, "case": case.name, "group": groups[case.set_name, case.name], "fold": fold,
         "seed": seed, **case.scores}
        for fold, case in results
    ]  # fmt: skip
    write_csv(root / "cases.csv", ["set", *CASE_COLUMNS, *names], rows)
    sets = {
        item.name: {"test": summarise_cases(case.scores for _, case in results if case.set_name == item.name)}
        for item in data.sets
    }
    labels = data.labels[data.sets[0].name]
    kept = {"values": list(labels.values), "threshold": labels.threshold}
    write_json(root / "results.json", {"task": "segmentation", "sets": sets, "labels": kept, "chosen": told})
