"""Segmentation with a frozen encoder: what ``frepa segment`` supplies to a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from frepa.downstream.contract import Place, Prepared, Progress, Round, Table, Task
from frepa.downstream.crops import CropPlan
from frepa.downstream.division import SHARES
from frepa.downstream.page import RunPage
from frepa.downstream.segmentation.data import SegmentationData, check_sets, open_sets
from frepa.downstream.segmentation.model import TASK, Segmenter
from frepa.downstream.segmentation.page import fill_page
from frepa.downstream.segmentation.summary import summarise, tables, verdicts
from frepa.downstream.segmentation.testing import TestedSegmenter, predict_and_score
from frepa.downstream.segmentation.training import SegmentationOptions, build_segmenter, plan_training, train_head
from frepa.downstream.windowed import check_cacheable
from frepa.encoders.contract import Encoder
from frepa.user_paths import as_list

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
        sets = open_sets(as_list(data.source), dims=dims, seed=run.seed, how=data.how)
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
                check_cacheable(CropPlan(model.settings.crop, 0, augment=self.options.fit.augment is not False), sizes)
        return Prepared({}, [])

    def describe(self, divided: Sequence[SegmentationData]) -> Iterable[str]:
        """Sets, parts, and what the masks mean."""
        for item in divided[0].sets:
            parts = ", ".join(f"{len(item.part(part))} {part}" for part in SHARES)
            counts = f"{len(item.cases)} cases" if len(divided) > 1 else parts
            yield f"{item.name} ({item.layout}): {counts}. Split: {item.split_note}."
            yield from divided[0].about(item)

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
        extra["baselines"] = baselines.kept()
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
        """See `summary.summarise`."""
        return summarise(tested)

    def tables(self, tested: Sequence[TestedSegmenter]) -> Iterable[Table]:
        """A line per test case and head."""
        return tables(tested)

    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: Sequence[TestedSegmenter]) -> None:
        """See `page.fill_page`."""
        fill_page(page, summary, tested)

    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """DSC of every set."""
        return verdicts(summary)
