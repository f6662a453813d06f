"""Detection with a frozen encoder, from options to a run folder: data, head, training, test, report."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from frepa.downstream.detection.baselines import NAME, constant_answer, usual_precision
from frepa.downstream.detection.building import build_detector, cut_findings, plan_training
from frepa.downstream.detection.data import DetectionData, check, check_classes, open_boxes
from frepa.downstream.detection.metrics import CRITERIA, best_thresholds, score_detections
from frepa.downstream.detection.model import Detector
from frepa.downstream.detection.page import mostly_single, write_report
from frepa.downstream.detection.reading import Reading
from frepa.downstream.detection.testing import CASE_COLUMNS, FoundCase, case_row, find_in, finding_rows, found_columns
from frepa.downstream.detection.training import VALIDATION_AP, DetectorTraining, train_detector
from frepa.downstream.frozen import open_cache
from frepa.downstream.resuming import head_folder
from frepa.downstream.segmentation.metrics import DDOF, summarise
from frepa.downstream.windowed import check_cacheable, check_window_options
from frepa.encoders.reference import EncoderReference, open_encoder, weights_hash
from frepa.errors import InputError
from frepa.files import write_csv, write_json
from frepa.images.scan import Skipped
from frepa.machine import default_device, device_name, versions
from frepa.run_folders import OutFolder


@dataclass(frozen=True)
class Tested:
    """One trained head on its test part: which fold (None without), its training, thresholds, and what it found.

    ``unreadable`` images, by record, were met on the way and left out.
    """

    fold: int | None
    data: DetectionData
    training: DetectorTraining
    thresholds: tuple[float, ...]
    cases: list[FoundCase]
    scores: dict[str, Any]
    unreadable: dict[int, Skipped]


def run_detection(options: Mapping[str, Any]) -> Path:
    """Run ``frepa detect`` with its resolved options; returns the run folder.

    The folder holds ``head.safetensors`` + ``head.json`` (of every fold, under ``folds/``, where there are folds),
    ``config.yaml``, ``metrics.jsonl``, ``results.json``, ``cases.csv``, ``findings.csv``, ``skipped.csv``,
    ``overlays/`` and ``report.html``. Scores in the files are fractions in [0, 1]; the report shows percent.

    Raises:
        InputError: anything the user can mend.
    """
    _check(options)
    with head_folder(options, "detect") as out:
        _run(options, out)
    return out.root


def _run(options: Mapping[str, Any], out: OutFolder) -> None:
    root = out.root
    encoder, reference = open_encoder(options["encoder"])
    quiet, workers = options["quiet"], options["num_workers"]

    def progress(items: Iterable, total: int) -> Iterable:
        return tqdm(items, total=total, unit="image", desc="Checking images and boxes", disable=quiet, leave=False)

    data = open_boxes(
        options["source"],
        dims=encoder.dims,
        split=options["split"],
        seed=options["seed"],
        mask_threshold=options["mask_threshold"],
        workers=workers,
        progress=progress,
    )
    data = check(data, workers=workers, progress=progress)
    divided = data.folds(options["folds"], options["seed"]) if options["folds"] else [data]
    warnings = list(data.warnings)
    for number, part in enumerate(divided, start=1):
        warnings += _check_findings(part, f", fold {number}" if options["folds"] else "")
    criterion = options["criterion"] or ("sphere" if data.spheres else "centre")
    device = default_device()
    detectors = [build_detector(encoder, part, options, device) for part in divided]
    warnings += cut_findings(detectors[0], data)
    cache = open_cache(options["feature_cache"], encoder)
    for detector, part in zip(detectors, divided):
        detector.cache = cache
        if cache is not None:
            names = map(data.source.name, part.records.tolist())
            sizes = zip(names, map(detector.working_size, part.shapes))
            check_cacheable(plan_training(detector, part, options)[1].crops, sizes)

    out.start({name: value for name, value in options.items() if name not in ("overwrite", "quiet")})
    for sentence in [*_announce(reference, divided, detectors[0], criterion, options, device), *warnings]:
        tqdm.write(sentence, file=sys.stderr)
    fresh = detectors[0].trained_state()
    tested = []
    for number, (detector, part) in enumerate(zip(detectors, divided), start=1):
        # The blocks of a slice transfer are one object for all folds: every fold begins with them untrained.
        _begin_again(detector, fresh)
        fold = number if options["folds"] else None
        folder = root / "folds" / str(fold) if fold else root
        folder.mkdir(parents=True, exist_ok=True)
        tested.append(_train_and_test(detector, part, fold, folder, root, reference, criterion, options))
    if weights_hash(encoder) != reference.weights:
        raise RuntimeError("the frozen encoder's weights changed during training: this is a defect of frepa")
    warnings += [*_blind(tested), *dict.fromkeys(note for item in tested for note in item.training.notes)]
    constant = constant_answer([found.case for item in tested for found in item.cases])
    if constant:
        warnings.append(constant)
    broken = {skipped.path: skipped for item in tested for skipped in item.unreadable.values()}
    left_out = [*data.left_out, *broken.values()]
    summary = summarise_run(reference, tested, detectors[0], criterion, options, device)
    summary |= {"left_out": len(left_out), "warnings": warnings, "constant": constant}
    write_json(root / "results.json", summary)
    write_csv(root / "skipped.csv", ["image", "reason"], [{"image": s.path, "reason": s.reason} for s in left_out])
    folds = ["fold"] if tested[0].fold is not None else []
    rows = [{"fold": item.fold, **case_row(case, item.thresholds, criterion)} for item in tested for case in item.cases]
    write_csv(root / "cases.csv", [*folds, *CASE_COLUMNS], rows)
    found = [
        {"fold": item.fold, **row}
        for item in tested
        for case in item.cases
        for row in finding_rows(case, data.classes, item.thresholds)
    ]
    write_csv(root / "findings.csv", [*folds, *found_columns(encoder.dims)], found)
    write_report(root, summary, tested, window=options["window"])
    tqdm.write(_verdict(summary), file=sys.stderr)


def _train_and_test(
    detector: Detector,
    data: DetectionData,
    fold: int | None,
    folder: Path,
    root: Path,
    reference: EncoderReference,
    criterion: str,
    options: Mapping[str, Any],
) -> Tested:
    workers, quiet = options["num_workers"], options["quiet"]
    stream, plan = plan_training(detector, data, options)
    reading = Reading(data, detector.settings.window)
    training = train_detector(
        detector, reading, stream, plan, root / "metrics.jsonl", fold=fold, workers=workers, quiet=quiet
    )
    # Where nothing can be validated, the threshold comes from the images that were trained on.
    chosen_on = "val" if data.targets[data.rows("val")].any() else "train"
    known = find_in(detector, reading, chosen_on, workers=workers, quiet=quiet)
    thresholds = tuple(best_thresholds([item.case for item in known], len(data.classes), criterion))
    detector.settings = replace(detector.settings, thresholds=thresholds)
    detector.save(folder, reference, {"best_step": training.best_step, "fold": fold, "threshold_from": chosen_on})
    cases = find_in(detector, reading, "test", workers=workers, quiet=quiet)
    if not cases:
        first = next(iter(reading.unreadable.values()))
        raise InputError(f"{data.source.location}: no test image can be read. {first.path}: {first.reason}")
    groups = [data.groups[item.row] for item in cases]
    scores = score_detections(
        [item.case for item in cases],
        data.classes,
        criterion=criterion,
        thresholds=thresholds,
        groups=groups,
        seed=options["seed"],
    )
    return Tested(fold, data, training, thresholds, cases, scores, reading.unreadable)


def _begin_again(detector: Detector, fresh: dict[str, torch.Tensor]) -> None:
    """Put back what of the encoder trains as it was; the head is the detector's own and untrained still."""
    own = detector.trained_state()
    heads = set(detector.head.state_dict())
    detector.load_trained_state({name: own[name] if name in heads else fresh[name] for name in own})


