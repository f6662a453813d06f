"""The loop that trains a head: steps, learning rates, validations, and the weights of the best of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from frepa.downstream.frozen import HeadOnFrozen
from frepa.files import append_json_lines
from frepa.machine import deterministic
from frepa.schedules import learning_rates

_LOG_EVERY = 10
_VALIDATIONS = 20
# A training pass costs more than two passes forward with all that a validation does; that may take a tenth of training.
_BACKWARD, _SHARE = 2, 0.1
# Fewer choices than this choose badly: rather than that, fewer cases are looked at.
_FEWEST_VALIDATIONS = 5


class TrainingDiverged(RuntimeError):
    """The loss became infinite or not a number."""

    plain = True  # the command line shows the sentence, not a traceback


def planned_steps(options: Mapping[str, Any], count: int, batch_size: int) -> tuple[np.ndarray, int]:
    """Learning rate of every step, and steps between validations (20 in all unless asked otherwise).

    Args:
        options: ``max_steps`` or else ``epochs``, ``lr``, ``schedule``, ``warmup_steps``, ``val_every`` of the verb.
        count: images or crops of an epoch.
        batch_size: of these per step.
    """
    steps = options["max_steps"] or max(1, math.ceil(options["epochs"] * count / batch_size))
    warmup = min(options["warmup_steps"], steps - 1)
    rates = learning_rates(options["schedule"], peak=options["lr"], steps=steps, warmup_steps=warmup)
    return rates, options["val_every"] or max(1, steps // _VALIDATIONS)


def affordable(steps: int, batch_size: int, windows: Sequence[int]) -> tuple[int, list[int]]:
    """Steps between validations, and which validation cases are looked at, for a tenth of the time of training.

    Counted in windows, not in seconds, so that a run is the same on every machine.

    Args:
        steps, batch_size: of training.
        windows: of each validation case, as large as a training crop.

    Returns:
        At most 20 validations, and at least 5 where one case allows it; cases evenly spread if not all of them.
    """
    budget = _SHARE * _BACKWARD * steps * batch_size
    each = budget / _FEWEST_VALIDATIONS
    cases = list(range(len(windows)))
    if sum(windows) > each:
        kept = max(1, int(len(windows) * each / max(sum(windows), 1)))
        cases = np.unique(np.linspace(0, len(windows) - 1, kept).round().astype(int)).tolist() if windows else []
    looked = sum(windows[case] for case in cases)
    count = int(min(_VALIDATIONS, max(1, budget // max(looked, 1))))
    return max(1, -(-steps // count)), cases


@dataclass(frozen=True)
class Fit:
    """What came of it: steps taken, the step whose weights were kept, its score (NaN without), and seconds.

    ``validating`` of the ``seconds`` went into validations.
    """

    steps: int
    best_step: int
    best_score: float
    seconds: float
    validating: float


def fit(
    model: HeadOnFrozen,
    rates: np.ndarray,
    loss_at: Callable[[int], dict[str, Tensor]],
    metrics: Path,
    *,
    device: torch.device,
    val_every: int,
    validate: Callable[[], float] | None,
    score: tuple[str, str],
    label: str = "Training the head",
    extra: dict[str, Any] | None = None,
    from_start: bool = False,
    quiet: bool = False,
) -> Fit:
    """Train what trains with the head by Adam; leave the weights with the best validation score in the model.

    Of equal ones the earliest; the last where no score is defined. With ``from_start`` the weights as they come are the
    first to be scored, as step 0: training never leaves worse ones.

    Args:
        model: encoder and head.
        rates: learning rate of every step.
        loss_at: ``loss_at(step)``, from 1 on: ``loss`` and, if there are any, its terms, each a scalar.
        metrics: JSON lines: one per step (step, loss, terms, lr) and one per validation (step, score).
        device: where the model is.
        val_every: steps between validations; one more comes at the end.
        validate: the validation score, higher is better; None without a validation part.
        score: the score's key in ``metrics``, and its name in the progress bar.
        label: words before the progress bar.
        extra: stands in every line of ``metrics``.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    optimizer = torch.optim.Adam(model.trained_parameters(), lr=float(rates[0]))
    steps, extra = len(rates), extra or {}
    pending: list[dict[str, Tensor]] = []
    best_step, best_score = steps, -math.inf
    best: dict[str, Tensor] | None = None
    validating, shown = 0.0, {}
    start = time.perf_counter()
    bar = tqdm(total=steps, unit="step", desc=label, disable=quiet, dynamic_ncols=True)
    if from_start and validate is not None:
        value = validate()
        append_json_lines(metrics, [{**extra, "step": 0, score[0]: value}])
        if value > best_score:
            best_step, best_score, best = 0, value, model.trained_state()
        validating += time.perf_counter() - start
    with bar, deterministic(device):
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = float(rates[step - 1])
            model.train()
            terms = loss_at(step)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            pending.append({name: term.detach() for name, term in terms.items()})
            if step % _LOG_EVERY == 0 or step == steps:
                shown["loss"] = f"{_log(pending, step, rates, metrics, extra):.3f}"
            if validate is not None and (step % val_every == 0 or step == steps):
                since = time.perf_counter()
                value = validate()
                append_json_lines(metrics, [{**extra, "step": step, score[0]: value}])
                shown[score[1]] = f"{100 * value:.2f} %"
                # Strictly better only: of equal heads the earliest stays. Copies, since training goes on in place.
                if value > best_score:
                    best_step, best_score, best = step, value, model.trained_state()
                validating += time.perf_counter() - since
            bar.set_postfix(shown, refresh=False)
            bar.update()
    if best is not None:
        model.load_trained_state(best)
    model.eval()
    return Fit(steps, best_step, best_score if best is not None else math.nan, time.perf_counter() - start, validating)


def _log(pending: list[dict[str, Tensor]], last: int, rates: np.ndarray, metrics: Path, extra: dict[str, Any]) -> float:
    """Bring the losses of the steps up to ``last`` to the host, all at once, and write them; returns the last."""
    names = list(pending[0])
    values = torch.stack([torch.stack([terms[name].float() for name in names]) for terms in pending]).tolist()
    rows = []
    for step, row in enumerate(values, start=last - len(values) + 1):
        terms = dict(zip(names, row))
        if not math.isfinite(terms["loss"]):
            raise TrainingDiverged(
                f"The loss is {terms['loss']} at step {step}. Try a lower --lr, or --precision fp32."
            )
        rows.append({**extra, "step": step, **terms, "lr": float(rates[step - 1])})
    append_json_lines(metrics, rows)
    pending.clear()
    return float(values[-1][names.index("loss")])
