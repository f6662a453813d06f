"""Detection with a frozen encoder: what ``frepa detect`` supplies to a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from frepa.downstream.contract import CASE_COLUMNS, Place, Prepared, Progress, Round, Table, Task, over_words
from frepa.downstream.crops import CropPlan
from frepa.downstream.detection.baselines import NAME, constant_answer, usual_precision
from frepa.downstream.detection.data import DetectionData, Reading, check, check_classes, open_boxes
from frepa.downstream.detection.metrics import CRITERIA, best_thresholds, mostly_single, score_detections
from frepa.downstream.detection.model import TASK, Detector
from frepa.downstream.detection.page import fill_page
from frepa.downstream.detection.testing import (
    SCORE_COLUMNS,
    TestedDetector,
    case_row,
    find_in,
    finding_rows,
    found_columns,
)
from frepa.downstream.detection.training import (
    VALIDATION_AP,
    DetectionOptions,
    build_detector,
    cut_findings,
    plan_training,
    train_detector,
)
from frepa.downstream.division import numbered
from frepa.downstream.page import RunPage
from frepa.downstream.scores import DDOF, over_heads, summarise
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
            split=options.data.split,
            divide_by=options.data.divide_by,
            seed=options.run.seed,
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
                crops = CropPlan(model.settings.crop, 0, augment=self.options.fit.augment)
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
        """Scores of one head with their spread over resamples, or of several heads over these."""
        data, rounds, several = tested[0].data, [item.round for item in tested], len(tested) > 1
        constant = constant_answer([case.case for item in tested for case in item.cases])
        notes = dict.fromkeys(note for item in tested for note in item.training.notes)
        return {
            "head": "conv",
            "features": "last",
            "boxes": data.origin,
            "split": data.split_note,
            "classes": list(data.classes),
            "images": len(data.records),
            "cases": None if tested[0].round.fold else data.sizes(),
            "criterion": self.criterion,
            "grid_step": tested[0].model.head.step,
            "crop": tested[0].model.settings.crop,
            "test": _over_heads(tested) if several else tested[0].scores,
            "baselines": {"usual": {level: _usual(tested, level) for level in ("ap_10", "ap_50", "ap_50_95")}},
            "constant": constant,
            "thresholds": [item.thresholds for item in tested],
            "definitions": {
                "criterion": CRITERIA[self.criterion].words,
                "marks": "of several boxes on one finding the best counts and the others are ignored; at most the 100 "
                "best per image and class; boxes on ignored findings are dropped (LUNA16)",
                "cpm": "mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image (LUNA16)",
                "threshold": "the score of best F1 on the validation images",
                "usual": NAME,
                "ap": "average precision, COCO's definition",
                "top_one": "Of images with one finding the best box alone: its IoU (0 if there is none), and the share "
                "whose centre lies in the finding, or whose IoU is 0.5 or more",
                "std": f"over {over_words(rounds)}, ddof {DDOF}" if several else "over resamples of the test groups",
                "unit": "fraction in [0, 1]; false positives per image",
            },
            "warnings": [*_blind(tested), *notes, *([constant] if constant else [])],
        }

    def tables(self, tested: Sequence[TestedDetector]) -> Iterable[Table]:
        """A line per test image, and a line per box."""
        data = tested[0].data
        columns, groups = [*CASE_COLUMNS, *SCORE_COLUMNS], numbered(data.groups)
        rows = [
            {"group": groups[case.row], **item.round.kept, **case_row(case, item.thresholds, self.criterion)}
            for item in tested
            for case in item.cases
        ]
        yield Table("cases.csv", columns, rows)
        found = [
            {**item.round.marks, **row}
            for item in tested
            for case in item.cases
            for row in finding_rows(case, data.classes, item.thresholds)
        ]
        yield Table("findings.csv", [*tested[0].round.marks, *found_columns(data.source.dims)], found)

    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: Sequence[TestedDetector]) -> None:
        """See `page.fill_page`."""
        fill_page(page, summary, tested, window=self.options.data.window)

    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """CPM, sensitivity and precision, AP; detection ratio where most images have one finding."""
        mean, top = summary["test"]["mean"], summary["test"]["top_one"]
        cpm, key = mean["cpm"], VALIDATION_AP[summary["encoder"]["dims"]]
        over = "resamples" if "low" in cpm else "folds" if "folds" in cpm else "seeds"
        text = (
            f"CPM {100 * cpm['value']:.2f} ± {100 * cpm['std']:.2f} % (± over {over}), sensitivity "
            f"{_shown(mean['sensitivity'])}, precision {_shown(mean['precision'])}, AP at IoU "
            f"{'0.5' if key == 'ap_50' else '0.1'} {_shown(mean[key])}"
        )
        if mostly_single(summary["test"]):
            text += (
                f"; of images with one finding: IoU {_shown(top['iou']['mean'])}, detection ratio "
                f"{_shown(top['centre_ratio'])}"
            )
        floor = summary["baselines"]["usual"][key]
        text = f"{text} (guide: {summary['guide']}). Without an encoder: usual box AP {_shown(floor)}."
        yield f"{text} {summary['constant']}" if summary["constant"] else text


def _usual(tested: Sequence[TestedDetector], level: str) -> float:
    return summarise(usual_precision(item.data, item.cases, level) for item in tested).mean


def _over_heads(tested: Sequence[TestedDetector]) -> dict[str, Any]:
    """Mean and standard deviation over heads of every score, with the scores of each fold and seed."""
    folds, seeds = [item.round.fold for item in tested], [item.round.seed for item in tested]

    def spread(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Mapping):
            if "value" in values[0]:
                return spread([value["value"] for value in values])
            return {name: spread([value[name] for value in values]) for name in values[0] if name != "froc"}
        if isinstance(values[0], int | float):
            return over_heads(values, folds, seeds)
        return values[0]

    parts = {name: spread([item.scores[name] for item in tested]) for name in ("mean", "per_class", "top_one")}
    counts = {name: sum(item.scores[name] for item in tested) // len(set(seeds)) for name in ("images", "findings")}
    return {"criterion": tested[0].scores["criterion"], **counts, **parts}


def _blind(tested: Sequence[TestedDetector]) -> Iterable[str]:
    """Which classes have no threshold, and in which heads."""
    for k, name in enumerate(tested[0].data.classes):
        blind = [item.round for item in tested if math.isnan(item.thresholds[k])]
        if blind:
            where = "; ".join(one.words for one in blind)
            yield (
                f"No box hit a finding of {name} on the images the threshold is chosen on{where and f' ({where})'}: "
                "there is no threshold, and sensitivity and precision count no box as found. CPM and average precision "
                "need none."
            )


def _shown(score: Any) -> str:
    value = score["value"] if isinstance(score, Mapping) else score
    return f"{100 * value:.2f} %" if math.isfinite(value) else "not defined"
