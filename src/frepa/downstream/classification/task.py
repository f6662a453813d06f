"""Classification with a frozen encoder: what ``frepa classify`` supplies to a run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from frepa.downstream.classification.data import ClassificationData, check_classes, open_data
from frepa.downstream.classification.features import FeatureSource, FixedFeatures, LiveFeatures, common_side
from frepa.downstream.classification.metrics import accuracy, auc_per_class, bootstrap, confusion, macro_auc
from frepa.downstream.classification.model import TASK, Classifier
from frepa.downstream.classification.page import fill_page
from frepa.downstream.classification.testing import TestedClassifier, case_rows
from frepa.downstream.classification.training import (
    ClassificationOptions,
    build_classifier,
    plan_training,
    predict_rows,
    train_classifier,
)
from frepa.downstream.contract import CASE_COLUMNS, Place, Prepared, Progress, Round, Table, Task, over_words
from frepa.downstream.page import RunPage
from frepa.downstream.scores import DDOF, RESAMPLES, over_heads, summarise
from frepa.encoders.contract import Encoder
from frepa.encoders.slice_transfer import SliceTransfer


class Classification(Task[ClassificationData, Classifier, TestedClassifier]):
    """One class per image, or several; what the frozen encoder makes of each image is computed once for all heads.

    Writes ``confusion.png`` besides, where classes exclude each other.
    """

    name = TASK
    verb = "classify"
    unit = "image"
    options: ClassificationOptions

    def __init__(self, options: ClassificationOptions) -> None:
        self.options = options
        self.encoding_seconds = 0.0
        self._features: FeatureSource | None = None
        self._side = options.data.image_size

    def open(self, dims: int, progress: Progress) -> ClassificationData:
        """Images and classes; no pixel is read."""
        data, run = self.options.data, self.options.run
        assert isinstance(data.source, str)
        return open_data(data.source, dims=dims, split=data.split, seed=run.seed, divide_by=data.divide_by)

    def check(self, data: ClassificationData, where: str) -> list[str]:
        """Classes that cannot be learnt or tested."""
        return check_classes(data, where)

    def build(self, encoder: Encoder, data: ClassificationData, seed: int, device: torch.device) -> Classifier:
        """A classifier for images of one size, by default the largest that is found."""
        if self._side is None:
            self._side = common_side(data.source, data.records, slices=isinstance(encoder, SliceTransfer))
        return build_classifier(encoder, data, self.options, self._side, seed, device)

    def prepare(self, models: Sequence[Classifier], data: ClassificationData) -> Prepared:
        """Encode every image, or read it where it is encoded anew for every batch."""
        since = time.perf_counter()
        workers, quiet = self.options.run.num_workers, self.options.run.quiet
        augment = self.options.fit.augment
        if models[0].transfer is None and not augment:
            self._features = FixedFeatures(models[0], data.source, data.records, workers=workers, quiet=quiet)
        else:
            self._features = LiveFeatures(
                models[0], data.source, data.records, augment=augment, workers=workers, quiet=quiet
            )
        self.encoding_seconds = time.perf_counter() - since
        return Prepared(self._features.unreadable, [])

    def close(self) -> None:
        """Stop reading ahead."""
        if self._features is not None:
            self._features.close()

    def describe(self, divided: Sequence[ClassificationData]) -> Iterable[str]:
        """Classes, parts, and images without a label."""
        data = divided[0]
        kind = "classes that do not exclude each other" if data.several else "classes"
        shown = "; ".join(data.classes[:8])
        yield f"{self.options.data.source}: {len(data.classes)} {kind} ({shown}), from {data.origin}."
        counts = f"{len(data.records):,} images"
        if len(divided) == 1:
            counts = ", ".join(f"{n:,} {part}" for part, n in data.sizes().items())
        yield f"{counts}. Split: {data.split_note}."
        if data.unlabelled:
            yield f"{data.unlabelled:,} images without a label are left out."

    def plan_sentences(self, model: Classifier, data: ClassificationData) -> Iterable[str]:
        """To which size images are brought."""
        what = "Slices" if isinstance(model.encoder, SliceTransfer) else "Images"
        yield f"{what} are brought to {model.settings.image_size} px a side, aspect kept, zeros around."

    def train_and_test(
        self, model: Classifier, data: ClassificationData, round: Round, place: Place
    ) -> TestedClassifier:
        """Train on what was encoded, save, and give the probabilities of the test images."""
        assert self._features is not None
        plan = plan_training(model, data, self.options, round.seed)
        training = train_classifier(
            model,
            self._features,
            data,
            plan,
            place.metrics,
            marks=round.marks,
            states=place.states,
            quiet=self.options.run.quiet,
        )
        model.save(place.folder, place.reference, {"best_step": training.best_step, **round.kept})
        found = predict_rows(model, self._features, data, data.rows("test"), plan.batch_size)
        return TestedClassifier(round, place, data, model, training, found)

    def summarise(self, tested: Sequence[TestedClassifier]) -> dict[str, Any]:
        """ACC and AUC of one head with their spread over resamples, or of several heads over these."""
        data, rounds = tested[0].data, [item.round for item in tested]
        probabilities = np.concatenate([item.probabilities for item in tested])
        targets = np.concatenate([item.targets for item in tested])
        scores, std = self._scores(tested)
        # Scores of different heads are not on one scale: each head ranks its own cases.
        each_area = np.stack([auc_per_class(item.probabilities, item.targets) for item in tested])
        areas = [summarise(column).mean for column in each_area.T]
        chosen = probabilities > 0.5 if data.several else np.eye(len(data.classes), dtype=bool)[probabilities.argmax(1)]
        hits = (chosen & targets.astype(bool)).sum(0)
        seeds = len({one.seed for one in rounds})  # every case was tested by each of them
        return {
            "head": tested[0].model.settings.head,
            "features": "embedding",
            "labels": data.origin,
            "split": data.split_note,
            "classes": list(data.classes),
            "multi_label": data.several,
            "cases": None if rounds[0].fold else data.sizes(),
            "images": len(data.records),
            "unlabelled": data.unlabelled,
            "image_size": tested[0].model.settings.image_size,
            "test": scores,
            "baselines": {"majority": majority(tested)},
            "constant": constant_answer(chosen, data.classes, several=data.several),
            "per_class": {
                name: {
                    "cases": int(targets[:, k].sum()) // seeds,
                    "sensitivity": float(hits[k] / targets[:, k].sum()) if targets[:, k].any() else math.nan,
                    "auc": float(areas[k]),
                }
                for k, name in enumerate(data.classes)
            },
            "confusion": None if data.several else confusion(probabilities, targets).tolist(),
            "definitions": {
                "acc": "share of classes answered rightly over all cases, yes above 0.5"
                if data.several
                else "share of cases whose most probable class is the true one",
                "auc": "area under the ROC curve of each class against the rest, mean over the classes",
                "std": std,
                "majority": "the answer that is commonest in the training part, for every case; its AUC is 0.5",
                "unit": "fraction in [0, 1]",
            },
            "encoding_seconds": self.encoding_seconds,
            "warnings": list(dict.fromkeys(note for item in tested for note in item.training.notes)),
        }

    def _scores(self, tested: Sequence[TestedClassifier]) -> tuple[dict[str, Any], str]:
        """ACC and AUC, and what their spread is over, in words."""
        first, data = tested[0], tested[0].data
        if len(tested) == 1:
            groups = [data.groups[row] for row in first.rows]
            seed = self.options.run.seed
            spread = bootstrap(first.probabilities, first.targets, groups, several=data.several, seed=seed)
            words = f"standard deviation, 2.5th and 97.5th percentile over {RESAMPLES} resamples of the test groups"
            return {name: item._asdict() for name, item in spread.items()}, words
        folds, seeds = [item.round.fold for item in tested], [item.round.seed for item in tested]
        acc = [accuracy(item.probabilities, item.targets, several=data.several) for item in tested]
        auc = [macro_auc(item.probabilities, item.targets) for item in tested]
        words = f"mean and standard deviation over {over_words([item.round for item in tested])}, ddof {DDOF}"
        return {"acc": over_heads(acc, folds, seeds), "auc": over_heads(auc, folds, seeds)}, words

    def tables(self, tested: Sequence[TestedClassifier]) -> Iterable[Table]:
        """A line per test case and head."""
        columns = [*CASE_COLUMNS, "truth", "predicted", *(f"p_{name}" for name in tested[0].data.classes)]
        yield Table("cases.csv", columns, [row for item in tested for row in case_rows(item)])

    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: Sequence[TestedClassifier]) -> None:
        """See `page.fill_page`."""
        fill_page(page, summary)

    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """ACC and AUC."""
        acc, auc = summary["test"]["acc"], summary["test"]["auc"]
        over = "resamples" if "low" in acc else "folds" if "folds" in acc else "seeds"
        floor = summary["baselines"]["majority"]["acc"]
        text = (
            f"ACC {100 * acc['value']:.2f} ± {100 * acc['std']:.2f} %, AUC {100 * auc['value']:.2f} ± "
            f"{100 * auc['std']:.2f} % (± over {over}; guide: {summary['guide']}; {summary['head']} head). "
            f"Without an encoder: majority class ACC {100 * floor:.2f} %."
        )
        yield f"{text} {summary['constant']}" if summary["constant"] else text


def majority(tested: Sequence[TestedClassifier]) -> dict[str, float]:
    """ACC and AUC of giving every test case the commonest answer of the training part, mean over heads."""
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
