"""What of an encoder is trained on beside a head that is not left frozen, and at which rates.

The encoder stays in evaluation mode all the same: batch norms keep the statistics they were pretrained with, and
nothing is dropped. So a batch may be small, and a run that is continued is the run that was not stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from frepa.downstream.options import FitOptions
from frepa.encoders.contract import Encoder
from frepa.encoders.layers import layers_of
from frepa.errors import InputError

#: Where nobody says otherwise: the encoder's last layer learns at a tenth of the head's rate, each before it slower.
ENCODER_SHARE, LAYER_DECAY = 0.1, 0.75


@dataclass(frozen=True)
class Tuning:
    """Layers of an encoder that train with the head.

    Attributes:
        what: as the user said it, ``blocks=2`` or ``all``.
        layers: names of the parameters of each, the last one computed last.
        shares: of the head's learning rate, a number per layer.
        parameters: their number.
        encoder_lr: highest rate of the last layer; every layer before it has ``layer_decay`` times that of the next.
    """

    what: str
    layers: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]
    parameters: int
    encoder_lr: float
    layer_decay: float

    @property
    def names(self) -> set[str]:
        """All parameters that are trained."""
        return {name for layer in self.layers for name in layer}

    def mark(self, encoder: Encoder) -> None:
        """Let these ask for a gradient, and no others."""
        encoder.freeze()
        mark(encoder, self.names)

    def groups(self, encoder: Encoder) -> list[dict[str, Any]]:
        """Groups of an optimizer, a layer each; ``share``: of the head's learning rate."""
        known = dict(encoder.named_parameters())
        return [
            {"params": [known[name] for name in layer], "share": share}
            for layer, share in zip(self.layers, self.shares)
        ]

    def as_dict(self) -> dict[str, Any]:
        """What results and head files say of it."""
        return {
            "train": self.what,
            "layers": len(self.layers),
            "parameters": self.parameters,
            "encoder_lr": self.encoder_lr,
            "layer_decay": self.layer_decay,
        }


def in_words(train: str) -> str:
    """What `--train` left of an encoder, for results: frozen, or fine-tuned and how much of it."""
    return "frozen encoder" if train == "head" else f"encoder fine-tuned ({train})"


def mark(encoder: Encoder, names: set[str]) -> None:
    """Let the parameters of these names ask for a gradient."""
    for name, parameter in encoder.named_parameters():
        if name in names:
            parameter.requires_grad_(True)


def tuning_of(options: FitOptions, encoder: Encoder) -> Tuning | None:
    """What `--train` asks for; None where the encoder stays frozen.

    Raises:
        InputError: a slice transfer, or more blocks than the encoder has.
    """
    if not options.tunes:
        return None
    if encoder.stacks:
        raise InputError(
            f"--train {options.train}: of a slice transfer the 2D encoder is frozen, and its blocks train with the "
            "head in any case. Leave the option out, or give a 3D encoder."
        )
    if next(encoder.parameters(), None) is None:
        raise InputError(f"--train {options.train}: {encoder.name} has no weights. Leave the option out.")
    layers = layers_of(encoder)
    if options.train != "all":
        blocks, there = options.blocks, len(layers) - 1  # the first one is the input's
        if blocks > there:
            raise InputError(
                f"--train {options.train}: encoder {encoder.name} has {there} blocks or stages. Give as many at most, "
                "or --train all."
            )
        layers = layers[len(layers) - blocks :]
    assert options.lr is not None
    rate = options.lr * ENCODER_SHARE if options.encoder_lr is None else options.encoder_lr
    decay = LAYER_DECAY if options.layer_decay is None else options.layer_decay
    sizes = {name: parameter.numel() for name, parameter in encoder.named_parameters()}
    return Tuning(
        options.train,
        tuple(tuple(layer) for layer in layers),
        tuple(rate / options.lr * decay ** (len(layers) - 1 - place) for place in range(len(layers))),
        sum(sizes[name] for layer in layers for name in layer),
        rate,
        decay,
    )


@contextlib.contextmanager
def all_frozen(encoder: Encoder, tuning: Tuning | None) -> Iterator[None]:
    """The encoder as it was opened, while its weights are looked at: nothing of it asks for a gradient."""
    if tuning is None:
        yield
        return
    encoder.freeze()
    try:
        yield
    finally:
        tuning.mark(encoder)
