"""Segmentation with a frozen encoder, from options to a run folder: data, head, training, test, report."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from frepa.downstream.crops import CropPlan, CropStream
from frepa.downstream.fitting import planned_steps
from frepa.downstream.frozen import open_cache
from frepa.downstream.resuming import head_folder
from frepa.downstream.segmentation.baselines import NAMES, constant_answer
from frepa.downstream.segmentation.data import SegmentationData, check_sets, open_sets
from frepa.downstream.segmentation.loss import LOSSES
from frepa.downstream.segmentation.metrics import DDOF, summarise_cases
from frepa.downstream.segmentation.model import Segmenter, build_head
from frepa.downstream.segmentation.page import write_report
from frepa.downstream.segmentation.testing import CaseResult, predict_and_score
from frepa.downstream.segmentation.training import HeadPlan, HeadTraining, train_head
from frepa.downstream.windowed import WindowSettings, check_cacheable, check_window_options, fitted_crop
from frepa.encoders.contract import Encoder
from frepa.encoders.reference import EncoderReference, open_encoder, weights_hash
from frepa.errors import InputError, nearest
from frepa.files import write_csv, write_json
from frepa.heads.reading import check_features, default_features
from frepa.heads.segmenter import HEADS
from frepa.machine import autocast_dtype, default_device, device_name, versions
from frepa.run_folders import OutFolder

_DEFAULT_CROP = {2: 256, 3: 96}


def run_segmentation(options: Mapping[str, Any]) -> Path:
    """Run ``frepa segment`` with its resolved options; returns the run folder.

    The folder holds ``head.safetensors`` + ``head.json`` (with a reference to the encoder), ``config.yaml``,
    ``metrics.jsonl``, ``results.json``, ``cases.csv``, ``predictions/``, ``overlays/`` and ``report.html``. Scores in
    the files are fractions in [0, 1]; the report shows percent.

    Raises:
        InputError: anything the user can mend.
    """
    _check(options)
    with head_folder(options, "segment") as out:
        _run(options, out)
    return out.root


def _run(options: Mapping[str, Any], out: OutFolder) -> None:
    root = out.root
    encoder, reference = open_encoder(options["encoder"])
    sets = open_sets(options["source"], dims=encoder.dims, split=options["split"], seed=options["seed"])
    quiet, workers = options["quiet"], options["num_workers"]

    def progress(items: Iterable, total: int) -> Iterable:
        return tqdm(items, total=total, unit="case", desc="Checking images and masks", disable=quiet, leave=False)

    data = check_sets(sets, dims=encoder.dims, threshold=options["mask_threshold"], workers=workers, progress=progress)
    device = default_device()
    segmenter = build_segmenter(encoder, data, options, device)
    stream, plan = plan_training(segmenter, data, options)
    segmenter.cache = open_cache(options["feature_cache"], encoder)
    if segmenter.cache is not None:
        sizes = ((str(image), segmenter.working_size(size)) for image, size in data.sizes.items())
        check_cacheable(plan.crops, sizes)

    out.start({name: value for name, value in options.items() if name not in ("overwrite", "quiet")})
    for sentence in _announce(reference, data, stream, plan, device, options["head"]):
        tqdm.write(sentence, file=sys.stderr)
    training, baselines = train_head(
        segmenter,
        data.part("train"),
        data.part("val"),
        stream,
        plan,
        root / "metrics.jsonl",
        workers=workers,
        quiet=quiet,
    )
    if weights_hash(encoder) != reference.weights:
        raise RuntimeError("the frozen encoder's weights changed during training: this is a defect of frepa")
    segmenter.save(root, reference, {"best_step": training.best_step, "sets": [item.name for item in data.sets]})
    since = time.perf_counter()
    results = predict_and_score(
        segmenter,
        data.part("test"),
        root / "predictions",
        baselines=baselines,
        centreline=options["cldice"],
        workers=workers,
        quiet=quiet,
    )
    test_seconds = time.perf_counter() - since
    summary = summarise_run(segmenter, reference, data, training, results, device, test_seconds)
    write_json(root / "results.json", summary)
    names = list(dict.fromkeys(name for item in results for name in item.scores))
    rows = [{"set": item.set_name, "case": item.case.name, **item.scores} for item in results]
    write_csv(root / "cases.csv", ["set", "case", *names], rows)
    write_report(root, summary, results, data, segmenter)
    for sentence in training.notes:
        tqdm.write(sentence, file=sys.stderr)
    for item in data.sets:
        tqdm.write(_verdict(item.name, summary["sets"][item.name], summary), file=sys.stderr)


def build_segmenter(
    encoder: Encoder, data: SegmentationData, options: Mapping[str, Any], device: torch.device
) -> Segmenter:
    """Encoder and a fresh head on ``device``; the head's weights depend on the seed alone."""
    asked = options["crop_size"] or _DEFAULT_CROP[encoder.dims]
    settings = WindowSettings(
        crop=(asked,) * encoder.dims,
        image_size=options["image_size"],
        window=options["window"],
        overlap=options["overlap"],
        batch_size=options["batch_size"],
    )
    kind, features = options["head"], options["features"] or default_features(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options["seed"])
        head = build_head(encoder, data.classes, kind=kind, features=features, reach=options["reach"])
    labels = data.labels[data.sets[0].name]
    whole = Segmenter(encoder, head, settings, labels, features=features)
    sizes = [whole.working_size(size) for size in data.sizes.values()]
    settings = replace(settings, crop=fitted_crop(asked, sizes, encoder.size_multiple, encoder.dims))
    autocast = autocast_dtype(options["precision"], device)
    return Segmenter(encoder, head, settings, labels, features=features, autocast=autocast).to(device)


