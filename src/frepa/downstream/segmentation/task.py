"""Segmentation with a frozen encoder: what ``frepa segment`` supplies to a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from frepa.datasets.catalogue.records import sample
from frepa.downstream.contract import CASE_COLUMNS, Place, Prepared, Progress, Round, Table, Task
from frepa.downstream.crops import CropPlan
from frepa.downstream.division import SHARES
from frepa.downstream.page import RunPage
from frepa.downstream.scores import DDOF, over_heads, summarise_cases
from frepa.downstream.segmentation.baselines import NAMES, constant_answer
from frepa.downstream.segmentation.data import SegmentationData, check_sets, open_sets
from frepa.downstream.segmentation.model import TASK, Segmenter
from frepa.downstream.segmentation.page import fill_page
from frepa.downstream.segmentation.testing import CaseResult, TestedSegmenter, predict_and_score
from frepa.downstream.segmentation.training import SegmentationOptions, build_segmenter, plan_training, train_head
from frepa.downstream.windowed import check_cacheable
from frepa.encoders.contract import Encoder

PREDICTIONS = "predictions"


class Segmentation(Task[SegmentationData, Segmenter, TestedSegmenter]):
    """A class for every pixel; writes ``predictions/`` and ``overlays/`` besides."""

    name = TASK
    verb = "segment"
    unit = "case"
    options: SegmentationOptions

    def __init__(self, options: SegmentationOptions) -> None:
        self.options = options

    def open(self, dims: int, progress: Progress) -> SegmentationData:
        """The sets, every mask read once; those given together are trained on together and reported apart."""
        data, run = self.options.data, self.options.run
        sources = [data.source] if isinstance(data.source, str) else data.source
        sets = open_sets(sources, dims=dims, split=data.split, seed=run.seed, divide_by=data.divide_by)
        threshold = self.options.mask_threshold
        return check_sets(sets, dims=dims, threshold=threshold, workers=run.num_workers, progress=progress)

    def check(self, data: SegmentationData, where: str) -> list[str]:
        """Nothing beyond what opening the sets looked at."""
        return []

    def build(self, encoder: Encoder, data: SegmentationData, seed: int, device: torch.device) -> Segmenter:
        """A segmenter for the classes of the sets."""
        return build_segmenter(encoder, data, self.options, seed, device)

    def prepare(self, models: Sequence[Segmenter], data: SegmentationData) -> Prepared:
        """Are features worth keeping, where they are to be kept."""
        for model in models:
            if model.cache is not None:
                sizes = ((str(image), model.working_size(size)) for image, size in data.sizes.items())
                check_cacheable(CropPlan(model.settings.crop, 0, augment=self.options.fit.augment), sizes)
        return Prepared({}, [])

    def describe(self, divided: Sequence[SegmentationData]) -> Iterable[str]:
        """Sets, parts, and what the masks mean."""
        for item in divided[0].sets:
            parts = ", ".join(f"{len(item.part(part))} {part}" for part in SHARES)
            counts = f"{len(item.cases)} cases" if len(divided) > 1 else parts
            yield f"{item.name} ({item.layout}): {counts}. Split: {item.split_note}."
            yield f"{item.name}: {divided[0].labels[item.name].describe()}."
            for sentence in item.notes:
                yield f"{item.name}: {sentence.rstrip('.')}."
            if item.unpaired:
                shown = sample(item.unpaired)
                yield f"{item.name}: {len(item.unpaired):,} images without a mask are left out: {shown}."

    def plan_sentences(self, model: Segmenter, data: SegmentationData) -> Iterable[str]:
        """Steps and crops."""
        if self.options.head == "linear":
            yield "Linear head in closed form: nothing is drawn at random, no step is taken."
            return
        stream, plan = plan_training(model, data, self.options, self.options.run.seed)
        crop, steps = " x ".join(map(str, plan.crops.size)), len(plan.rates)
        yield (
            f"{steps:,} steps of {plan.batch_size} crops of {crop}, "
            f"{steps * plan.batch_size / stream.length:.1f} epochs of {stream.length:,} crops."
        )

    def train_and_test(self, model: Segmenter, data: SegmentationData, round: Round, place: Place) -> TestedSegmenter:
        """Train, save, then predict and score every test case at its own resolution."""
        workers, quiet = self.options.run.num_workers, self.options.run.quiet
        training, baselines = train_head(
            model,
            data.part("train"),
            data.part("val"),
            *plan_training(model, data, self.options, round.seed),
            place.metrics,
            marks=round.marks,
            states=place.states,
            workers=workers,
            quiet=quiet,
        )
        extra = {"best_step": training.best_step, "sets": [item.name for item in data.sets]}
        model.save(place.folder, place.reference, {**extra, **round.kept})
        since = time.perf_counter()
        results = predict_and_score(
            model,
            data.part("test"),
            place.folder / PREDICTIONS,
            baselines=baselines,
            centreline=self.options.cldice,
            workers=workers,
            quiet=quiet,
        )
        return TestedSegmenter(round, place, data, model, training, results, time.perf_counter() - since)

    def summarise(self, tested: Sequence[TestedSegmenter]) -> dict[str, Any]:
        """Scores of every set over its test cases; of several seeds each case counts with its mean."""
        data, folds = tested[0].data, tested[0].round.fold is not None
        sets = {}
        for item in data.sets:
            sets[item.name] = {
                "layout": item.layout,
                "split": item.split_note,
                "cases": {"test": len(item.cases)} if folds else {part: len(item.part(part)) for part in SHARES},
                "images_without_mask": len(item.unpaired),
                "labels": data.labels[item.name].describe(),
                "class_names": list(data.labels[item.name].names),
                "pairs": list(item.notes),
                "test": summarise_cases(_by_case(tested, item.name, lambda case: case.scores)),
                "baselines": summarise_cases(_by_case(tested, item.name, lambda case: case.baselines)),
                "constant": constant_answer(
                    [case.constant for one in tested for case in one.cases if case.set_name == item.name]
                ),
            }
            if len(tested) > 1:
                sets[item.name]["heads"] = _spread(tested, item.name)
        return {
            "head": tested[0].model.head.kind,
            "features": tested[0].model.features,
            "classes": data.classes,
            "sets": sets,
            "definitions": {
                "dsc": "2|P and G| / (|P| + |G|) per case, mean over the classes labelled in the case, whole image",
                "_fov": "the same inside the field of view",
                "std": f"over cases, ddof {DDOF}",
                "baselines": NAMES,
                "skipped": "cases in which neither truth nor prediction has anything",
                "unit": "fraction in [0, 1]",
            },
            "test_seconds": sum(item.seconds for item in tested),
            "warnings": list(dict.fromkeys(note for item in tested for note in item.training.notes)),
        }

    def tables(self, tested: Sequence[TestedSegmenter]) -> Iterable[Table]:
        """A line per test case and head."""
        groups = tested[0].data.group_numbers()
        every = [(item.round, case) for item in tested for case in item.cases]
        names = list(dict.fromkeys(name for _, case in every for name in case.scores))
        rows = [
            {
                "set": case.set_name,
                "case": case.name,
                "group": groups[case.set_name, case.name],
                **one.kept,
                **case.scores,
            }
            for one, case in every
        ]
        yield Table("cases.csv", ["set", *CASE_COLUMNS, *names], rows)

    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: Sequence[TestedSegmenter]) -> None:
        """See `page.fill_page`."""
        fill_page(page, summary, tested)

    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """DSC of every set."""
        how = f"guide: {summary['guide']}; {summary['head']} head on {summary['features']}"
        for name, item in summary["sets"].items():
            scores, floors, dsc = item["test"], item["baselines"], item["test"]["dsc"]
            spread = f" ± {100 * dsc.std:.2f}" if math.isfinite(dsc.std) else ""
            text = f"{name}: DSC {100 * dsc.mean:.2f}{spread} % over {dsc.cases} test cases ({how})"
            if "dsc_fov" in scores:
                text += f"; inside the field of view {100 * scores['dsc_fov'].mean:.2f} %"
            text += f"; {dsc.skipped} cases have nothing to find and are left out." if dsc.skipped else "."
            if floors:
                shown = ", ".join(f"{key} {100 * floor.mean:.1f}" for key, floor in floors.items())
                text += f" Without an encoder: {shown}."
            yield f"{text} {item['constant']}" if item["constant"] else text


def _by_case(
    tested: Sequence[TestedSegmenter], name: str, scores: Callable[[CaseResult], Mapping[str, float]]
) -> list[Mapping[str, float]]:
    """Scores of each case of a set; of one that several seeds tested their mean."""
    cases: dict[str, list[Mapping[str, float]]] = {}
    for item in tested:
        for case in item.cases:
            if case.set_name == name:
                cases.setdefault(case.name, []).append(scores(case))
    return [own[0] if len(own) == 1 else _means(own) for own in cases.values()]


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {score: summary.mean for score, summary in summarise_cases(scores).items()}


def _spread(tested: Sequence[TestedSegmenter], name: str) -> dict[str, Any]:
    """Every score's mean over the cases of each head, over folds and seeds."""
    each = [_means([case.scores for case in item.cases if case.set_name == name]) for item in tested]
    folds, seeds = [item.round.fold for item in tested], [item.round.seed for item in tested]
    scores = dict.fromkeys(score for means in each for score in means)
    return {score: over_heads([means.get(score, math.nan) for means in each], folds, seeds) for score in scores}
