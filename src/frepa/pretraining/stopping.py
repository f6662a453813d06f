"""A scheduler's SIGTERM asks a run to save and end; all ranks agree on the step at which they do."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning_fabric
import torch


class StopRequest:
    """Listens for SIGTERM (and SIGUSR1, which SLURM sends ahead of a time limit) while it is used as a context.

    One device: the step under way is finished, the state saved. Several: the ranks ask each other every
    ``agree_every`` steps, so the question costs no communication in between.
    """

    def __init__(self, agree_every: int = 10) -> None:
        self.requested = False
        self.agree_every = agree_every
        self._before: dict[int, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # handlers can be set nowhere else
            for name in ("SIGTERM", "SIGUSR1"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def agreed(self, fabric: lightning_fabric.Fabric, step: int) -> bool:
        """Whether every rank is to stop after ``step``; the same answer on every rank."""
        if fabric.world_size == 1:
            return self.requested
        if step % self.agree_every:
            return False
        flag = torch.tensor(float(self.requested), device=fabric.device)
        agreed = fabric.all_reduce(flag, reduce_op="max")
        assert isinstance(agreed, torch.Tensor)
        return bool(agreed.item() > 0)
