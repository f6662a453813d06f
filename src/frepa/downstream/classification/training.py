"""A fresh classifier for a set, the plan by which it is trained, and the training."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frepa.downstream.classification.data import ClassificationData
from frepa.downstream.classification.features import FeatureSource
from frepa.downstream.classification.metrics import accuracy, macro_auc
from frepa.downstream.classification.model import ClassificationSettings, Classifier
from frepa.downstream.fitting import Validation, affordable, fit, planned_steps
from frepa.downstream.options import TaskOptions
from frepa.downstream.resuming import HeadState, digest
from frepa.downstream.sharing import shared
from frepa.draws import sample_keys
from frepa.encoders.contract import Encoder
from frepa.errors import InputError, nearest
from frepa.heads.classifier import HEADS, POOLINGS
from frepa.heads.logistic import choose_logistic
from frepa.heads.standardise import Moments, constant_channels
from frepa.images.sampling import SampleStream
from frepa.machine import autocast_dtype
from frepa.memory import check_batch

_BATCH, _BATCH_OF_STACKS, _BATCH_TUNED = 64, 8, 16
_FLIPS = 1  # view number of the draws


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(TaskOptions):
    """What ``frepa classify`` is told.

    Attributes:
        head: one of ``heads.classifier.HEADS``; None is `chosen_head`'s.
        hidden: width of the hidden layer of mlp.
        pooling: of the embedding's positions.
    """

    head: str | None
    hidden: int
    pooling: str

    def check(self) -> None:
        """Raise InputError for values out of range."""
        super().check()
        if self.head is not None and self.head not in HEADS:
            raise InputError(f"--head {self.head}: not known. {nearest(self.head, HEADS)}")
        if self.hidden < 1:
            raise InputError(f"--hidden {self.hidden}: expected 1 or more; --head linear has no hidden layer.")
        if self.pooling not in POOLINGS:
            raise InputError(f"--pooling {self.pooling}: not known. {nearest(self.pooling, POOLINGS)}")
        if self.run.feature_cache is not None and self.fit.augment:
            raise InputError("--feature-cache: augmented images are never the same twice. Leave --augment out.")


def chosen_head(options: ClassificationOptions, *, blocks: bool) -> str:
    """ "linear" or "mlp", as asked for; else linear where nothing trains with it, as ``blocks`` of a transfer would."""
    augment, pooling = options.fit.augment, options.pooling
    if options.head is None:
        return "mlp" if blocks or augment or pooling != "mean" or options.fit.tunes else "linear"
    if options.head == "linear" and options.fit.tunes:
        raise InputError(
            f"--train {options.fit.train}: --head linear is solved from what a frozen encoder makes of each image, and "
            "takes no step in which an encoder could learn. Take --head mlp, which starts from it."
        )
    if options.head == "linear" and pooling != "mean":
        raise InputError("--head linear reads the mean embedding; --pooling attention is learnt, and needs --head mlp.")
    if options.head == "linear" and augment:
        raise InputError("--head linear is solved from every image once. Leave --augment out, or give --head mlp.")
    return options.head


@dataclass(frozen=True)
class ClassifierPlan:
    """The numbers that decide the result: rate of every step, images per step, steps per validation, seed.

    ``val_every`` None is as often as a tenth of the training's time allows.
    """

    rates: np.ndarray
    batch_size: int
    val_every: int | None
    seed: int


@dataclass(frozen=True)
class ClassifierTraining:
    """What came of it: the step whose head was kept, its validation scores, and the time it took.

    Step 0 is the logistic regression alone, ``penalty`` what was chosen for it; None for a slice transfer, whose blocks
    train. ``notes`` are sentences for the user.
    """

    steps: int
    best_step: int
    val_auc: float
    val_acc: float
    seconds: float
    penalty: float | None = None
    notes: tuple[str, ...] = ()


def train_classifier(
    classifier: Classifier,
    features: FeatureSource,
    data: ClassificationData,
    plan: ClassifierPlan,
    metrics: Path,
    *,
    marks: Mapping[str, int] | None = None,
    states: HeadState | None = None,
    quiet: bool = False,
) -> ClassifierTraining:
    """Train the head, and what of the encoder trains with it; leave the weights with the best validation AUC in them.

    The linear part is solved first, to convergence, and a linear head is that alone: step 0, which is scored too. Of
    equal ones the one with the higher accuracy, then the earliest; where no validation AUC is defined, accuracy
    decides. Cross entropy; binary cross entropy per class where a case may have several. ``metrics`` gets a line per
    step (loss, lr) and one per validation (val_auc, val_acc), with the marks: fold and seed, where there are several
    heads. Every random number is keyed by seed and position.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    start = time.perf_counter()
    rows, val = data.rows("train"), data.rows("val")
    targets = torch.from_numpy(data.targets).to(classifier.device)
    stream = SampleStream(len(rows), plan.seed)
    # A linear head is solved, and takes no steps.
    size, rates = plan.batch_size, plan.rates[: 0 if classifier.settings.head == "linear" else None]
    steps = len(rates)
    penalty, notes = start_closed_form(classifier, features, data, size)
    val_every = plan.val_every
    if val_every is None:
        val_every, looked = affordable(len(plan.rates), size, [1] * len(val))
        if features.fixed:
            val_every = max(1, len(plan.rates) // 20)
        else:
            val = val[looked]

    def drawn(step: int) -> np.ndarray:
        return rows[stream.at(range((step - 1) * size, step * size))]

    def loss_at(step: int) -> dict[str, Tensor]:
        chosen = drawn(step)
        following = data.records[drawn(step + 1)].tolist() if step < steps else ()
        keys = sample_keys(plan.seed, range((step - 1) * size, step * size), _FLIPS)
        encoded, mask = features.batch(data.records[chosen].tolist(), keys, following)
        return {"loss": classification_loss(classifier(encoded, mask), targets[chosen], several=data.several)}

    def validate() -> Validation:
        probabilities = predict_rows(classifier, features, data, val, size)
        auc = macro_auc(probabilities, data.targets[val])
        acc = accuracy(probabilities, data.targets[val], several=data.several)
        # A small validation part is ordered perfectly long before its classes are told apart.
        return Validation((auc if math.isfinite(auc) else acc, acc), {"val_auc": auc, "val_acc": acc})

    done = fit(
        classifier,
        rates,
        loss_at,
        metrics,
        val_every=val_every,
        validate=validate if len(val) else None,
        marks=marks,
        from_start=True,
        states=states,
        quiet=quiet,
    )
    auc, acc = (done.scores.get(name, math.nan) for name in ("val_auc", "val_acc"))
    seconds = time.perf_counter() - start
    return ClassifierTraining(steps, done.best_step, auc, acc, seconds, penalty=penalty, notes=notes)


@torch.no_grad()
def start_closed_form(
    classifier: Classifier, features: FeatureSource, data: ClassificationData, size: int
) -> tuple[float | None, tuple[str, ...]]:
    """Statistics of the training part's features, and the logistic regression on them; its penalty and sentences.

    Of a slice transfer the statistics alone, of what its 2D encoder makes of the slices.
    """
    head = classifier.head
    layer = head.standardise if head.before is None else head.before
    moments = Moments(len(layer.mean), classifier.device)
    classifier.eval()

    def encoded(rows: np.ndarray) -> Iterator[tuple[Tensor, Tensor | None]]:
        for at in range(0, len(rows), size):
            after = data.records[rows[at + size : at + 2 * size]].tolist()
            yield features.batch(data.records[rows[at : at + size]].tolist(), None, after)

    rows, val = data.rows("train"), data.rows("val")
    for values, mask in encoded(rows):
        keep = None
        if mask is not None:
            keep = mask.view(*mask.shape, *(1,) * (values.ndim - 1 - mask.ndim)).expand(len(values), *values.shape[2:])
        moments.add(values, keep)
    layer.set(moments.mean, moments.std)
    notes = tuple(constant_channels([layer]))
    if head.before is not None:
        return None, notes

    def pooled(part: np.ndarray) -> np.ndarray:
        # The mean over positions, whatever the pooling: where attention begins.
        found = [layer(values).flatten(2).mean(2) if values.ndim > 2 else layer(values) for values, _ in encoded(part)]
        return torch.cat(found).double().cpu().numpy()

    held = (pooled(val), data.targets[val].astype(float)) if len(val) else None
    seen, known = pooled(rows), data.targets[rows].astype(float)
    model, penalty = shared(
        lambda: ("logistic", data.several, digest(seen, known, held)),
        lambda: choose_logistic(seen, known, held, several=data.several),
        lambda made: 0,
    )
    head.start_from(model)
    return penalty, notes


def build_classifier(
    encoder: Encoder,
    data: ClassificationData,
    options: ClassificationOptions,
    side: int,
    seed: int,
    device: torch.device,
) -> Classifier:
    """Encoder and a fresh head on ``device`` for images of ``side`` pixels; the head depends on the seed alone."""
    settings = ClassificationSettings(
        image_size=side,
        window=options.data.window,
        head=chosen_head(options, blocks=encoder.stacks),
        hidden=options.hidden,
        pooling=options.pooling,
    )
    autocast = autocast_dtype(options.run.precision, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(encoder, settings, data.classes, several=data.several, autocast=autocast).to(device)


def plan_training(
    classifier: Classifier, data: ClassificationData, options: ClassificationOptions, seed: int
) -> ClassifierPlan:
    """Batch size, learning rates and validations. An epoch is as many images as the training part has."""
    stacks = classifier.encoder.stacks
    size = options.fit.batch_size or (_BATCH_OF_STACKS if stacks else _BATCH_TUNED if options.fit.tunes else _BATCH)
    encoder = classifier.encoder
    whole = stacks or options.fit.augment or options.fit.tunes  # images are encoded anew for every batch
    pixels = classifier.settings.image_size**encoder.dims * encoder.in_channels
    check_batch(size, pixels if whole else encoder.embedding_channels, classifier.device)
    return ClassifierPlan(planned_steps(options.fit, len(data.rows("train")), size), size, options.fit.val_every, seed)


def classification_loss(logits: Tensor, targets: Tensor, *, several: bool) -> Tensor:
    """Mean cross entropy of logits (B, K) and targets (B, K) of 0 and 1; per class and binary where ``several``."""
    if several:
        return F.binary_cross_entropy_with_logits(logits.float(), targets.float())
    return F.cross_entropy(logits.float(), targets.argmax(1))


@torch.no_grad()
def predict_rows(
    classifier: Classifier, features: FeatureSource, data: ClassificationData, rows: np.ndarray, batch_size: int
) -> np.ndarray:
    """Probabilities ``(len(rows), K)`` float64 of rows of the data."""
    classifier.eval()
    parts = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    found = []
    for part, following in zip(parts, [*parts[1:], rows[:0]]):
        encoded, mask = features.batch(data.records[part].tolist(), None, data.records[following].tolist())
        found.append(classifier.probabilities(classifier(encoded, mask)))
    return torch.cat(found).numpy() if found else np.zeros((0, len(data.classes)))
