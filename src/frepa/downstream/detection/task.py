"""Detection with a frozen encoder: what ``frepa detect`` supplies to a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from frepa.downstream.contract import Place, Prepared, Progress, Round, Table, Task
from frepa.downstream.crops import CropPlan
from frepa.downstream.detection.baselines import usual_boxes
from frepa.downstream.detection.data import DetectionData, Reading, check, check_classes, open_boxes
from frepa.downstream.detection.metrics import CRITERIA, best_thresholds, score_detections
from frepa.downstream.detection.model import TASK, Detector
from frepa.downstream.detection.page import fill_page
from frepa.downstream.detection.summary import summarise_heads, tables, verdicts
from frepa.downstream.detection.testing import (
    TestedDetector,
    find_in,
)
from frepa.downstream.detection.training import (
    DetectionOptions,
    build_detector,
    cut_findings,
    plan_training,
    train_detector,
)
from frepa.downstream.page import RunPage
from frepa.downstream.windowed import check_cacheable
from frepa.encoders.contract import Encoder
from frepa.errors import InputError


class Detection(Task[DetectionData, Detector, TestedDetector]):
    """Boxes around findings; writes ``findings.csv``, a line per box found, and ``overlays/`` besides."""

    name = TASK
    verb = "detect"
    unit = "image"
    options: DetectionOptions

    def __init__(self, options: DetectionOptions) -> None:
        self.options = options
        self.criterion = options.criterion or "centre"

    def open(self, dims: int, progress: Progress) -> DetectionData:
        """Images and boxes, every image's header looked at. The criterion follows from the kind of findings."""
        options, workers = self.options, self.options.run.num_workers
        assert isinstance(options.data.source, str)
        data = open_boxes(
            options.data.source,
            dims=dims,
            seed=options.run.seed,
            how=options.data.how,
            mask_threshold=options.mask_threshold,
            workers=workers,
            progress=progress,
        )
        data = check(data, workers=workers, progress=progress)
        self.criterion = options.criterion or ("sphere" if data.spheres else "centre")
        return data

    def check(self, data: DetectionData, where: str) -> list[str]:
        """Classes that cannot be learnt or tested, and what was odd about the boxes."""
        sentences = check_classes(data, where)
        if not data.targets[data.rows("test")].any():
            raise InputError(
                f"{data.source.location}{where}: no test image has a finding, so nothing can be measured. Divide "
                "otherwise (--split random, another --seed)."
            )
        return [*data.warnings, *sentences]

    def build(self, encoder: Encoder, data: DetectionData, seed: int, device: torch.device) -> Detector:
        """A detector whose grid and typical box are those of the training part's findings."""
        return build_detector(encoder, data, self.options, seed, device)

    def prepare(self, models: Sequence[Detector], data: DetectionData) -> Prepared:
        """Are features worth keeping, where they are to be kept; and are findings larger than a window."""
        for model in models:
            if model.cache is not None:
                crops = CropPlan(model.settings.crop, 0, augment=bool(self.options.fit.augment))
                names = map(data.source.name, data.records.tolist())
                check_cacheable(crops, zip(names, map(model.working_size, data.shapes)))
        return Prepared({}, list(cut_findings(models[0], data)))

    def describe(self, divided: Sequence[DetectionData]) -> Iterable[str]:
        """Findings, classes, parts."""
        data = divided[0]
        findings = sum(int((boxes.classes >= 0).sum()) for boxes in data.boxes)
        kinds = f"{len(data.classes)} classes" if len(data.classes) > 1 else "one class"
        yield (
            f"{self.options.data.source}: {findings:,} findings of {kinds} ({'; '.join(data.classes[:8])}) in "
            f"{len(data.records):,} images, from {data.origin}."
        )
        counts = "" if len(divided) > 1 else ", ".join(f"{n:,} {part}" for part, n in data.sizes().items()) + ". "
        yield f"{counts}Split: {data.split_note}."

    def plan_sentences(self, model: Detector, data: DetectionData) -> Iterable[str]:
        """Window, grid, and what a hit is."""
        crop, cells = (" x ".join(map(str, numbers)) for numbers in (model.settings.crop, model.head.step))
        yield f"Windows of {crop} px, one answer per {cells} px. A hit: {CRITERIA[self.criterion].words}."

    def train_and_test(self, model: Detector, data: DetectionData, round: Round, place: Place) -> TestedDetector:
        """Train, choose the thresholds on the validation part, save, and search the test images."""
        workers, quiet = self.options.run.num_workers, self.options.run.quiet
        stream, plan = plan_training(model, data, self.options, round.seed)
        reading = Reading(data, model.settings.window)
        training = train_detector(
            model,
            reading,
            stream,
            plan,
            place.metrics,
            marks=round.marks,
            states=place.states,
            workers=workers,
            quiet=quiet,
        )
        # Where nothing can be validated, the threshold comes from the images that were trained on.
        chosen_on = "val" if data.targets[data.rows("val")].any() else "train"
        known = find_in(model, reading, chosen_on, workers=workers, quiet=quiet)
        thresholds = tuple(best_thresholds([item.case for item in known], len(data.classes), self.criterion))
        model.settings = replace(model.settings, thresholds=thresholds)
        extra = {"best_step": training.best_step, "threshold_from": chosen_on, "criterion": self.criterion}
        extra["usual"] = {name: part.tolist() for name, part in usual_boxes(data)._asdict().items()}
        model.save(place.folder, place.reference, {**extra, **round.kept})
        cases = find_in(model, reading, "test", workers=workers, quiet=quiet)
        if not cases:
            first = next(iter(reading.unreadable.values()))
            raise InputError(f"{data.source.location}: no test image can be read. {first.path}: {first.reason}")
        scores = score_detections(
            [item.case for item in cases],
            data.classes,
            criterion=self.criterion,
            thresholds=thresholds,
            groups=[data.groups[item.row] for item in cases],
            seed=self.options.run.seed,
        )
        return TestedDetector(
            round, place, data, model, training, thresholds, cases, scores, unreadable=reading.unreadable
        )

    def summarise(self, tested: Sequence[TestedDetector]) -> dict[str, Any]:
        """See `summary.summarise_heads`."""
        return summarise_heads(tested, self.criterion)

    def tables(self, tested: Sequence[TestedDetector]) -> Iterable[Table]:
        """A line per test image, and a line per box."""
        return tables(tested, self.criterion)

    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: Sequence[TestedDetector]) -> None:
        """See `page.fill_page`."""
        fill_page(page, summary, tested, window=self.options.data.window)

    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """CPM, sensitivity and precision, AP; detection ratio where most images have one finding."""
        return verdicts(summary)
