"""Classification with a frozen encoder, from options to a run folder: data, features, head, test, report."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from frepa.downstream.bootstrapping import RESAMPLES
from frepa.downstream.classification.data import ClassificationData, check_classes, open_data
from frepa.downstream.classification.features import FixedFeatures, LiveFeatures, common_side
from frepa.downstream.classification.metrics import (
    accuracy,
    auc_per_class,
    bootstrap,
    confusion,
    macro_auc,
)
from frepa.downstream.classification.model import TASK, ClassificationSettings, Classifier
from frepa.downstream.classification.page import write_report
from frepa.downstream.classification.training import ClassifierPlan, ClassifierTraining, predict_rows, train_classifier
from frepa.downstream.fitting import planned_steps
from frepa.downstream.frozen import open_cache
from frepa.downstream.resuming import head_folder
from frepa.downstream.segmentation.metrics import DDOF, summarise
from frepa.encoders.reference import EncoderReference, open_encoder, weights_hash
from frepa.errors import InputError, nearest
from frepa.files import write_csv, write_json
from frepa.heads.classifier import HEADS, POOLINGS
from frepa.images.intensity import check_window
from frepa.machine import autocast_dtype, default_device, device_name, versions
from frepa.run_folders import OutFolder

_BATCH, _BATCH_OF_STACKS = 64, 8


@dataclass(frozen=True)
class Tested:
    """One trained head on its test part: which fold (None without), its training, and probabilities ``(n, K)``."""

    fold: int | None
    data: ClassificationData
    training: ClassifierTraining
    probabilities: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Rows of the data that were tested, in the order of the probabilities."""
        return self.data.rows("test")

    @property
    def targets(self) -> np.ndarray:
        """What is true of them, ``(n, K)``."""
        return self.data.targets[self.rows]


def run_classification(options: Mapping[str, Any]) -> Path:
    """Run ``frepa classify`` with its resolved options; returns the run folder.

    The folder holds ``head.safetensors`` + ``head.json`` (of every fold, under ``folds/``, where there are folds),
    ``config.yaml``, ``metrics.jsonl``, ``results.json``, ``cases.csv``, ``skipped.csv``, ``confusion.png`` and
    ``report.html``. Scores in the files are fractions in [0, 1]; the report shows percent.

    Raises:
        InputError: anything the user can mend.
    """
    _check(options)
    with head_folder(options, "classify") as out:
        _run(options, out)
    return out.root


