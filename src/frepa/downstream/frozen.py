"""What of an encoder stays as it is under a head, and what trains with the head.

Of most encoders everything is frozen, unless some of it is to be tuned (`frepa.downstream.tuning`). Of a slice transfer
the 2D encoder is frozen, and its blocks train with the head (Frepa section 3.3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from frepa.downstream.sharing import shared_maps
from frepa.downstream.tuning import Tuning
from frepa.encoders.contract import Encoder
from frepa.encoders.feature_cache import FeatureCache
from frepa.encoders.reference import trained_names
from frepa.errors import InputError

#: Names of an encoder's trained tensors in a head file begin with this.
PREFIX = "encoder."

Whole = TypeVar("Whole", bound="HeadOnFrozen")


class HeadOnFrozen(nn.Module):
    """An encoder, frozen (see :meth:`Encoder.freeze`), and a head: what every task has in common."""

    encoder: Encoder
    head: nn.Module
    #: Keeps what the 2D encoder of a slice transfer makes of each image; None keeps nothing.
    cache: FeatureCache | None
    #: What of the encoder trains with the head, where it is not left frozen.
    tuning: Tuning | None = None
    #: Precision in which the encoder is run, where it is not float32.
    autocast: torch.dtype | None

    @property
    def device(self) -> torch.device:
        """Where the head is, and the encoder with it."""
        return next(self.head.parameters()).device

    def trained_parameters(self) -> list[nn.Parameter]:
        """What an optimizer changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def tune(self, tuning: Tuning | None) -> None:
        """Let what is to be tuned of the encoder train with the head; None leaves it as it is."""
        self.tuning = tuning
        if tuning is not None:
            tuning.mark(self.encoder)

    def through_encoder(self) -> torch.set_grad_enabled:
        """The context in which the encoder is run: gradients pass it only where some of it is tuned.

        Of several heads on one encoder the first may run it for all, so it does not matter which of them trains.
        """
        return torch.set_grad_enabled(self.tuning is not None and torch.is_grad_enabled())

    def recalled(self, words: tuple, inputs: Sequence[Tensor], compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        """What a frozen encoder makes of ``inputs``, where another head on it has had it made (see `sharing`).

        Not while a head is trained: what it is shown then is drawn for it alone. ``words``: what of the head decides.
        """
        if self.training or self.tuning is not None or self.cache is not None:
            return compute()
        return shared_maps((type(self).__name__, str(self.autocast), *words), inputs, compute)

    def head_groups(self) -> list[dict[str, Any]]:
        """Groups of the head's weights that train otherwise than the rest of it, which is Adam's at the full rate."""
        return []

    def rate_groups(self) -> list[dict[str, Any]]:
        """Groups of an optimizer (`frepa.optimizers`); a ``share`` is what their rate is of the head's."""
        groups = self.head_groups()
        own = {id(parameter) for group in groups for parameter in group["params"]}
        if self.tuning is None:
            rest = self.trained_parameters()
        else:
            rest = [parameter for parameter in self.head.parameters() if parameter.requires_grad]
            groups += self.tuning.groups(self.encoder)
        return [{"params": [parameter for parameter in rest if id(parameter) not in own]}, *groups]

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of all tensors that training changes."""
        return {name: t.clone() for name, t in {**self.head.state_dict(), **trained_state(self.encoder)}.items()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Put back what ``trained_state`` gave."""
        load_trained_state(self.encoder, {name: t for name, t in state.items() if name.startswith(PREFIX)})
        self.head.load_state_dict({name: t for name, t in state.items() if not name.startswith(PREFIX)})

    def train(self: Whole, mode: bool = True) -> Whole:
        """Training mode of the head; the encoder stays in evaluation mode (no dropout, frozen statistics)."""
        super().train(mode)
        self.encoder.eval()
        return self


def trained_state(encoder: Encoder) -> dict[str, Tensor]:
    """The tensors that train with the head, by name with ``PREFIX``; not copies."""
    trained = trained_names(encoder)
    return {PREFIX + name: tensor for name, tensor in encoder.state_dict().items() if name in trained}


def load_trained_state(encoder: Encoder, state: dict[str, Tensor]) -> None:
    """Put back what ``trained_state`` gave.

    Raises:
        InputError: the tensors are not those of this encoder.
    """
    wanted = trained_state(encoder)
    wrong = sorted(
        set(wanted) ^ set(state) or {name for name in wanted if wanted[name].shape != state[name].shape},
    )
    if wrong:
        raise InputError(
            f"the trained blocks in the head file do not fit encoder {encoder.name}: {wrong[0]} differs. "
            "Give the encoder, with its options, that the head was trained on."
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(state[name])


def open_cache(folder: str | Path | None, encoder: Encoder) -> FeatureCache | None:
    """Features of the frozen half of a slice transfer, kept in ``folder``; None without a folder.

    Raises:
        InputError: the encoder is no slice transfer, so nothing of it is worth keeping.
    """
    if folder is None:
        return None
    if not encoder.stacks:
        raise InputError(
            f"--feature-cache keeps what the 2D encoder of a slice transfer makes of each volume; {encoder.name} has "
            "none. Leave the option out, or give slices:ENCODER2D."
        )
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"--feature-cache {folder}: this is a file. Name a folder.")
    return FeatureCache(folder, encoder)
