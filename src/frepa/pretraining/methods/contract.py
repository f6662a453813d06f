"""Pretraining methods by name. A method is a module: clean images in, a loss and its terms out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from frepa.encoders.contract import Encoder


class StepResult(NamedTuple):
    """What a method gives the loop for one batch.

    loss: 0-d tensor with gradient. terms: detached 0-d tensors by name, logged as they are.
    prediction, corrupted: ``(V * B, C, *S)``, the V views one after the other. target: ``(B, C, *S)``, clean images.
    guide: ``(B, 1, *S)``. is_frequency: ``(V * B,)`` bool, which rows of ``corrupted`` were corrupted in the spectrum.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    prediction: Tensor
    target: Tensor
    corrupted: Tensor
    guide: Tensor
    is_frequency: Tensor


class Method(nn.Module, ABC):
    """Base of all methods. ``encoder`` is what the run is for; everything else is dropped afterwards."""

    encoder: Encoder

    @abstractmethod
    def forward(
        self,
        image: Tensor,
        grey: Tensor,
        positions: list[int],
        *,
        augment: bool = True,
        generator_loss: Callable[[Tensor], Tensor] | None = None,
    ) -> StepResult:
        """One batch.

        Args:
            image: ``(B, C, *S)`` float32 in [0, 1], on the device; C is 1 in a grey source, else 3.
            grey: ``(B,)`` bool on the CPU; rows whose three channels are equal because the file was grey.
            positions: B positions in the run's stream of samples; every random draw is keyed by them.
            augment: off for validation pictures.
            generator_loss: the adversary's loss of a reconstruction, or None while it takes no part.
        """

    def positions_to_show(self, start: int, count: int) -> list[int]:
        """Positions from ``start`` on to corrupt ``count`` validation images by, so that a picture shows every case."""
        return list(range(start, start + count))


@dataclass
class MethodEntry:
    build: Callable[..., Method]
    summary: str


METHODS: dict[str, MethodEntry] = {}


def register_method(name: str, summary: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: make a method known by name."""

    def add(cls: type[Method]) -> type[Method]:
        METHODS[name] = MethodEntry(cls, summary)
        return cls

    return add
