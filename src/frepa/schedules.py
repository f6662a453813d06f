"""Learning rates as arrays over steps, so that resuming needs the step number and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from frepa.errors import InputError, nearest

MOST_STEPS = 10**8


def _constant(progress: np.ndarray) -> np.ndarray:
    return np.ones_like(progress)


def _step(progress: np.ndarray) -> np.ndarray:
    # A tenth of the rate after 60 % of the run and again after 85 %.
    return 0.1 ** ((progress >= 0.60).astype(float) + (progress >= 0.85))


def _cosine(progress: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.cos(np.pi * progress))


SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"constant": _constant, "step": _step, "cosine": _cosine}


def learning_rates(kind: str, *, peak: float, steps: int, warmup_steps: int = 0) -> np.ndarray:
    """Learning rate of every step of a run: linear warm-up to ``peak``, then the schedule ``kind``.

    Args:
        kind: ``constant``, ``step`` (x0.1 at 60 % and at 85 % of the steps after the warm-up) or ``cosine`` (to 0).
        peak: highest rate; the paper trains with 1e-4.
        steps: optimizer steps in the whole run, warm-up included.
        warmup_steps: steps of linear warm-up; step ``i`` of it has rate ``peak * (i + 1) / warmup_steps``.

    Returns:
        float64 array ``(steps,)``, all values in (0, peak].

    Raises:
        InputError: unknown ``kind``, or more warm-up than steps.
    """
    if kind not in SCHEDULES:
        raise InputError(f"--schedule {kind}: not a schedule. {nearest(kind, SCHEDULES)}")
    if steps > MOST_STEPS:
        raise InputError(
            f"{steps:,} steps are more than a run can have ({MOST_STEPS:,}). Lower --max-steps or --epochs."
        )
    if not 0 <= warmup_steps <= steps:
        raise InputError(f"--warmup-steps {warmup_steps}: expected 0 to {steps}, the number of steps of the run.")
    rates = np.empty(steps)
    rates[:warmup_steps] = np.arange(1, warmup_steps + 1) / max(warmup_steps, 1)
    rest = steps - warmup_steps
    rates[warmup_steps:] = SCHEDULES[kind](np.arange(rest) / max(rest, 1))
    return peak * rates
