"""A second human observer, where the set has one: how well people agree is the ceiling of every score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frepa.comparison.baselines.answering import Answer, answer_cases
from frepa.comparison.study import StudyTask
from frepa.datasets.opening import open_annotated
from frepa.datasets.reading import LabelledImage, read_mask
from frepa.downstream.segmentation.data import LabelledCase, SegmentationData
from frepa.errors import InputError

#: Name of the masks that the second observer drew, as the catalogue and layouts call them.
OPTIONS: dict[str, Any] = {"target": "second_observer"}


def second_observer(
    task: StudyTask,
    *,
    out: str,
    seed: int,
    options: Mapping[str, Any],
    dims: int,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """The second observer's masks scored against the first's."""
    target = options["target"]
    places: dict[tuple[str, str], Path] = {}
    for text in task.sources:
        known = open_annotated(text, dims, "mask", canonical=False)
        if not known.has(f"mask_{target}"):
            raise InputError(f"{text}: it has no masks of a second observer ({target}).")
        for row, place in enumerate(known.masks(target)):
            if place is not None:
                image = Path(known.source.folder or "", known.source.name(row))
                places[str(image), target] = Path(known.source.folder or "", place)

    def prepare(data: SegmentationData) -> tuple[Answer, Mapping[str, Any]]:
        missing = [item.case.name for item in data.part("test") if (str(item.case.image), target) not in places]
        if missing:
            raise InputError(f"{task.name}: {len(missing)} test cases have no mask of {target}, such as {missing[0]}.")

        def answer(item: LabelledCase, labelled: LabelledImage) -> np.ndarray:
            place = places[str(item.case.image), target]
            return item.labels.to_classes(read_mask(place, dims).array[0], place.name)

        return answer, {"target": target}

    return answer_cases(task, prepare, out=out, seed=seed, dims=dims, resume=resume, overwrite=overwrite)
