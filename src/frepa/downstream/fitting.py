"""The loop that trains a head: steps, learning rates, validations, and the weights of the best of them."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from frepa.downstream.frozen import HeadOnFrozen
from frepa.downstream.options import FitOptions
from frepa.downstream.resuming import HeadState
from frepa.errors import TrainingDiverged
from frepa.files import append_json_lines
from frepa.machine import deterministic, keeping_memory
from frepa.memory import duration, gigabytes, memory_in_use, within_room
from frepa.optimizers import MuonAndAdam
from frepa.schedules import learning_rates

_LOG_EVERY = 10
_VALIDATIONS = 20
# A training pass costs more than two passes forward with all that a validation does; that may take a tenth of training.
_BACKWARD, _SHARE = 2, 0.1
# Steps after which the time left is told; the first one is no measure.
_TOLD_AFTER = 10
_REMEDIES = "a smaller --batch-size, a smaller --crop-size or --image-size, or --features last"
# Fewer choices than this choose badly: rather than that, fewer cases are looked at.
_FEWEST_VALIDATIONS = 5

Item = TypeVar("Item")
Result = TypeVar("Result")


def planned_steps(options: FitOptions, count: int, batch_size: int) -> np.ndarray:
    """Learning rate of every step.

    Args:
        options: how long, and at which rates; ``lr`` is decided.
        count: images or crops of an epoch.
        batch_size: of these per step.
    """
    assert options.lr is not None
    steps = options.max_steps or max(1, math.ceil(options.epochs * count / batch_size))
    warmup = min(options.warmup_steps, steps - 1)
    return learning_rates(options.schedule, peak=options.lr, steps=steps, warmup_steps=warmup)


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


class Validation(NamedTuple):
    """Scores of a validation by their keys in ``metrics.jsonl``; the head with the highest ``rank`` is kept."""

    rank: tuple[float, ...]
    scores: dict[str, float]


@dataclass
class FitState:
    """Where a training stands after ``step`` steps: with the random draws keyed by step, all that it goes on from.

    Attributes:
        model, optimizer: as they are now.
        step: steps taken.
        best: the highest validation so far, None before there is one; ``best_step``, and ``weights``: copies.
        pending: losses of steps that are not in ``metrics`` yet.
        seconds: since the start, of which ``validating`` went into validations.
    """

    model: HeadOnFrozen
    optimizer: MuonAndAdam
    step: int = 0
    best: Validation | None = None
    best_step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    pending: list[dict[str, Tensor]] = field(default_factory=list)
    seconds: float = 0.0
    validating: float = 0.0

    def kept(self) -> dict[str, Any]:
        """What else there is to remember of a training: its best validation, and the time it took so far."""
        best = None if self.best is None else {"rank": list(self.best.rank), "scores": self.best.scores}
        return {"best": best, "best_step": self.best_step, "seconds": self.seconds, "validating": self.validating}

    def take(self, kept: Mapping[str, Any]) -> None:
        """Put back what `kept` gave."""
        best = kept["best"]
        self.best = None if best is None else Validation(tuple(best["rank"]), best["scores"])
        self.best_step, self.seconds, self.validating = kept["best_step"], kept["seconds"], kept["validating"]

    def validated(self, found: Validation) -> None:
        """Keep the weights where they are strictly better; NaN is never better."""
        if found.rank > (self.best.rank if self.best is not None else (-math.inf,)):
            # Copies, since training goes on in place.
            self.best, self.best_step, self.weights = found, self.step, self.model.trained_state()


@dataclass(frozen=True)
class Fit:
    """What came of it: steps taken, the step whose weights were kept, its scores ({} without), and seconds.

    ``validating`` of the ``seconds`` went into validations.
    """

    steps: int
    best_step: int
    scores: dict[str, float]
    seconds: float
    validating: float


def fit(
    model: HeadOnFrozen,
    rates: np.ndarray,
    loss_at: Callable[[int], dict[str, Tensor]],
    metrics: Path,
    *,
    val_every: int,
    validate: Callable[[], Validation] | None,
    marks: Mapping[str, int] | None = None,
    from_start: bool = False,
    states: HeadState | None = None,
    quiet: bool = False,
) -> Fit:
    """Train what trains with the head by Muon and Adam; leave the weights with the best validation in the model.

    Of equal ones the earliest; the last where no score is defined. With ``from_start`` the weights as they come are the
    first to be scored, as step 0: training never leaves worse ones.

    Args:
        model: encoder and head.
        rates: learning rate of every step; empty where everything is solved already.
        loss_at: ``loss_at(step)``, from 1 on: ``loss`` and, if there are any, its terms, each a scalar.
        metrics: JSON lines: one per step (step, loss, terms, lr) and one per validation (step, scores).
        val_every: steps between validations; one more comes at the end.
        validate: the validation; None without a validation part.
        marks: stand in every line of ``metrics``: fold and seed, where there are several heads.
        states: where the state is kept between steps, and whether somebody asked to stop; a training that was broken
            off goes on from there, and ends as one that was not.

    Raises:
        TrainingDiverged: the loss is not finite.
        Stopped: somebody asked; the state is saved.
    """
    steps, marks = len(rates), marks or {}
    state = FitState(model, MuonAndAdam(model.rate_groups(), float(rates[0]) if steps else 0.0))
    shown = dict[str, str]()
    if states is not None:
        states.restore(state)
    start = time.perf_counter() - state.seconds

    def look() -> None:
        assert validate is not None
        since = time.perf_counter()
        found = validate()
        append_json_lines(metrics, [{**marks, "step": state.step, **found.scores}])
        name, value = next(iter(found.scores.items()))
        shown[name] = f"{100 * value:.2f} %"
        state.validated(found)
        state.validating += time.perf_counter() - since

    words, taken, second = training_words(marks), 0, start
    bar = tqdm(total=steps, initial=state.step, unit="step", desc=words, disable=quiet, dynamic_ncols=True)
    waits = states.stop.deferred() if states is not None else contextlib.nullcontext()
    with bar, waits, deterministic(model.device), keeping_memory():
        if from_start and validate is not None and state.step == 0:
            look()
        while state.step < steps:
            state.step += 1
            for group in state.optimizer.param_groups:
                group["lr"] = float(rates[state.step - 1]) * group.get("share", 1.0)
            model.train()
            with contextlib.nullcontext() if taken else within_room(model.device, _REMEDIES):
                terms = loss_at(state.step)
            state.optimizer.zero_grad()
            terms["loss"].backward()
            state.optimizer.step()
            state.pending.append({name: term.detach() for name, term in terms.items()})
            last = state.step == steps
            due = validate is not None and (state.step % val_every == 0 or last)
            if state.step % _LOG_EVERY == 0 or due or last:
                shown["loss"] = f"{_log(state.pending, state.step, rates, metrics, marks):.3f}"
            if due:
                look()
            bar.set_postfix(shown, refresh=False)
            bar.update()
            taken += 1
            state.seconds = time.perf_counter() - start
            if taken == _TOLD_AFTER and not last:
                # Of these steps alone: the first one reads images and finds its memory, and validations come rarely.
                left = (steps - state.step) * (time.perf_counter() - second) / (taken - 1)
                held = gigabytes(memory_in_use(model.device))
                told = f"{words}: step {state.step} of {steps:,}, {held} of memory in use, about {duration(left)} left."
                tqdm.write(told, file=sys.stderr)
            elif taken == 1:
                second = time.perf_counter()
            if states is not None:
                states.after_step(state, due=due or last)
    if state.weights:
        model.load_trained_state(state.weights)
    model.eval()
    scores, kept = (state.best.scores, state.best_step) if state.best is not None else ({}, steps)
    return Fit(steps, kept, scores, time.perf_counter() - start, state.validating)


def training_words(marks: Mapping[str, int]) -> str:
    """What stands before a progress bar: which head is trained."""
    return ", ".join(f"{name} {number}" for name, number in marks.items()).capitalize() or "Training the head"


def _log(
    pending: list[dict[str, Tensor]], last: int, rates: np.ndarray, metrics: Path, marks: Mapping[str, int]
) -> float:
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
        rows.append({**marks, "step": step, **terms, "lr": float(rates[step - 1])})
    append_json_lines(metrics, rows)
    pending.clear()
    return float(values[-1][names.index("loss")])


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``map(read, items)`` in order, with up to ``workers`` results made ahead of need; 0 reads when asked."""
    if workers < 1:
        yield from map(read, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
