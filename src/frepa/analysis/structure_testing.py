"""The test cases of an analysis of small structures: what is measured of each, in pixels and in millimetres."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from frepa.analysis.contract import Study, Subject
from frepa.analysis.heads import segmenter_of
from frepa.analysis.own_names import named
from frepa.analysis.structure_measures import MEASURES, components, count, pixel_size, placed
from frepa.datasets.layouts.pairing import stem
from frepa.datasets.reading import LabelledImage, header_of, read_case, read_mask
from frepa.downstream.fitting import read_ahead
from frepa.downstream.segmentation.data import LabelledCase, SegmentationData
from frepa.downstream.segmentation.metrics import score_case
from frepa.errors import InputError

#: Classes of an image (C, *S) in [0, 1], uint8 (*S); a case by name for masks that were predicted before.
Predict = Callable[[LabelledCase, LabelledImage], np.ndarray]
_NONE = torch.zeros(0)
# Bytes of places of pixels that are held for the next encoder.
_HELD = 1e9


@dataclass(frozen=True)
class Kind:
    """What structures are told apart by.

    Attributes:
        measure: width or size.
        edges: part the ranges; each begins one.
        unit: pixels (voxels), or mm, mm², mm³.
        physical: measured by what a pixel is in millimetres.
    """

    measure: str
    edges: tuple[float, ...]
    unit: str
    physical: bool = False

    @property
    def key(self) -> str:
        """Its name among the numbers."""
        return f"{self.measure}_mm" if self.physical else self.measure


class Measured(TypedDict):
    """Of one way: by kind and case the numbers of `Counts`; by case the components; DSC; the first case's classes."""

    counts: dict[str, list[list[list[int]]]]
    lesions: list[list[tuple[float, float]]]
    scores: list[float]
    first: Tensor


class TestCases:
    """The test cases. In which range each pixel is, is found once for all ways, as far as the memory set aside goes.

    Attributes:
        first: the first of them.
        spacing: millimetres per axis of each case; None unless all say it.
        silent: cases that do not.
        kinds: what is measured; see `Kind`.
    """

    def __init__(self, study: Study, data: SegmentationData, cases: Sequence[LabelledCase]) -> None:
        self.study, self.data, self.cases = study, data, cases
        self.first = self._read(cases[0])
        found = [_spacing(item) for item in cases]
        given = [spacing for spacing in found if spacing is not None]
        self.silent = len(found) - len(given)
        self.spacing = None if self.silent else given
        self.kinds: list[Kind] = []
        self._places: dict[tuple[int, str], np.ndarray] = {}

    def measure(self, ready: Callable[[], Predict], name: str) -> Measured:
        """What is found by the way that ``ready`` makes."""
        predict = ready()
        found: Measured = {"counts": {kind.key: [] for kind in self.kinds}, "lesions": [], "scores": [], "first": _NONE}
        reading = read_ahead(self._read, self.cases, self.study.num_workers)
        for number, (item, image) in enumerate(
            zip(self.cases, self.study.each(reading, f"{name}: testing", len(self.cases)))
        ):
            classes = predict(item, image)
            if number == 0:
                found["first"] = torch.from_numpy(np.ascontiguousarray(classes))
            found["scores"].append(float(score_case(image.classes, classes, self.data.classes)["dsc"]))
            truth, told = labelled(image, image.classes), labelled(image, classes)
            for kind in self.kinds:
                own = count(truth, told, self._placed(number, truth, kind), len(kind.edges) + 1)
                found["counts"][kind.key].append([own.true.tolist(), own.found.tolist(), own.predicted.tolist()])
            if any(kind.measure == "size" for kind in self.kinds):
                found["lesions"].append(components(truth, told))
        return found

    def values(self, number: int, truth: np.ndarray, kind: Kind) -> np.ndarray:
        """Width or size of every pixel of a case, in the unit of ``kind``; 0 outside."""
        return MEASURES[kind.measure](truth, self._spacing_for(number, kind))

    def lesions(self, own: Measured, kind: Kind) -> list[tuple[float, float]]:
        """Size of all components in the unit of ``kind``, and the share of each that was found."""
        return [
            (size * pixel_size(self._spacing_for(number, kind)), share)
            for number, case in enumerate(own["lesions"])
            for size, share in case
        ]

    def edges_in_mm(self, edges: Sequence[float], power: int) -> tuple[float, ...]:
        """Edges in pixels as millimetres (to the ``power``) of the middle one of the cases, in two digits."""
        assert self.spacing is not None
        pixel = float(np.median([pixel_size(spacing) ** (1 / len(spacing)) for spacing in self.spacing])) ** power
        return tuple(dict.fromkeys(float(f"{edge * pixel:.2g}") for edge in edges))

    def _spacing_for(self, number: int, kind: Kind) -> tuple[float, ...] | None:
        return self.spacing[number] if kind.physical and self.spacing is not None else None

    def _read(self, item: LabelledCase) -> LabelledImage:
        return read_case(item.case, item.labels, self.study.dims, self.study.window)

    def _placed(self, number: int, truth: np.ndarray, kind: Kind) -> np.ndarray:
        if (number, kind.key) in self._places:
            return self._places[number, kind.key]
        found = placed(self.values(number, truth, kind), kind.edges, self._spacing_for(number, kind))
        if sum(places.nbytes for places in self._places.values()) < _HELD:
            self._places[number, kind.key] = found
        return found


def _spacing(item: LabelledCase) -> tuple[float, ...] | None:
    """Millimetres per axis of a case as it is read; None where its file does not say."""
    header = header_of(item.case.source, item.case.record)
    found = None if header.spacing is None else tuple(header.spacing)[-len(header.size) :]
    usable = found is not None and len(found) == len(header.size) and all(0 < step < math.inf for step in found)
    return found if usable else None


def labelled(image: LabelledImage, classes: np.ndarray) -> np.ndarray:
    """Where anything is labelled within the field of view."""
    return (classes > 0) if image.inside is None else (classes > 0) & image.inside


def folders_of(text: str | None) -> list[tuple[str, Path]]:
    found = []
    for part in (text or "").split(","):
        if part.strip():
            name, folder = named(part.strip())
            if not Path(folder).is_dir():
                raise InputError(f"--kind.masks {folder}: there is no such folder. Give NAME=FOLDER, or the folder.")
            found.append((name or Path(folder).name, Path(folder)))
    return found


def of_head(subject: Subject, study: Study, data: SegmentationData) -> Predict:
    head = segmenter_of(subject, study, data)
    return lambda item, image: head.segment(image.image).classes


def of_folder(folder: Path, dims: int) -> Predict:
    """Masks by the names of the cases, wherever below the folder."""
    files = {stem(path): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def predict(item: LabelledCase, image: LabelledImage) -> np.ndarray:
        path = files.get(item.case.name)
        if path is None:
            raise InputError(f"--kind.masks {folder}: holds no mask for the test case {item.case.name}.")
        array = read_mask(path, dims).array[0]
        if array.shape != image.classes.shape:
            raise InputError(
                f"--kind.masks: {path} is {' x '.join(map(str, array.shape))}, and its image is "
                f"{' x '.join(map(str, image.classes.shape))}."
            )
        return item.labels.to_classes(array, str(path))

    return predict
