"""Training of a classification head on a frozen encoder: the loop, on one page."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from frepa.downstream.classification.data import ClassificationData
from frepa.downstream.classification.features import FeatureSource
from frepa.downstream.classification.metrics import accuracy, macro_auc
from frepa.downstream.classification.model import Classifier
from frepa.downstream.fitting import TrainingDiverged, affordable
from frepa.files import append_json_lines
from frepa.heads.logistic import choose_logistic
from frepa.heads.standardise import Moments, constant_channels
from frepa.images.sampling import SampleStream
from frepa.machine import deterministic


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
    fold: int | None = None,
    quiet: bool = False,
) -> ClassifierTraining:
    """Train the head, and what of the encoder trains with it; leave the weights with the best validation AUC in them.

    The linear part is solved first, to convergence, and a linear head is that alone: step 0, which is scored too. Of
    equal ones the one with the higher accuracy, then the earliest; where no validation AUC is defined, accuracy
    decides. Cross entropy; binary cross
    entropy per class where a case may have several. ``metrics`` gets a line per step (loss, lr) and one per validation
    (val_auc, val_acc), with the fold where there are any. Every random number is keyed by seed and position.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    rows, val = data.rows("train"), data.rows("val")
    targets = torch.from_numpy(data.targets).to(classifier.device)
    stream = SampleStream(len(rows), plan.seed)
    optimizer = torch.optim.Adam(classifier.trained_parameters(), lr=float(plan.rates[0]))
    extra = {} if fold is None else {"fold": fold}
    size, steps = plan.batch_size, len(plan.rates)
    lines: list[dict[str, object]] = []
    pending: list[Tensor] = []
    best = ((-math.inf, -math.inf), steps, math.nan, math.nan)
    state: dict[str, Tensor] | None = None

    def drawn(step: int) -> np.ndarray:
        return rows[stream.at(range((step - 1) * size, step * size))]

    start = time.perf_counter()
    penalty, notes = start_closed_form(classifier, features, data, size)
    val_every, chosen_val = plan.val_every, val
    if val_every is None:
        val_every, looked = affordable(steps, size, [1] * len(val))
        chosen_val = val if features.fixed else val[looked]
        val_every = max(1, steps // 20) if features.fixed else val_every

    def validate(step: int) -> dict[str, object]:
        nonlocal best, state
        probabilities = predict_rows(classifier, features, data, chosen_val, size)
        auc = macro_auc(probabilities, data.targets[chosen_val])
        acc = accuracy(probabilities, data.targets[chosen_val], several=data.several)
        # A small validation part is ordered perfectly long before its classes are told apart.
        score = (auc if math.isfinite(auc) else acc, acc)
        if score > best[0]:
            best, state = (score, step, auc, acc), classifier.trained_state()
        return {**extra, "step": step, "val_auc": auc, "val_acc": acc}

    if len(val):
        append_json_lines(metrics, [validate(0)])
    if classifier.settings.head == "linear":
        classifier.eval()
        took = time.perf_counter() - start
        return ClassifierTraining(0, 0, best[2], best[3], took, penalty=penalty, notes=notes)
    label = "Training the head" if fold is None else f"Fold {fold}"
    with tqdm(total=steps, unit="step", desc=label, disable=quiet) as bar, deterministic(classifier.device):
        for step in range(1, steps + 1):
            chosen = drawn(step)
            following = data.records[drawn(step + 1)].tolist() if step < steps else ()
            positions = range((step - 1) * size, step * size)
            encoded, mask = features.batch(data.records[chosen].tolist(), positions, following)
            for group in optimizer.param_groups:
                group["lr"] = float(plan.rates[step - 1])
            classifier.train()
            loss = classification_loss(classifier(encoded, mask), targets[chosen], several=data.several)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            pending.append(loss.detach())
            last = step == steps
            if step % val_every == 0 or last:
                lines += _losses(pending, step, plan.rates, extra)
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
                if len(val):
                    lines.append(validate(step))
                append_json_lines(metrics, lines)
                lines = []
            bar.update()
    if state is not None:
        classifier.load_trained_state(state)
    classifier.eval()
    took = time.perf_counter() - start
    return ClassifierTraining(steps, best[1], best[2], best[3], took, penalty=penalty, notes=notes)


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
    model, penalty = choose_logistic(pooled(rows), data.targets[rows].astype(float), held, several=data.several)
    head.start_from(model)
    return penalty, notes


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
        found.append(classifier.probabilities(classifier(encoded, mask)).double().cpu())
    return torch.cat(found).numpy() if found else np.zeros((0, len(data.classes)))


def _losses(pending: list[Tensor], step: int, rates: np.ndarray, extra: dict) -> list[dict[str, object]]:
    """Lines for the losses of the last steps, brought to the host all at once."""
    values = torch.stack(pending).tolist()
    pending.clear()
    first = step - len(values) + 1
    for at, value in enumerate(values, start=first):
        if not math.isfinite(value):
            raise TrainingDiverged(f"The loss is {value} at step {at}. Try a lower --lr, or --precision fp32.")
    return [{**extra, "step": at, "loss": v, "lr": float(rates[at - 1])} for at, v in enumerate(values, start=first)]
