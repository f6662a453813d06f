"""Trained heads on test images of which a growing part of the spectrum was removed (Frepa Fig. 1a)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from frepa.analysis.contract import Analysis, AnalysisPage, Found, Study, Subject
from frepa.analysis.heads import classifier_of, known_cases, segmenter_of, words
from frepa.analysis.registry import register_analysis
from frepa.analysis.views import spread
from frepa.corruption.spectrum import apply_transfer, high_pass, low_pass
from frepa.datasets.reading import read_case
from frepa.downstream.classification.data import ClassificationData, open_data
from frepa.downstream.classification.metrics import accuracy, macro_auc
from frepa.downstream.fitting import read_ahead
from frepa.downstream.scores import summarise
from frepa.downstream.segmentation.data import SegmentationData, check_sets, open_sets
from frepa.downstream.segmentation.metrics import score_case
from frepa.errors import InputError
from frepa.images.intensity import to_unit
from frepa.images.orientation import reorient
from frepa.images.scan import UnreadableScan
from frepa.report.page import MeanStd
from frepa.report.spectra import stepped_curves
from frepa.report.strips import picture_strip

#: An image (C, *S) float32 in [0, 1], and what is left of it.
Filter = Callable[[np.ndarray], np.ndarray]
#: Of one head and one filter: score by name with its spread, NaN where it has none.
Scores = dict[str, tuple[float, float]]
_BATCH = 16


@dataclass(frozen=True)
class FilteredOptions:
    """Accuracy or DSC of trained heads on high-passed and low-passed test images (Frepa Fig. 1a).

    Args:
        high: cut-offs of the high-pass 1 - exp(-d^2 / d_c^2), in cycles per pixel, rising.
        low: cut-offs of the low-pass exp(-d^2 / d_c^2), in cycles per pixel, falling.
        keep_mean: a high-passed image keeps its mean, so that it is as bright as the others.
        task: segmentation, classification, or auto: what the runs were trained for, else what the source has.
        mask_threshold: values of the set's masks above it are foreground; by default the values decide the classes.
    """

    high: str = "0.005,0.01,0.02,0.05,0.1"
    low: str = "0.4,0.2,0.1,0.05,0.02"
    keep_mean: bool = True
    task: str = "auto"
    mask_threshold: float | None = None


@register_analysis("filtered", FilteredOptions)
class Filtered(Analysis):
    """Heads trained on whole images, tested on images without their low, or their high, frequencies."""

    options: FilteredOptions
    title = "Filtered test images"
    question = "On which part of the spectrum does what is read from an encoder rest?"
    reads_runs = True

    def check(self) -> None:
        """See `Analysis`."""
        self.high = _cutoffs("--kind.high", self.options.high, rising=True)
        self.low = _cutoffs("--kind.low", self.options.low, rising=False)
        if self.options.task not in ("auto", "segmentation", "classification"):
            raise InputError(f"--kind.task {self.options.task}: expected segmentation, classification or auto.")

    def analyse(self, study: Study, page: AnalysisPage) -> Found:
        """See `Analysis`."""
        filters: dict[tuple[str, float], Filter] = {("none", 0.0): lambda image: image}
        filters |= {("high-pass", c): filter_of("high-pass", c, keep_mean=self.options.keep_mean) for c in self.high}
        filters |= {("low-pass", c): filter_of("low-pass", c) for c in self.low}
        task = self._task(study)
        found: dict[str, dict[tuple[str, float], Scores]] = {}
        chance: float | None = None
        if task == "segmentation":
            sets = open_sets([study.source], dims=study.dims, seed=study.seed)
            study.learn(sets)
            data = check_sets(sets, dims=study.dims, threshold=self.options.mask_threshold)
            study.parts.know(known_cases(data))
            for subject in study.subjects:
                test = partial(_segmented, subject, study, data, filters)
                found[subject.name] = study.part(test, task, subject=subject)
            example = _first_case(study, data)
            note, parts = data.sets[0].split_note, len(spread(data.part("test"), study.images))
        else:
            classes = open_data(study.source, dims=study.dims, seed=study.seed)
            study.names.learn(classes.source)
            rows = np.asarray(spread(classes.rows("test").tolist(), study.images), int)
            study.parts.know(classes.source, classes.classes, classes.records, classes.targets, classes.parts)
            for subject in study.subjects:
                test = partial(_classified, subject, study, classes, rows, filters)
                found[subject.name] = study.part(test, task, subject=subject)
            example = _image(classes, int(rows[0]), study)
            note, parts = classes.split_note, len(rows)
            chance = 100 * float(classes.targets[rows].mean(0).max()) if not classes.several else None
        study.inputs.update({"task": task, "split": note, "test": parts})
        self._fill(page, study, task, found, filters, example, chance, parts)
        numbers = {
            name: [
                {"filter": kind, "cutoff": cutoff, **{s: {"value": v, "std": d} for s, (v, d) in own.items()}}
                for (kind, cutoff), own in of.items()
            ]
            for name, of in found.items()
        }
        main = _MAIN[task]
        scores = {
            name: {f"{main}, {_word(key)}": own[main][0] for key, own in of.items()} for name, of in found.items()
        }
        return Found({"task": task, "encoders": numbers}, scores)

    def _task(self, study: Study) -> str:
        if self.options.task != "auto":
            return self.options.task
        trained = {subject.head.task for subject in study.subjects if subject.head is not None}
        if trained:
            return "segmentation" if "segmentation" in trained else "classification"
        try:
            open_sets([study.source], dims=study.dims, seed=study.seed)
        except InputError as error:
            try:
                open_data(study.source, dims=study.dims, seed=study.seed)
            except InputError:
                raise error from None
            return "classification"
        return "segmentation"

    def _fill(
        self,
        page: AnalysisPage,
        study: Study,
        task: str,
        found: dict[str, dict[tuple[str, float], Scores]],
        filters: dict[tuple[str, float], Filter],
        example: np.ndarray,
        chance: float | None,
        count: int,
    ) -> None:
        guided = any(subject.reference.guide != "none" for subject in study.subjects)
        page.text(
            "Heads are trained on whole images. Test images are filtered over their whole extent, before they are cut "
            "or resized: a high-pass takes low frequencies away, a low-pass high ones, both exponential and without "
            "ringing; the cut-off is where 63 % of a frequency's amplitude is gone (high-pass: left). "
            + ("A high-passed image keeps its mean. " if self.options.keep_mean else "")
            + ("The guide channel is made of the filtered image." if guided else "")
        )  # fmt: skip
        page.table(
            [{"Encoder": s.name, "Read by": words(s, _PROBES[task])} for s in study.subjects],
        )
        for kind, cutoffs in (("high-pass", self.high), ("low-pass", self.low)):
            keys = [("none", 0.0), *((kind, cutoff) for cutoff in cutoffs)]
            page.section(f"{kind.capitalize()}ed test images")
            page.show(
                f"{kind}-images",
                picture_strip({_word(key): filters[key](example) for key in keys}, spectra=True, columns=len(keys)),
                "One of the test images, and below it the logarithm of its spectrum.",
                wide=True,
            )
            for score, title in _TITLES[task].items():
                curves = {n: [100 * of[key][score][0] for key in keys] for n, of in found.items()}
                page.show(
                    f"{kind}-{score}",
                    stepped_curves(
                        curves, ["none", *(f"{cutoff:g}" for cutoff in cutoffs)],
                        xlabel=f"cut-off of the {kind} (cycles per pixel)", ylabel=f"{title} (%)",
                        chance=chance if score == "acc" else None,
                    ),
                    f"{title} on {count} test images."
                    + (" Dotted: the largest class alone." if score == "acc" and chance else ""),
                    wide=True,
                )  # fmt: skip
                page.table(
                    [
                        {"Encoder": name, **{_word(key): _cell(of[key][score]) for key in keys}}
                        for name, of in found.items()
                    ],
                    caption=f"{title} in %" + (", mean ± standard deviation over cases." if score == "dsc" else "."),
                )


_MAIN = {"segmentation": "dsc", "classification": "acc"}
_TITLES = {"segmentation": {"dsc": "DSC"}, "classification": {"acc": "Accuracy", "auc": "AUC"}}
_PROBES = {
    "segmentation": "a linear probe on its last map (ridge, closed form)",
    "classification": "logistic regression on its mean embedding",
}


def filter_of(kind: str, cutoff: float, *, keep_mean: bool = True) -> Filter:
    """The exponential ``high-pass`` or ``low-pass`` at a cut-off in cycles per pixel of the shortest axis."""

    def apply(image: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
        shape = tuple(x.shape[2:])
        found = apply_transfer(x, (high_pass if kind == "high-pass" else low_pass)(shape, cutoff))
        if kind == "high-pass" and keep_mean:
            found = found + x.mean(tuple(range(2, x.ndim)), keepdim=True)
        return found[0].numpy()

    return apply


def _segmented(
    subject: Subject,
    study: Study,
    data: SegmentationData,
    filters: dict[tuple[str, float], Filter],
) -> dict[tuple[str, float], Scores]:
    head, cases = segmenter_of(subject, study, data), spread(data.part("test"), study.images)
    found: dict[tuple[str, float], list[float]] = {key: [] for key in filters}
    reading = read_ahead(
        lambda item: read_case(item.case, item.labels, study.dims, head.window), cases, study.num_workers
    )
    for labelled in study.each(reading, f"{subject.name}: testing", len(cases)):
        for key, own in filters.items():
            classes = head.segment(own(labelled.image)).classes
            found[key].append(score_case(labelled.classes, classes, data.classes)["dsc"])
    return {key: {"dsc": (summarise(v).mean, summarise(v).std)} for key, v in found.items()}


def _classified(
    subject: Subject,
    study: Study,
    data: ClassificationData,
    rows: np.ndarray,
    filters: dict[tuple[str, float], Filter],
) -> dict[tuple[str, float], Scores]:
    head = classifier_of(subject, study, data)
    found: dict[tuple[str, float], list[np.ndarray]] = {key: [] for key in filters}
    kept: list[int] = []
    for part in study.each(range(0, len(rows), _BATCH), f"{subject.name}: testing"):
        images = {int(row): _unit(data, int(row), head.window) for row in rows[part : part + _BATCH]}
        there = [image for image in images.values() if image is not None]
        kept += [row for row, image in images.items() if image is not None]
        for key, own in filters.items():
            if there:
                found[key].append(head.classify_all([own(image) for image in there]))
    if len(kept) < len(rows):
        study.notes.append(f"{len(rows) - len(kept)} test images cannot be read and are left out.")
    targets = data.targets[kept]
    result: dict[tuple[str, float], Scores] = {}
    for key, parts in found.items():
        told = np.concatenate(parts) if parts else np.zeros((0, len(data.classes)))
        acc = accuracy(told, targets, several=data.several)
        result[key] = {"acc": (acc, math.nan), "auc": (macro_auc(told, targets), math.nan)}
    return result


def _unit(data: ClassificationData, row: int, window: str | None) -> np.ndarray | None:
    try:
        return to_unit(reorient(data.source.read(int(data.records[row]))), window=window)
    except UnreadableScan:
        return None


def _image(data: ClassificationData, row: int, study: Study) -> np.ndarray:
    found = _unit(data, row, study.window)
    return np.zeros((1, *(8,) * study.dims), np.float32) if found is None else found


def _first_case(study: Study, data: SegmentationData) -> np.ndarray:
    item = data.part("test")[0]
    return read_case(item.case, item.labels, study.dims, study.window).image


def _cutoffs(option: str, text: str, *, rising: bool) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if (
        not values
        or any(not 0 < value <= 1 for value in values)
        or list(values) != sorted(set(values), reverse=not rising)
    ):
        way = "rise" if rising else "fall"
        raise InputError(
            f"{option} {text}: expected numbers that {way}, above 0, in cycles per pixel, such as 0.02,0.1."
        )
    return values


def _word(key: tuple[str, float]) -> str:
    return "whole" if key[0] == "none" else f"{key[0]} {key[1]:g}"


def _cell(score: tuple[float, float]) -> float | MeanStd:
    value, std = score
    return 100 * value if math.isnan(std) else MeanStd(100 * value, 100 * std)
