"""Which encoder a head belongs to: where it is, what it is, and a hash of its weights to recognise it by."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch

from frepa.encoders.contract import Encoder
from frepa.encoders.files import absolute, load_encoder, method_of
from frepa.errors import InputError


@dataclass(frozen=True)
class EncoderReference:
    """A frozen encoder as a run records it.

    Attributes:
        source: run folder or file as an absolute path, or a specification such as ``random:vit_tiny``; paths in a
            specification are absolute too.
        weights: hash of its frozen weights (see :func:`weights_hash`).
        name: architecture; of a slice transfer with its 2D encoder's. dims: 2 or 3. parameters: their number.
        guide: what its guide channel holds; a factor of its own in every comparison.
        method: what it was pretrained by; None when the file does not say.
        trained: parameters among them that train with the head: the blocks of a slice transfer.
        untrained: the specification of the same architecture at random initialisation: the floor.
    """

    source: str
    weights: str
    name: str
    dims: int
    parameters: int
    guide: str
    method: str | None
    trained: int = 0
    untrained: str = ""

    def sentence(self, device: str) -> str:
        """What the encoder is and what is frozen of it, for the user to check."""
        state = "frozen"
        if self.trained:
            state = f"of which {self.trained / 1e6:.2f} M in blocks that train with the head and the rest is frozen"
        size = f"{self.parameters / 1e6:.1f} M parameters"
        return f"Encoder {self.name}, {size}, {state}; guide channel: {self.guide}; on {device}."

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def open_encoder(source: str) -> tuple[Encoder, EncoderReference]:
    """The encoder (evaluation mode, CPU, frozen) and the reference to it.

    Raises:
        InputError: nothing there, or not an encoder.
    """
    encoder = load_encoder(source).freeze()
    trained = trained_names(encoder)
    sizes = {name: parameter.numel() for name, parameter in encoder.named_parameters()}
    reference = EncoderReference(
        source=absolute(source),
        weights=weights_hash(encoder),
        name=encoder.title,
        dims=encoder.dims,
        parameters=sum(sizes.values()),
        guide=encoder.guide,
        method=method_of(source),
        trained=sum(sizes[name] for name in trained),
        untrained=encoder.untrained,
    )
    return encoder, reference


def reopen_encoder(reference: EncoderReference, source: str | None = None) -> Encoder:
    """The encoder a head was trained on, from where the reference says or from ``source``.

    Raises:
        InputError: it is not there any more, or its weights are others.
    """
    place = source or reference.source
    try:
        encoder, found = open_encoder(place)
    except InputError as error:
        raise InputError(f"{error} The head was trained on this encoder; if it was moved, give its place.") from None
    if found.weights != reference.weights:
        raise InputError(
            f"{place}: this is not the encoder that the head was trained on (weights {found.weights[:8]} instead of "
            f"{reference.weights[:8]}). Give the original encoder, or train a new head on this one."
        )
    return encoder


def weights_hash(module: torch.nn.Module) -> str:
    """BLAKE2b over names, types, shapes and values of all frozen parameters and buffers: 32 hexadecimal digits.

    Of an encoder as :meth:`Encoder.freeze` leaves it; parameters that ask for a gradient are left out, unless all do.
    """
    trained = trained_names(module) if isinstance(module, Encoder) else set()
    if len(trained) == len(list(module.parameters())):  # nothing was frozen yet: all of it counts
        trained = set()
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        if name in trained:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


def trained_names(encoder: Encoder) -> set[str]:
    """Names of the parameters that train with the head, of a frozen encoder (see :meth:`Encoder.freeze`)."""
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
