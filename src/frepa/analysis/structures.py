"""How much of small structures is found: by width of vessel and by size of lesion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from frepa.analysis.contract import Analysis, AnalysisPage, Found, Study, Subject
from frepa.analysis.heads import known_cases, segmenter_of, words
from frepa.analysis.own_names import named
from frepa.analysis.registry import register_analysis
from frepa.analysis.structure_measures import MEASURES, Counts, components, count, placed, ranges
from frepa.analysis.views import spread
from frepa.datasets.layouts.pairing import stem
from frepa.datasets.reading import LabelledImage, read_case, read_mask
from frepa.downstream.fitting import read_ahead
from frepa.downstream.scores import Summary, summarise
from frepa.downstream.segmentation.data import LabelledCase, SegmentationData, check_sets, open_sets
from frepa.downstream.segmentation.metrics import score_case
from frepa.errors import InputError
from frepa.report.overlays import segmentation_overlay
from frepa.report.page import MeanStd
from frepa.report.spectra import band_points
from frepa.report.strips import value_map

#: Classes of an image (C, *S) in [0, 1], uint8 (*S); a case by name for masks that were predicted before.
Predict = Callable[[LabelledCase, LabelledImage], np.ndarray]


@dataclass(frozen=True)
class StructureOptions:
    """Sensitivity by width of vessel and by size of lesion, of heads on encoders or of predicted masks.

    Args:
        by: width (of tubes, from the distance transform on their centre lines), size (of connected components), or
            both.
        widths: where one range of widths ends and the next begins, in pixels, rising.
        sizes: the same of sizes, in pixels (voxels).
        masks: folders with masks that were predicted before, as NAME=FOLDER, separated by commas; files are named as
            the images.
        mask_threshold: values of the set's masks above it are foreground; by default the values decide the classes.
    """

    by: str = "both"
    widths: str = "2,4,6,9,13"
    sizes: str = "30,100,300,1000,3000,10000"
    masks: str | None = None
    mask_threshold: float | None = None


@register_analysis("structures", StructureOptions)
class Structures(Analysis):
    """What share of the pixels of thin vessels, and of small lesions, is found."""

    options: StructureOptions
    title = "Small structures"
    question = "How much of thin vessels and small lesions is found?"
    least = 0
    reads_runs = True

    def check(self) -> None:
        """See `Analysis`."""
        if self.options.by not in ("width", "size", "both"):
            raise InputError(f"--kind.by {self.options.by}: expected width, size or both.")
        self.kinds: dict[str, tuple[float, ...]] = {}
        for kind, text in (("width", self.options.widths), ("size", self.options.sizes)):
            if self.options.by in (kind, "both"):
                self.kinds[kind] = _rising(f"--kind.{kind}s", text)

    def analyse(self, study: Study, page: AnalysisPage) -> Found:
        """See `Analysis`."""
        folders = dict(_folders(self.options.masks))
        if not study.subjects and not folders:
            raise InputError("--encoder missing: give one or more encoders, runs of frepa segment, or --kind.masks.")
        sets = open_sets([study.source], dims=study.dims, seed=study.seed)
        study.learn(sets)
        data = check_sets(sets, dims=study.dims, threshold=self.options.mask_threshold)
        cases = spread(data.part("test"), study.images)
        if not cases:
            raise InputError(f"{study.source}: has no test part, and nothing to look at.")
        study.parts.know(known_cases(data))
        test = _Test(study, data, cases, self.kinds)
        self._example(page, test.first)
        # Not kept, because the masks may be others by then; and first, because they may not be there.
        predicted = {name: test.measure(partial(_of_folder, own, study.dims), name) for name, own in folders.items()}
        measured: dict[str, _Measured] = {}
        for subject in study.subjects:
            predict = partial(_of_head, subject, study, data)
            measured[subject.name] = study.part(partial(test.measure, predict, subject.name), subject=subject)
        measured |= predicted
        heads = {subject.name: words(subject, "a linear probe on its last map") for subject in study.subjects}
        heads |= {name: f"masks in {folder}" for name, folder in folders.items()}
        for way, (name, own) in enumerate(measured.items(), start=1):
            first = test.first
            page.show(
                f"case-{way}",
                segmentation_overlay(first.image, first.classes, own["first"].numpy(), inside=first.inside),
                f"{name}: the first test case.",
            )
        return self._report(study, page, data, measured, heads)

    def _example(self, page: AnalysisPage, image: LabelledImage) -> None:
        truth = _inside(image, image.classes)
        for kind in self.kinds:
            values = MEASURES[kind](truth)
            page.show(
                f"truth-{kind}",
                value_map(values, image.image),
                f"{kind.capitalize()} of what is labelled in the first test case, in pixels"
                + ("; colours by its logarithm." if kind == "size" else "."),
            )

    def _report(
        self,
        study: Study,
        page: AnalysisPage,
        data: SegmentationData,
        measured: Mapping[str, _Measured],
        heads: Mapping[str, str],
    ) -> Found:
        counts = {
            name: {kind: [Counts(*map(np.asarray, case)) for case in own["counts"][kind]] for kind in self.kinds}
            for name, own in measured.items()
        }
        scores = {name: own["scores"] for name, own in measured.items()}
        page.section("Scores")
        dsc = {name: summarise(values) for name, values in scores.items()}
        page.table(
            [
                {"": name, "Read by": heads[name], "DSC (%)": _cell(own), "Test cases": own.cases}
                for name, own in dsc.items()
            ],
            caption="All that is labelled, whole image, native resolution; mean and standard deviation over cases.",
            best={"DSC (%)": "max"},
        )  # fmt: skip
        numbers: dict[str, dict[str, object]] = {}
        headline: dict[str, dict[str, float]] = {name: {"dsc": own.mean} for name, own in dsc.items()}
        for kind, edges in self.kinds.items():
            names = ranges(edges)
            there = [
                place for place in range(len(names))
                if any(case.true[place] for of in counts.values() for case in of[kind])
            ]  # fmt: skip
            found = {
                score: {name: {names[p]: summarise(share(of[kind], p)) for p in there} for name, of in counts.items()}
                for score, (_, share, _) in _SHARES.items()
            }
            first = next(iter(counts.values()))[kind]
            pixels = {names[p]: int(sum(case.true[p] for case in first)) for p in there}
            page.section(f"By {kind}")
            page.text(_ABOUT[kind])
            names_there = [names[p] for p in there]
            for score, (title, _, caption) in _SHARES.items():
                page.show(
                    f"{score}-{kind}",
                    band_points(_points(found[score], names_there), ylabel=title, span=_SPAN),
                    caption.format(kind=kind),
                    wide=True,
                )
            for score, (title, *_) in _SHARES.items():
                page.table(
                    [{"": name, **{bin_: _cell(own) for bin_, own in of.items()}} for name, of in found[score].items()]
                    + [{"": "pixels labelled", **pixels}],
                    caption=f"{title[0].upper()}{title[1:]} in % by {kind} in pixels, mean ± standard deviation over "
                    "cases.",
                )
            numbers[kind] = {
                "ranges": names_there,
                "pixels": pixels,
                **{
                    score: {n: {b: s._asdict() for b, s in of.items()} for n, of in own.items()}
                    for score, own in found.items()
                },
            }
            for score in ("dsc", "sensitivity"):
                for name, of in found[score].items():
                    headline[name] |= {f"{score}_{kind}_{bin_}": own.mean for bin_, own in of.items()}
        if "size" in self.kinds:
            detected = {name: _detected(own["lesions"], self.kinds["size"]) for name, own in measured.items()}
            numbers["lesions"] = dict(detected)
            rows = [{"": name, **{bin_: own["half"] for bin_, own in of.items()}} for name, of in detected.items()]
            page.table(rows, caption="Share of the components of each size of which at least half was found.", digits=3)
        numbers["dsc"] = {name: own._asdict() for name, own in dsc.items()}
        study.inputs["test"] = len(next(iter(scores.values())))
        study.inputs["split"] = data.sets[0].split_note
        return Found(numbers, headline)


_SPAN = (-0.02, 1.02)
_NONE = torch.zeros(0)
# Bytes of places of pixels that are held for the next encoder.
_HELD = 1e9
_ABOUT = {
    "width": "The width of a vessel is twice the distance from its centre line to the nearest pixel outside, less one; "
    "every pixel has that of the nearest pixel of the centre line.",
    "size": "The size of a lesion is the number of pixels that hang together, over corners too.",
}


class _Measured(TypedDict):
    """Of one way: by kind and case the numbers of `Counts`; components; DSC; the first case's classes."""

    counts: dict[str, list[list[list[int]]]]
    lesions: list[tuple[float, float]]
    scores: list[float]
    first: Tensor


