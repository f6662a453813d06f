"""Which encoder a head belongs to: where it is, what it is, and a hash of its weights to recognise it by."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from frepa.encoders.contract import Encoder
from frepa.encoders.files import find_weights, load_encoder, read_description
from frepa.encoders.specs import is_spec
from frepa.errors import InputError


@dataclass(frozen=True)
class EncoderReference:
    """A frozen encoder as a run records it.

    Attributes:
        source: run folder or file as an absolute path, or a specification such as ``random:vit_tiny``.
        weights: hash of all its weights (see :func:`weights_hash`).
        name: architecture. dims: 2 or 3. parameters: their number.
        guide: what its guide channel holds; a factor of its own in every comparison.
        method: what it was pretrained by; None when the file does not say.
    """

    source: str
    weights: str
    name: str
    dims: int
    parameters: int
    guide: str
    method: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def weights_hash(module: torch.nn.Module) -> str:
    """BLAKE2b over names, types, shapes and values of all parameters and buffers: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


def open_encoder(source: str) -> tuple[Encoder, EncoderReference]:
    """The encoder (evaluation mode, CPU, frozen) and the reference to it.

    Raises:
        InputError: nothing there, or not an encoder.
    """
    encoder = load_encoder(source).eval().requires_grad_(False)
    method = None
    if not is_spec(source):
        method = read_description(find_weights(source)).get("extra", {}).get("method")
        source = str(Path(source).resolve())
    elif source.startswith("random:"):
        method = "random"
    reference = EncoderReference(
        source=source,
        weights=weights_hash(encoder),
        name=encoder.name,
        dims=encoder.dims,
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        guide=encoder.guide,
        method=method,
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
