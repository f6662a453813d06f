"""Test of a segmenter: every test case predicted at its own resolution, scored, and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from frepa.datasets.cases import Case
from frepa.datasets.reading import LabelledImage, read_case
from frepa.downstream.contract import Tested
from frepa.downstream.fitting import read_ahead
from frepa.downstream.segmentation.baselines import Baselines
from frepa.downstream.segmentation.data import LabelledCase, SegmentationData
from frepa.downstream.segmentation.metrics import score_case
from frepa.downstream.segmentation.model import Segmenter
from frepa.files import write_atomically
from frepa.images.filed import Filed, on_file
from frepa.images.orientation import reorient_header
from frepa.images.writing import write_nifti


@dataclass(frozen=True)
class CaseResult:
    """Scores of one test case, by set and name, and the file its prediction was written to.

    scores: see ``metrics.score_case``. baselines: DSC of what needs no encoder. constant: the class of all predicted
    pixels, None where they differ.
    """

    set_name: str
    name: str
    scores: dict[str, float]
    prediction: Path
    baselines: dict[str, float] = field(default_factory=dict)
    constant: int | None = None


@dataclass(frozen=True)
class TestedSegmenter(Tested[SegmentationData, Segmenter]):
    """One trained head on its test part, and the results of the cases; ``seconds`` of the test."""

    cases: list[CaseResult]
    seconds: float

    __test__ = False  # no test class

    def classes_of(self, image: np.ndarray) -> np.ndarray:
        """What is found in an image ``(C, *S)`` in [0, 1], ``(*S)`` uint8: as in the test."""
        return self.restored().predict(image).classes


def predict_and_score(
    segmenter: Segmenter,
    cases: Sequence[LabelledCase],
    folder: Path,
    *,
    baselines: Baselines | None = None,
    centreline: bool = False,
    workers: int = 2,
    quiet: bool = False,
) -> list[CaseResult]:
    """Predict and score all cases, in order; predictions go to ``folder/SET/CASE`` with the masks' own values."""

    def read(item: LabelledCase) -> LabelledImage:
        return read_case(item.case, item.labels, segmenter.encoder.dims, segmenter.settings.window)

    results = []
    bar = tqdm(total=len(cases), unit="case", desc="Testing", disable=quiet, dynamic_ncols=True)
    with bar:
        for item, labelled in zip(cases, read_ahead(read, cases, workers)):
            found = segmenter.predict(labelled.image).classes
            working = segmenter.working_size(labelled.classes.shape)
            floors = {} if baselines is None else baselines.scores(labelled, working)
            results.append(
                scored(item, labelled, found, folder, classes=segmenter.head.classes, floors=floors,
                       centreline=centreline)
            )  # fmt: skip
            bar.update()
    return results


def scored(
    item: LabelledCase,
    labelled: LabelledImage,
    found: np.ndarray,
    folder: Path,
    *,
    classes: int,
    floors: dict[str, float],
    centreline: bool,
) -> CaseResult:
    """Score the classes ``(*S)`` found in one case, and write them to ``folder/SET/CASE`` with the masks' own values.

    ``floors``: what needs no encoder scores there.
    """
    scores = score_case(labelled.classes, found, classes, inside=labelled.inside, centreline=centreline)
    target = folder / item.set_name / item.case.name
    target.parent.mkdir(parents=True, exist_ok=True)
    path = write_labels(target, *_in_file_axes(item.labels.to_values(found), item.case))
    only = int(found.flat[0]) if (found == found.flat[0]).all() else None
    return CaseResult(item.set_name, item.case.name, scores, path, floors, only)


def _in_file_axes(values: np.ndarray, case: Case) -> tuple[np.ndarray, Filed]:
    """Label values ``(*S)`` in the axes of the image's file, and the grid of that."""
    if values.ndim == 2:
        return values, Filed(values.shape, None)
    native = case.source.header(case.record)
    grid = Filed(tuple(native.size), native.affine, native.spacing)
    return on_file(values[None], reorient_header(native).affine, grid)[0], grid


def write_labels(target: Path, values: np.ndarray, grid: Filed) -> Path:
    """Write label values ``(*grid.size)``: PNG in 2D, NIfTI in 3D; returns the file written, ``target`` + ending."""
    if values.ndim == 2:
        from PIL import Image

        path = target.with_name(target.name + ".png")
        image = Image.fromarray(values if values.dtype == np.uint8 else values.astype(np.uint16))
        write_atomically(path, lambda temporary: image.save(temporary, format="PNG"), sync=False)
        return path
    return write_nifti(target.with_name(target.name + ".nii.gz"), values, grid.affine, spacing=grid.spacing, sync=False)