class _Test:
    """The test cases. In which range each pixel is, is found once for all ways, as far as the memory set aside goes."""

    def __init__(
        self, study: Study, data: SegmentationData, cases: Sequence[LabelledCase], kinds: Mapping[str, Sequence[float]]
    ) -> None:
        self.study, self.data, self.cases, self.kinds = study, data, cases, kinds
        self.first = self._read(cases[0])
        self._places: dict[int, dict[str, np.ndarray]] = {}

    def measure(self, ready: Callable[[], Predict], name: str) -> _Measured:
        """What is found by the way that ``ready`` makes."""
        predict = ready()
        found: _Measured = {"counts": {kind: [] for kind in self.kinds}, "lesions": [], "scores": [], "first": _NONE}
        reading = read_ahead(self._read, self.cases, self.study.num_workers)
        for number, (item, image) in enumerate(
            zip(self.cases, self.study.each(reading, f"{name}: testing", len(self.cases)))
        ):
            classes = predict(item, image)
            if number == 0:
                found["first"] = torch.from_numpy(np.ascontiguousarray(classes))
            found["scores"].append(float(score_case(image.classes, classes, self.data.classes)["dsc"]))
            truth, told = _inside(image, image.classes), _inside(image, classes)
            for kind, places in self._placed(number, truth).items():
                own = count(truth, told, places, len(self.kinds[kind]) + 1)
                found["counts"][kind].append([own.true.tolist(), own.found.tolist(), own.predicted.tolist()])
            if "size" in self.kinds:
                found["lesions"] += components(truth, told)
        return found

    def _read(self, item: LabelledCase) -> LabelledImage:
        return read_case(item.case, item.labels, self.study.dims, self.study.window)

    def _placed(self, number: int, truth: np.ndarray) -> dict[str, np.ndarray]:
        if number in self._places:
            return self._places[number]
        found = {kind: placed(MEASURES[kind](truth), edges) for kind, edges in self.kinds.items()}
        if sum(places.nbytes for own in self._places.values() for places in own.values()) < _HELD:
            self._places[number] = found
        return found


