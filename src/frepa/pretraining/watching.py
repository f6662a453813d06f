"""The encoder under watch while it trains: what it still keeps, which of its states was best, and when to stop.

The instruments lie in rooms below this one and are handed in by the verb. A look costs passes of images through the
encoder; how often is looked is counted in these, not in seconds, so that a run is the same on every machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import lightning_fabric
import torch
from torch import Tensor

from frepa.encoders.contract import Encoder
from frepa.errors import InputError
from frepa.pretraining.journal import Journal
from frepa.pretraining.methods.contract import Method
from frepa.pretraining.options import Watching

#: What stands before the name of a number in ``metrics.jsonl``.
PREFIX = "health_"
# Of the images that pass forward through the encoder in training, those that may pass in looks; and what a step of the
# cheapest method (three quarters of the patches left out, forward and backward) takes in forward passes per image.
_SHARE, _PASSES = 0.01, 1.5
# Beside passes a look takes linear algebra, which does not shrink with small encoders and images.
_FEWEST_STEPS = 200


class Look(Protocol):
    """One instrument: ``look(encoder) -> {name: number}``, all better when higher.

    names: what it gives, as a rule. cost: images, as the run trains on, that pass through the encoder.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def cost(self) -> float: ...

    def __call__(self, encoder: Encoder) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Instruments:
    """Builders of the looks. health: from fixed images (N, C, *S) in [0, 1]. probe: from a labelled source, dims,
    and the keywords ``size``, ``resized`` and ``window``; raises InputError for a source that is none.
    """

    health: Callable[[Tensor], Look]
    probe: Callable[..., Look]


def open_looks(options: Watching, instruments: Instruments, held_out: Tensor, dims: int, **how: Any) -> list[Look]:
    """The instruments that were asked for; ``how`` is told to the probe.

    Args:
        held_out: (N, C, *S) in [0, 1], N 0 or more.

    Raises:
        InputError: the probe's source is none, or the best is to be decided by something that no look gives.
    """
    looks: list[Look] = []
    if options.watch_every != 0:
        looks.append(instruments.health(held_out))
        if options.probe is not None:
            looks.append(instruments.probe(options.probe, dims, **how))
    elif options.probe is not None:
        raise InputError("--probe: nothing is looked at with --watch-every 0. Leave one of them out.")
    looks = [look for look in looks if look.names]
    known = [name for look in looks for name in look.names]
    if _decides(options) and options.best_by not in known:
        if options.watch_every == 0:
            why = "nothing is looked at with --watch-every 0. Leave that out"
        elif options.best_by == "probe":
            why = "there is no probe. Name a small labelled set with --probe"
        elif len(held_out):
            why = (
                f"what is looked at is {', '.join(known) or 'nothing'}. Bands need two held-out images: --val-images 2"
            )
        else:
            why = "there are no held-out images to look at. Give --val-images 2 or more"
        raise InputError(f"--best-by {options.best_by}: {why}.")
    return looks


def _decides(options: Watching) -> bool:
    return options.keep == "best" or options.patience > 0


class Watch:
    """Looks at the encoder every so many steps, keeps the best one, and says when patience is at its end.

    Part of a run's state: what was best, when, and how many looks ago.

    Args:
        looks: the instruments.
        options: what the user asked for.
        batch_size: images per step.
        save_best: called with the method, the step, and what was best.
        best_is_there: whether what was saved as best is still to be found.

    Attributes:
        enough: patience is at its end.
    """

    def __init__(
        self,
        looks: Sequence[Look],
        options: Watching,
        fabric: lightning_fabric.Fabric,
        journal: Journal,
        *,
        batch_size: int,
        save_best: Callable[[Method, int, dict[str, float]], None],
        best_is_there: Callable[[], bool],
    ) -> None:
        self.options, self.fabric, self.journal = options, fabric, journal
        self.save_best, self.best_is_there = save_best, best_is_there
        self.looks = [(look, self._every(look.cost, batch_size)) for look in looks]
        self.best: float | None = None
        self.best_step, self.since = 0, 0
        self.enough = False

    def _every(self, cost: float, batch_size: int) -> int:
        if self.options.watch_every is not None:
            return self.options.watch_every
        return max(_FEWEST_STEPS, math.ceil(cost / (_SHARE * _PASSES * batch_size)))

    def announcement(self) -> str:
        """When is looked, in words; empty where nothing is."""
        parts = [f"{', '.join(look.names)} every {every:,} steps" for look, every in self.looks]
        if not parts:
            return ""
        text = f"Looking at what the encoder keeps: {'; '.join(parts)}, and at the start and end."
        if self.options.keep == "best":
            text += f" The best by {self.options.best_by} is kept in the folder best."
        if self.options.patience:
            text += f" Ends after {self.options.patience} looks without a better {self.options.best_by}."
        return text

    def due(self, step: int, steps: int) -> bool:
        """Whether something is looked at after ``step`` of ``steps`` steps; the same on every rank."""
        return any(self._is_due(every, step, steps) for _, every in self.looks)

    def _is_due(self, every: int, step: int, steps: int) -> bool:
        return step in (0, steps) or step % every == 0

    def __call__(self, method: Method, epoch: int, step: int, steps: int) -> None:
        """Look, on the first rank, and write what was found to ``metrics.jsonl``."""
        start = time.perf_counter()
        found: dict[str, float] = {}
        method.eval()
        with torch.no_grad(), self.fabric.autocast():
            for look, every in self.looks:
                if self._is_due(every, step, steps):
                    found |= look(method.encoder)
        method.train()
        found = {name: value for name, value in found.items() if math.isfinite(value)}
        self._decide(method, step, found)
        seconds = time.perf_counter() - start
        row = {f"{PREFIX}{name}": value for name, value in found.items()}
        self.journal.looked({"step": step, "epoch": epoch, **row}, found, seconds)

    def _decide(self, method: Method, step: int, found: Mapping[str, float]) -> None:
        value = found.get(str(self.options.best_by))
        if not _decides(self.options) or value is None:
            return
        if self.best is None or value > self.best:
            self.best, self.best_step, self.since = value, step, 0
            if self.options.keep == "best":
                self.save_best(method, step, {str(self.options.best_by): value})
            return
        self.since += 1
        if self.options.patience and self.since >= self.options.patience:
            self.enough = True
            self.journal.tell(
                f"Ended at step {step:,}: {self.options.best_by} has not risen above {self.best:.4g}, as it was after "
                f"step {self.best_step:,}, in {self.since} looks."
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "best_step": self.best_step, "since": self.since, "enough": self.enough}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; where the best encoder is gone, the next one looked at is the best."""
        self.best, self.best_step, self.since = state["best"], state["best_step"], state["since"]
        self.enough = state["enough"]
        if self.options.keep == "best" and self.best is not None and not self.best_is_there():
            self.journal.tell("The best encoder so far is gone; the next one that is looked at takes its place.")
            self.best, self.since = None, 0