def summarise_run(
    reference: EncoderReference,
    tested: Sequence[Tested],
    detector: Detector,
    criterion: str,
    options: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """What ``results.json`` holds."""
    data = tested[0].data
    return {
        "task": "detection",
        "encoder": reference.as_dict(),
        "guide": reference.guide,
        "head": "conv",
        "features": "last",
        "source": str(options["source"]),
        "boxes": data.origin,
        "split": data.split_note,
        "classes": list(data.classes),
        "images": len(data.records),
        "cases": None if tested[0].fold else data.sizes(),
        "criterion": criterion,
        "grid_step": detector.head.step,
        "crop": detector.settings.crop,
        "test": tested[0].scores if tested[0].fold is None else over_folds(tested),
        "baselines": {"usual": {level: _usual(tested, level) for level in ("ap_10", "ap_50", "ap_50_95")}},
        "thresholds": [item.thresholds for item in tested],
        "definitions": {
            "criterion": CRITERIA[criterion].words,
            "marks": "of several boxes on one finding the best counts and the others are ignored; at most the 100 best "
            "per image and class; boxes on ignored findings are dropped (LUNA16)",
            "cpm": "mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image (LUNA16)",
            "threshold": "the score of best F1 on the validation images",
            "usual": NAME,
            "ap": "average precision, COCO's definition",
            "top_one": "Of images with one finding the best box alone: its IoU (0 if there is none), and the share "
            "whose centre lies in the finding, or whose IoU is 0.5 or more",
            "std": f"over folds, ddof {DDOF}" if tested[0].fold else "over resamples of the test groups",
            "unit": "fraction in [0, 1]; false positives per image",
        },
        "training": [{"fold": item.fold, **asdict(item.training)} for item in tested],
        "device": device_name(device),
        "versions": versions(),
    }


def _usual(tested: Sequence[Tested], level: str) -> float:
    return summarise(usual_precision(item.data, item.cases, level) for item in tested).mean


def over_folds(tested: Sequence[Tested]) -> dict[str, Any]:
    """Mean and standard deviation over folds of every score, with the scores of each."""
    first = tested[0].scores

    def spread(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Mapping):
            if "value" in values[0]:
                return spread([value["value"] for value in values])
            return {name: spread([value[name] for value in values]) for name in values[0] if name != "froc"}
        if isinstance(values[0], int | float):
            over = summarise(values)
            return {"value": over.mean, "std": over.std, "folds": list(values)}
        return values[0]

    parts = {name: spread([item.scores[name] for item in tested]) for name in ("mean", "per_class", "top_one")}
    counts = {name: sum(item.scores[name] for item in tested) for name in ("images", "findings")}
    return {"criterion": first["criterion"], **counts, **parts}


def _blind(tested: Sequence[Tested]) -> Iterable[str]:
    """Which classes have no threshold, and in which folds."""
    for k, name in enumerate(tested[0].data.classes):
        blind = [item for item in tested if math.isnan(item.thresholds[k])]
        if blind:
            folds = ", ".join(str(item.fold) for item in blind)
            where = "" if blind[0].fold is None else f" (fold {folds})"
            yield (
                f"No box hit a finding of {name} on the images the threshold is chosen on{where}: there is no "
                "threshold, and sensitivity and precision count no box as found. CPM and average precision need none."
            )


def _check(options: Mapping[str, Any]) -> None:
    check_window_options(options)
    if options["folds"] is not None and options["folds"] < 2:
        raise InputError(f"--folds {options['folds']}: expected 2 or more; leave it out for one split.")
    if options["nms_iou"] is not None and not 0 <= options["nms_iou"] <= 1:
        raise InputError(f"--nms-iou {options['nms_iou']}: expected an overlap from 0 to 1.")
    if options["max_boxes"] < 1:
        raise InputError(f"--max-boxes {options['max_boxes']}: expected 1 or more.")


def _check_findings(data: DetectionData, where: str) -> list[str]:
    """Sentences about what cannot be learnt or tested well; InputError where nothing can."""
    sentences = check_classes(data, where)
    if not data.targets[data.rows("test")].any():
        raise InputError(
            f"{data.source.location}{where}: no test image has a finding, so nothing can be measured. Divide otherwise "
            "(--split random, another --seed)."
        )
    return sentences


def _announce(
    reference: EncoderReference,
    divided: Sequence[DetectionData],
    detector: Detector,
    criterion: str,
    options: Mapping[str, Any],
    device: torch.device,
) -> Iterable[str]:
    data = divided[0]
    findings = sum(int((boxes.classes >= 0).sum()) for boxes in data.boxes)
    kinds = f"{len(data.classes)} classes" if len(data.classes) > 1 else "one class"
    yield (
        f"{options['source']}: {findings:,} findings of {kinds} ({'; '.join(data.classes[:8])}) in "
        f"{len(data.records):,} images, from {data.origin}."
    )
    counts = "" if options["folds"] else ", ".join(f"{n:,} {part}" for part, n in data.sizes().items()) + ". "
    yield f"{counts}Split: {data.split_note}."
    if data.left_out:
        shown = "; ".join(f"{item.path}: {item.reason}" for item in data.left_out[:3])
        yield f"{len(data.left_out):,} images cannot be read and are left out; skipped.csv lists them. {shown}"
    yield reference.sentence(device_name(device))
    crop, cells = (" x ".join(map(str, numbers)) for numbers in (detector.settings.crop, detector.head.step))
    yield f"Windows of {crop} px, one answer per {cells} px. A hit: {CRITERIA[criterion].words}."


def _verdict(summary: Mapping[str, Any]) -> str:
    mean, top = summary["test"]["mean"], summary["test"]["top_one"]
    over = "folds" if summary["cases"] is None else "resamples"

    def shown(score: Any) -> str:
        value = score["value"] if isinstance(score, Mapping) else score
        return f"{100 * value:.2f} %" if math.isfinite(value) else "not defined"

    cpm, key = mean["cpm"], VALIDATION_AP[summary["encoder"]["dims"]]
    text = (
        f"CPM {100 * cpm['value']:.2f} ± {100 * cpm['std']:.2f} % (± over {over}), sensitivity "
        f"{shown(mean['sensitivity'])}, precision {shown(mean['precision'])}, AP at IoU "
        f"{'0.5' if key == 'ap_50' else '0.1'} {shown(mean[key])}"
    )
    if mostly_single(summary["test"]):
        text += (
            f"; of images with one finding: IoU {shown(top['iou']['mean'])}, detection ratio "
            f"{shown(top['centre_ratio'])}"
        )
    floor = summary["baselines"]["usual"][key]
    text = f"{text} (guide: {summary['guide']}). Without an encoder: usual box AP {shown(floor)}."
    return f"{text} {summary['constant']}" if summary["constant"] else text