def _inside(image: LabelledImage, classes: np.ndarray) -> np.ndarray:
    """Where anything is labelled within the field of view."""
    return (classes > 0) if image.inside is None else (classes > 0) & image.inside


def _ratios(pairs: Iterable[tuple[float, float]]) -> list[float]:
    """NaN in cases that have nothing of a range."""
    return [float(part / whole) if whole else math.nan for part, whole in pairs]


def _sensitivity(cases: Sequence[Counts], place: int) -> list[float]:
    return _ratios((case.found[place], case.true[place]) for case in cases)


def _precision(cases: Sequence[Counts], place: int) -> list[float]:
    return _ratios((case.found[place], case.predicted[place]) for case in cases)


def _dice(cases: Sequence[Counts], place: int) -> list[float]:
    return _ratios((2 * case.found[place], case.true[place] + case.predicted[place]) for case in cases)


#: Score -> what it is called, how it is counted, and what its figure shows.
_SHARES: dict[str, tuple[str, Callable[[Sequence[Counts], int], list[float]], str]] = {
    "dsc": (
        "DSC",
        _dice,
        (
            "DSC by {kind}, of the pixels that are nearest to structures of it: a head that marks more finds more of "
            "everything, and here it pays for that. Mean over cases, bars are standard deviations."
        ),
    ),
    "sensitivity": (
        "sensitivity",
        _sensitivity,
        "Share of the pixels of each {kind} that is found: mean over cases, bars are standard deviations.",
    ),
    "precision": (
        "precision",
        _precision,
        (
            "Share of what was predicted nearest to structures of each {kind} that is true: what a high sensitivity "
            "was paid with."
        ),
    ),
}


def _points(of: Mapping[str, Mapping[str, Summary]], names: Sequence[str]) -> dict[str, dict[str, tuple[float, float]]]:
    return {bin_: {name: (own[bin_].mean, own[bin_].std) for name, own in of.items()} for bin_ in names}


def _cell(summary: Summary) -> MeanStd:
    return MeanStd(100 * summary.mean, 100 * summary.std)


def _detected(found: Sequence[tuple[float, float]], edges: Sequence[float]) -> dict[str, dict[str, float]]:
    """Of each range of sizes: how many components, share of which half was found, share of which a pixel was found."""
    size, share = np.asarray(found).reshape(-1, 2).T
    which = np.digitize(size, edges)
    result = {}
    for place, name in enumerate(ranges(edges)):
        own = share[which == place]
        if len(own):
            result[name] = {"components": len(own), "half": float((own >= 0.5).mean()), "any": float((own > 0).mean())}
    return result


def _rising(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or any(not 0 < a < math.inf for a in values) or any(a >= b for a, b in itertools.pairwise(values)):
        raise InputError(f"{option} {text}: expected numbers above 0 that rise, such as 2,4,8.")
    return values


def _folders(text: str | None) -> list[tuple[str, Path]]:
    found = []
    for part in (text or "").split(","):
        if part.strip():
            name, folder = named(part.strip())
            if not Path(folder).is_dir():
                raise InputError(f"--kind.masks {folder}: there is no such folder. Give NAME=FOLDER, or the folder.")
            found.append((name or Path(folder).name, Path(folder)))
    return found


def _of_head(subject: Subject, study: Study, data: SegmentationData) -> Predict:
    head = segmenter_of(subject, study, data)
    return lambda item, image: head.segment(image.image).classes


def _of_folder(folder: Path, dims: int) -> Predict:
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
