"""Exponential moving average of a module's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Keeps ``average = decay * average + (1 - decay) * weight`` for every floating-point parameter.

    Buffers (normalisation statistics) are not averaged: they are averages already.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step towards the module's present weights (one fused call, no host sync)."""
        weights = [p.detach() for _, p in module.named_parameters()]
        averages = [self.average[n] for n, _ in module.named_parameters()]
        torch._foreach_lerp_(averages, weights, 1.0 - self.decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Put the averaged weights into the module for good."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.average[name])

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Inside, the module holds the averaged weights; afterwards its own again, bit for bit."""
        own = {n: p.detach().clone() for n, p in module.named_parameters()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.average = {name: state[name].to(self.average[name].device) for name in self.average}