def _run(options: Mapping[str, Any], out: OutFolder) -> None:
    root = out.root
    encoder, reference = open_encoder(options["encoder"])
    data = open_data(options["source"], dims=encoder.dims, split=options["split"], seed=options["seed"])
    divided = data.folds(options["folds"], options["seed"]) if options["folds"] else [data]
    for number, part in enumerate(divided, start=1):
        check_classes(part, f", fold {number}" if options["folds"] else "")
    device = default_device()
    settings = ClassificationSettings(
        image_size=options["image_size"] or common_side(data.source, data.records, slices=reference.trained > 0),
        window=options["window"],
        head=chosen_head(options, blocks=reference.trained > 0),
        hidden=options["hidden"],
        pooling=options["pooling"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options["seed"])  # the head's initial weights depend on the seed alone
        classifier = Classifier(
            encoder,
            settings,
            data.classes,
            several=data.several,
            autocast=autocast_dtype(options["precision"], device),
        ).to(device)
    classifier.cache = open_cache(options["feature_cache"], encoder)
    since = time.perf_counter()
    features = _features(classifier, data, options)
    encoding_seconds = time.perf_counter() - since
    divided = [part.without(features.unreadable) for part in divided]
    data = data.without(features.unreadable)
    warnings = []
    for number, part in enumerate(divided, start=1):
        warnings += check_classes(part, f", fold {number}" if options["folds"] else "")

    out.start({name: value for name, value in options.items() if name not in ("overwrite", "quiet")})
    for sentence in [*_announce(reference, divided, settings, options, device), *warnings]:
        tqdm.write(sentence, file=sys.stderr)
    fresh = classifier.trained_state()
    tested = []
    for number, part in enumerate(divided, start=1):
        classifier.load_trained_state(fresh)
        fold = number if options["folds"] else None
        plan = _plan(part, options, stacks=reference.trained > 0)
        training = train_classifier(
            classifier, features, part, plan, root / "metrics.jsonl", fold=fold, quiet=options["quiet"]
        )
        folder = root / "folds" / str(fold) if fold else root
        folder.mkdir(parents=True, exist_ok=True)
        classifier.save(folder, reference, {"best_step": training.best_step, "fold": fold})
        found = predict_rows(classifier, features, part, part.rows("test"), plan.batch_size)
        tested.append(Tested(fold, part, training, found))
    features.close()
    if weights_hash(encoder) != reference.weights:
        raise RuntimeError("the frozen encoder's weights changed during training: this is a defect of frepa")
    for note in dict.fromkeys(note for item in tested for note in item.training.notes):
        tqdm.write(note, file=sys.stderr)
        warnings.append(note)
    summary = summarise_run(reference, tested, settings, options, device, encoding_seconds, warnings)
    write_json(root / "results.json", summary)
    write_csv(root / "skipped.csv", ["image", "reason"], [{"image": s.path, "reason": s.reason} for s in data.left_out])
    rows, columns = _case_rows(tested)
    write_csv(root / "cases.csv", columns, rows)
    write_report(root, summary)
    tqdm.write(_verdict(summary), file=sys.stderr)


def chosen_head(options: Mapping[str, Any], *, blocks: bool) -> str:
    """ "linear" or "mlp", as asked for; else linear where nothing trains with it, as ``blocks`` of a transfer would."""
    if options["head"] is None:
        return "mlp" if blocks or options["augment"] or options["pooling"] != "mean" else "linear"
    if options["head"] == "linear" and options["pooling"] != "mean":
        raise InputError("--head linear reads the mean embedding; --pooling attention is learnt, and needs --head mlp.")
    if options["head"] == "linear" and options["augment"]:
        raise InputError("--head linear is solved from every image once. Leave --augment out, or give --head mlp.")
    return str(options["head"])


def _features(classifier: Classifier, data: ClassificationData, options: Mapping[str, Any]) -> Any:
    workers, quiet = options["num_workers"], options["quiet"]
    if classifier.transfer is None and not options["augment"]:
        return FixedFeatures(classifier, data.source, data.records, workers=workers, quiet=quiet)
    return LiveFeatures(
        classifier,
        data.source,
        data.records,
        augment=options["augment"],
        seed=options["seed"],
        workers=workers,
        quiet=quiet,
    )


def _plan(data: ClassificationData, options: Mapping[str, Any], *, stacks: bool) -> ClassifierPlan:
    size = options["batch_size"] or (_BATCH_OF_STACKS if stacks else _BATCH)
    rates, _ = planned_steps(options, len(data.rows("train")), size)
    return ClassifierPlan(rates, size, options["val_every"], options["seed"])


def summarise_run(
    reference: EncoderReference,
    tested: Sequence[Tested],
    settings: ClassificationSettings,
    options: Mapping[str, Any],
    device: torch.device,
    encoding_seconds: float,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """What ``results.json`` holds."""
    first = tested[0].data
    probabilities = np.concatenate([item.probabilities for item in tested])
    targets = np.concatenate([item.targets for item in tested])
    scores: dict[str, Any] = {}
    if tested[0].fold is None:
        groups = [first.groups[row] for row in tested[0].rows]
        spread = bootstrap(probabilities, targets, groups, several=first.several, seed=options["seed"])
        scores = {name: item._asdict() for name, item in spread.items()}
        std = f"standard deviation, 2.5th and 97.5th percentile over {RESAMPLES} resamples of the test groups"
    else:
        each = [
            {
                "acc": accuracy(item.probabilities, item.targets, several=first.several),
                "auc": macro_auc(item.probabilities, item.targets),
            }
            for item in tested
        ]
        for name in ("acc", "auc"):
            over = summarise(fold[name] for fold in each)
            scores[name] = {"value": over.mean, "std": over.std, "folds": [fold[name] for fold in each]}
        std = f"mean and standard deviation over {len(tested)} folds, ddof {DDOF}"
    # Scores of different heads are not on one scale: each fold ranks its own cases.
    each_area = np.stack([auc_per_class(item.probabilities, item.targets) for item in tested])
    areas = [summarise(column).mean for column in each_area.T]
    chosen = probabilities > 0.5 if first.several else np.eye(len(first.classes), dtype=bool)[probabilities.argmax(1)]
    hits = (chosen & targets.astype(bool)).sum(0)
    return {
        "task": TASK,
        "encoder": reference.as_dict(),
        "guide": reference.guide,
        "head": settings.head,
        "features": "embedding",
        "source": str(options["source"]),
        "labels": first.origin,
        "split": first.split_note,
        "classes": list(first.classes),
        "multi_label": first.several,
        "cases": None if tested[0].fold else first.sizes(),
        "images": len(first.records),
        "left_out": len(first.left_out),
        "unlabelled": first.unlabelled,
        "image_size": settings.image_size,
        "test": scores,
        "baselines": {"majority": majority(tested)},
        "constant": constant_answer(chosen, first.classes, several=first.several),
        "per_class": {
            name: {
                "cases": int(targets[:, k].sum()),
                "sensitivity": float(hits[k] / targets[:, k].sum()) if targets[:, k].any() else math.nan,
                "auc": float(areas[k]),
            }
            for k, name in enumerate(first.classes)
        },
        "confusion": None if first.several else confusion(probabilities, targets).tolist(),
        "definitions": {
            "acc": "share of classes answered rightly over all cases, yes above 0.5"
            if first.several
            else "share of cases whose most probable class is the true one",
            "auc": "area under the ROC curve of each class against the rest, mean over the classes",
            "std": std,
            "majority": "the answer that is commonest in the training part, for every case; its AUC is 0.5",
            "unit": "fraction in [0, 1]",
        },
        "training": [{"fold": item.fold, **asdict(item.training)} for item in tested],
        "encoding_seconds": encoding_seconds,
        "warnings": list(warnings),
        "device": device_name(device),
        "versions": versions(),
    }


def majority(tested: Sequence[Tested]) -> dict[str, float]:
    """ACC and AUC of giving every test case the commonest answer of the training part, mean over folds."""
    scores = []
    for item in tested:
        known = item.data.targets[item.data.rows("train")]
        answer = known.mean(0)[None].repeat(len(item.targets), 0)
        scores.append(accuracy(answer, item.targets, several=item.data.several))
    return {"acc": float(np.mean(scores)), "auc": 0.5}


def constant_answer(chosen: np.ndarray, classes: Sequence[str], *, several: bool) -> str | None:
    """A sentence where every test case got the same answer, ``chosen`` (n, classes) bool; else None."""
    if len(chosen) < 2 or (chosen != chosen[0]).any():
        return None
    said = ", ".join(name for name, there in zip(classes, chosen[0]) if there) or "no class"
    return f"The output is constant: {said} for every test case. Its ACC says nothing about the encoder."


def _case_rows(tested: Sequence[Tested]) -> tuple[list[dict[str, Any]], list[str]]:
    classes = tested[0].data.classes
    folds = ["fold"] if tested[0].fold is not None else []
    columns = ["case", *folds, "truth", "predicted", *(f"p_{name}" for name in classes)]
    rows = []
    for item in tested:
        for row, found in zip(item.rows, item.probabilities):
            true = [name for name, there in zip(classes, item.data.targets[row]) if there]
            said = [n for n, p in zip(classes, found) if p > 0.5] if item.data.several else [classes[found.argmax()]]
            line = {"case": item.data.source.name(int(item.data.records[row])), "fold": item.fold}
            line |= {"truth": "|".join(true), "predicted": "|".join(said)}
            rows.append(line | {f"p_{name}": float(p) for name, p in zip(classes, found)})
    return rows, columns


def _check(options: Mapping[str, Any]) -> None:
    for name in ("image_size", "batch_size", "max_steps", "val_every"):
        if options[name] is not None and options[name] < 1:
            raise InputError(f"--{name.replace('_', '-')} {options[name]}: expected 1 or more.")
    for name in ("lr", "epochs"):
        if not options[name] > 0:
            raise InputError(f"--{name} {options[name]}: expected a number above 0.")
    if options["folds"] is not None and options["folds"] < 2:
        raise InputError(f"--folds {options['folds']}: expected 2 or more; leave it out for one split.")
    if options["head"] is not None and options["head"] not in HEADS:
        raise InputError(f"--head {options['head']}: not known. {nearest(options['head'], HEADS)}")
    if options["hidden"] < 1:
        raise InputError(f"--hidden {options['hidden']}: expected 1 or more; --head linear has no hidden layer.")
    if options["pooling"] not in POOLINGS:
        raise InputError(f"--pooling {options['pooling']}: not known. Expected mean or attention.")
    if options["feature_cache"] is not None and options["augment"]:
        raise InputError("--feature-cache: augmented images are never the same twice. Leave --augment out.")
    check_window(options["window"])


def _announce(
    reference: EncoderReference,
    divided: Sequence[ClassificationData],
    settings: ClassificationSettings,
    options: Mapping[str, Any],
    device: torch.device,
) -> Iterable[str]:
    data = divided[0]
    kind = "classes that do not exclude each other" if data.several else "classes"
    yield f"{options['source']}: {len(data.classes)} {kind} ({'; '.join(data.classes[:8])}), from {data.origin}."
    if options["folds"]:
        yield f"{len(data.records):,} images. Split: {data.split_note}."
    else:
        yield f"{', '.join(f'{n:,} {part}' for part, n in data.sizes().items())}. Split: {data.split_note}."
    if data.unlabelled:
        yield f"{data.unlabelled:,} images without a label are left out."
    if data.left_out:
        shown = "; ".join(f"{item.path}: {item.reason}" for item in data.left_out[:3])
        yield f"{len(data.left_out):,} images cannot be read and are left out; skipped.csv lists them. {shown}"
    yield reference.sentence(device_name(device))
    what = "slices" if reference.trained else "images"
    yield f"{what.capitalize()} are brought to {settings.image_size} px a side, aspect kept, zeros around."


def _verdict(summary: Mapping[str, Any]) -> str:
    acc, auc = summary["test"]["acc"], summary["test"]["auc"]
    over = "folds" if "folds" in acc else "resamples"
    floor = summary["baselines"]["majority"]["acc"]
    text = (
        f"ACC {100 * acc['value']:.2f} ± {100 * acc['std']:.2f} %, AUC {100 * auc['value']:.2f} ± "
        f"{100 * auc['std']:.2f} % (± over {over}; guide: {summary['guide']}; {summary['head']} head). "
        f"Without an encoder: majority class ACC {100 * floor:.2f} %."
    )
    return f"{text} {summary['constant']}" if summary["constant"] else text