def plan_training(
    segmenter: Segmenter, data: SegmentationData, options: Mapping[str, Any]
) -> tuple[CropStream, HeadPlan]:
    """Which crops in which order, and the learning rates. An epoch is as many crops as cover the images once."""
    crop = segmenter.settings.crop
    sizes = [segmenter.working_size(data.sizes[item.case.image]) for item in data.part("train")]
    stream = CropStream(sizes, crop, options["seed"])
    rates, _ = planned_steps(options, stream.length, options["batch_size"])
    crops = CropPlan(crop, options["seed"], options["foreground"], options["augment"])
    return stream, HeadPlan(rates, options["batch_size"], options["val_every"], options["loss"], crops)


def summarise_run(
    segmenter: Segmenter,
    reference: EncoderReference,
    data: SegmentationData,
    training: HeadTraining,
    results: Sequence[CaseResult],
    device: torch.device,
    test_seconds: float,
) -> dict[str, Any]:
    """What ``results.json`` holds."""
    sets = {}
    for item in data.sets:
        own = [result for result in results if result.set_name == item.name]
        scores = summarise_cases(result.scores for result in own)
        sets[item.name] = {
            "layout": item.layout,
            "split": item.split_note,
            "cases": {part: len(item.part(part)) for part in ("train", "val", "test")},
            "images_without_mask": len(item.unpaired),
            "labels": data.labels[item.name].describe(),
            "test": scores,
            "baselines": summarise_cases(result.baselines for result in own),
            "constant": constant_answer([result.constant for result in own]),
        }
    return {
        "task": "segmentation",
        "encoder": reference.as_dict(),
        "guide": reference.guide,
        "head": segmenter.head.kind,
        "features": segmenter.features,
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
        "training": asdict(training),
        "test_seconds": test_seconds,
        "device": device_name(device),
        "versions": versions(),
    }


def _check(options: Mapping[str, Any]) -> None:
    check_window_options(options)
    if options["features"] is not None:
        check_features(options["features"])
    if options["head"] not in HEADS:
        raise InputError(f"--head {options['head']}: not known. {nearest(options['head'], HEADS)}")
    if options["reach"] not in (1, 3):
        raise InputError(f"--reach {options['reach']}: expected 1 or 3 positions per axis.")
    if options["loss"] not in LOSSES:
        raise InputError(f"--loss {options['loss']}: not known. {nearest(options['loss'], LOSSES)}")


def _announce(
    reference: EncoderReference,
    data: SegmentationData,
    stream: CropStream,
    plan: HeadPlan,
    device: torch.device,
    kind: str,
) -> Iterable[str]:
    for item in data.sets:
        parts = ", ".join(f"{len(item.part(part))} {part}" for part in ("train", "val", "test"))
        yield f"{item.name} ({item.layout}): {parts}. Split: {item.split_note}."
        yield f"{item.name}: {data.labels[item.name].describe()}."
        if item.unpaired:
            shown = ", ".join(item.unpaired[:5])
            yield f"{item.name}: {len(item.unpaired)} images without a mask are left out: {shown}"
    yield reference.sentence(device_name(device))
    if kind == "linear":
        yield "Linear head in closed form: nothing is drawn at random, no step is taken."
        return
    crop = " x ".join(map(str, plan.crops.size))
    steps = len(plan.rates)
    yield (
        f"{steps:,} steps of {plan.batch_size} crops of {crop}, "
        f"{steps * plan.batch_size / stream.length:.1f} epochs of {stream.length:,} crops."
    )


def _verdict(name: str, item: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    scores, floors = item["test"], item["baselines"]
    dsc = scores["dsc"]
    spread = f" ± {100 * dsc.std:.2f}" if math.isfinite(dsc.std) else ""
    how = f"guide: {summary['guide']}; {summary['head']} head on {summary['features']}"
    text = f"{name}: DSC {100 * dsc.mean:.2f}{spread} % over {dsc.cases} test cases ({how})"
    if "dsc_fov" in scores:
        text += f"; inside the field of view {100 * scores['dsc_fov'].mean:.2f} %"
    text += f"; {dsc.skipped} cases have nothing to find and are left out." if dsc.skipped else "."
    if floors:
        text += f" Without an encoder: {', '.join(f'{key} {100 * floor.mean:.1f}' for key, floor in floors.items())}."
    return f"{text} {item['constant']}" if item["constant"] else text
