"""Training of a classification head on a frozen encoder: the loop, on one page."""

from __future__ import annotations

import math
import time
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
from frepa.downstream.fitting import TrainingDiverged
from frepa.downstream.run_folder import append_json_lines
from frepa.images.sampling import SampleStream
from frepa.machine import deterministic


@dataclass(frozen=True)
class ClassifierPlan:
    """The numbers that decide the result: rate of every step, images per step, steps per validation, seed."""

    rates: np.ndarray
    batch_size: int
    val_every: int
    seed: int


@dataclass(frozen=True)
class ClassifierTraining:
    """What came of it: the step whose head was kept, its validation scores, and the time it took."""

    steps: int
    best_step: int
    val_auc: float
    val_acc: float
    seconds: float


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

    Of equal ones the one with the higher accuracy, then the earliest; where no validation AUC is defined, accuracy
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
            if step % plan.val_every == 0 or last:
                lines += _losses(pending, step, plan.rates, extra)
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
                if len(val):
                    probabilities = predict_rows(classifier, features, data, val, size)
                    auc = macro_auc(probabilities, data.targets[val])
                    acc = accuracy(probabilities, data.targets[val], several=data.several)
                    lines.append({**extra, "step": step, "val_auc": auc, "val_acc": acc})
                    # A small validation part is ordered perfectly long before its classes are told apart.
                    score = (auc if math.isfinite(auc) else acc, acc)
                    if score > best[0]:
                        best, state = (score, step, auc, acc), classifier.trained_state()
                append_json_lines(metrics, lines)
                lines = []
            bar.update()
    if state is not None:
        classifier.load_trained_state(state)
    classifier.eval()
    return ClassifierTraining(steps, best[1], best[2], best[3], time.perf_counter() - start)


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
