"""How much of small structures is found: by width of vessel and by size of lesion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from frepa.analysis.contract import Analysis, AnalysisPage, Found, Study
from frepa.analysis.heads import known_cases, words
from frepa.analysis.registry import register_analysis
from frepa.analysis.structure_measures import Counts, places_of, ranges
from frepa.analysis.structure_testing import Kind, Measured, TestCases, folders_of, labelled, of_folder, of_head
from frepa.analysis.views import spread
from frepa.downstream.scores import Summary, summarise
from frepa.downstream.segmentation.data import check_sets, open_sets
from frepa.errors import InputError
from frepa.report.overlays import segmentation_overlay
from frepa.report.page import MeanStd
from frepa.report.spectra import band_points
from frepa.report.strips import value_map


@dataclass(frozen=True)
class StructureOptions:
    """Sensitivity by width of vessel and by size of lesion, of heads on encoders or of predicted masks.

    Args:
        by: width (of tubes, from the distance transform on their centre lines), size (of connected components), or
            both.
        widths: where one range of widths ends and the next begins, in pixels, rising.
        sizes: the same of sizes, in pixels (voxels).
        widths_mm: the same of widths in mm, where the images say how large their pixels are; by default widths, as long
            as they are in the middle one of the test images.
        sizes_mm: the same of sizes, in mm² (mm³); by default sizes, as large as they are there.
        masks: folders with masks that were predicted before, as NAME=FOLDER, separated by commas; files are named as
            the images.
        mask_threshold: values of the set's masks above it are foreground; by default the values decide the classes.
    """

    by: str = "both"
    widths: str = "2,4,6,9,13"
    sizes: str = "30,100,300,1000,3000,10000"
    widths_mm: str | None = None
    sizes_mm: str | None = None
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
        given = {
            "width": (self.options.widths, self.options.widths_mm),
            "size": (self.options.sizes, self.options.sizes_mm),
        }
        self.edges = {
            kind: (_rising(f"--kind.{kind}s", text), None if mm is None else _rising(f"--kind.{kind}s-mm", mm))
            for kind, (text, mm) in given.items()
            if self.options.by in (kind, "both")
        }

    def analyse(self, study: Study, page: AnalysisPage) -> Found:
        """See `Analysis`."""
        folders = dict(folders_of(self.options.masks))
        if not study.subjects and not folders:
            raise InputError("--encoder missing: give one or more encoders, runs of frepa segment, or --kind.masks.")
        sets = open_sets([study.source], dims=study.dims, seed=study.seed)
        study.learn(sets)
        data = check_sets(sets, dims=study.dims, threshold=self.options.mask_threshold)
        cases = spread(data.part("test"), study.images)
        if not cases:
            raise InputError(f"{study.source}: has no test part, and nothing to look at.")
        study.parts.know(known_cases(data))
        test = TestCases(study, data, cases)
        test.kinds = self._kinds(test, study)
        self._example(page, test)
        # Not kept, because the masks may be others by then; and first, because they may not be there.
        predicted = {name: test.measure(partial(of_folder, own, study.dims), name) for name, own in folders.items()}
        measured: dict[str, Measured] = {}
        for subject in study.subjects:
            predict = partial(of_head, subject, study, data)
            measured[subject.name] = study.part(
                partial(test.measure, predict, subject.name), *((kind.key, kind.edges) for kind in test.kinds),
                subject=subject,
            )  # fmt: skip
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
        return self._report(study, page, test, measured, heads)

    def _kinds(self, test: TestCases, study: Study) -> list[Kind]:
        """What is measured: in pixels, and in millimetres where every test image says how large its pixels are."""
        pixels = "pixels" if study.dims == 2 else "voxels"
        kinds = [Kind(measure, edges, pixels) for measure, (edges, _) in self.edges.items()]
        if test.spacing is None:
            asked = next((f"--kind.{kind}s-mm" for kind, (_, mm) in self.edges.items() if mm is not None), None)
            if asked is not None:
                raise InputError(
                    f"{asked}: {test.silent} of {len(test.cases)} test images do not say how large their {pixels} are, "
                    "so that nothing can be given in millimetres. Leave the option out."
                )
            return kinds
        for measure, (edges, mm) in self.edges.items():
            power = 1 if measure == "width" else study.dims
            unit = ("mm", "mm²", "mm³")[power - 1]
            kinds.append(Kind(measure, mm or test.edges_in_mm(edges, power), unit, physical=True))
        return kinds

    def _example(self, page: AnalysisPage, test: TestCases) -> None:
        truth = labelled(test.first, test.first.classes)
        for kind in test.kinds:
            page.show(
                f"truth-{kind.key.replace('_', '-')}",
                value_map(test.values(0, truth, kind), test.first.image),
                f"{kind.measure.capitalize()} of what is labelled in the first test case, in {kind.unit}"
                + ("; colours by its logarithm." if kind.measure == "size" else "."),
            )

    def _report(
        self,
        study: Study,
        page: AnalysisPage,
        test: TestCases,
        measured: Mapping[str, Measured],
        heads: Mapping[str, str],
    ) -> Found:
        counts = {
            name: {kind: [Counts(*map(np.asarray, case)) for case in cases] for kind, cases in own["counts"].items()}
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
        page.text(_units(test))
        for kind in test.kinds:
            names, key = ranges(kind.edges), kind.key
            there = [
                place for place in range(len(names))
                if any(case.true[place] for of in counts.values() for case in of[key])
            ]  # fmt: skip
            found = {
                score: {name: {names[p]: summarise(share(of[key], p)) for p in there} for name, of in counts.items()}
                for score, (_, share, _) in _SHARES.items()
            }
            first = next(iter(counts.values()))[key]
            pixels = {names[p]: int(sum(case.true[p] for case in first)) for p in there}
            page.section(f"By {kind.measure} in {kind.unit}")
            page.text(_about(kind))
            names_there = [names[p] for p in there]
            for score, (title, _, caption) in _SHARES.items():
                page.show(
                    f"{score}-{key.replace('_', '-')}",
                    band_points(_points(found[score], names_there), ylabel=title, span=_SPAN),
                    caption.format(kind=kind.measure) + f" Ranges are in {kind.unit}.",
                    wide=True,
                )
            for score, (title, *_) in _SHARES.items():
                page.table(
                    [{"": name, **{bin_: _cell(own) for bin_, own in of.items()}} for name, of in found[score].items()]
                    + [{"": "pixels labelled", **pixels}],
                    caption=f"{title[0].upper()}{title[1:]} in % by {kind.measure} in {kind.unit}, mean ± standard "
                    "deviation over cases.",
                )
            numbers[key] = {
                "unit": kind.unit,
                "ranges": names_there,
                "pixels": pixels,
                **{
                    score: {n: {b: s._asdict() for b, s in of.items()} for n, of in own.items()}
                    for score, own in found.items()
                },
            }
            for score in ("dsc", "sensitivity"):
                for name, of in found[score].items():
                    headline[name] |= {f"{score}_{key}_{bin_}": own.mean for bin_, own in of.items()}
            if kind.measure == "size":
                detected = {name: _detected(test.lesions(own, kind), kind.edges) for name, own in measured.items()}
                numbers[key.replace("size", "lesions")] = dict(detected)
                page.table(
                    [{"": name, **{bin_: own["half"] for bin_, own in of.items()}} for name, of in detected.items()],
                    caption=f"Share of the components of each size in {kind.unit} of which at least half was found.",
                    digits=3,
                )
        numbers["dsc"] = {name: own._asdict() for name, own in dsc.items()}
        study.inputs["test"] = len(next(iter(scores.values())))
        study.inputs["split"] = test.data.sets[0].split_note
        study.inputs["spacing"] = None if test.spacing is None else [list(spacing) for spacing in test.spacing]
        return Found(numbers, headline)


_SPAN = (-0.02, 1.02)


def _units(test: TestCases) -> str:
    """What widths and sizes are in, for the page."""
    pixels, every = ("pixels" if test.first.image.ndim == 3 else "voxels"), len(test.cases)
    if test.spacing is None:
        who = "The test images do" if test.silent == every else f"{test.silent} of the {every} test images do"
        return f"{who} not say how large their {pixels} are: widths and sizes are in {pixels} alone."
    low, high = np.min(test.spacing, axis=0), np.max(test.spacing, axis=0)
    steps = [f"{a:.3g}" if a == b else f"{a:.3g} to {b:.3g}" for a, b in zip(low, high)]
    return (
        f"The test images say how large their {pixels} are ({' x '.join(steps)} mm): widths and sizes are given in "
        f"{pixels} and in millimetres."
    )


def _about(kind: Kind) -> str:
    one = {"pixels": "pixel", "voxels": "voxel"}.get(kind.unit, "pixel, as it is long in that direction")
    return {
        "width": f"The width of a vessel is twice the distance from its centre line to the nearest pixel outside, less "
        f"one {one}; every pixel has that of the nearest pixel of the centre line.",
        "size": "The size of a lesion is that of the pixels that hang together, over corners too.",
    }[kind.measure]


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
    which = places_of(size, edges)
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
