"""Which encoder a head belongs to: where it is, what it is, and a hash of its weights to recognise it by."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from frepa.encoders.contract import Encoder
from frepa.encoders.files import absolute, load_encoder, method_of
from frepa.errors import InputError
from frepa.images.anonymity import pseudonym
from frepa.names import shown

# Schemes that open no file
_BY_THEMSELVES = ("random:", "pixels:")
_FETCHED = re.compile(r"[,?&]download=")


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
        seal: of ``source`` and ``weights`` under the owner's key; only whoever made the head can make it.
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
    seal: str = ""

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
    return encoder, replace(reference, seal=_seal(reference))


def reopen_encoder(reference: EncoderReference, source: str | None = None) -> Encoder:
    """The encoder a head was trained on, from where the reference says or from ``source``.

    A head that came from somebody else may name any file and any address. So where it says alone is followed only if
    its seal is one's own, and what would be fetched over the network is never fetched unless ``source`` asks for it.

    Raises:
        InputError: it is not there any more, its weights are others, or nobody but the head says where it is.
    """
    if source is None:
        _check_followable(reference)
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


def _seal(reference: EncoderReference) -> str:
    try:
        return pseudonym(f"encoder\0{reference.source}\0{reference.weights}")
    except InputError:  # no key can be kept on this machine: the head will want to be told where its encoder is
        return ""


def _check_followable(reference: EncoderReference) -> None:
    source = reference.source
    if _FETCHED.search(source):
        raise InputError(
            f"The head was trained on {shown(source)}, which would be fetched over the network. Opening a head never "
            "does that: name the encoder yourself, by that specification or by a file."
        )
    if source.startswith(_BY_THEMSELVES) or (reference.seal and reference.seal == _seal(reference)):
        return
    raise InputError(
        f"The head says that its encoder is {shown(source)}, but it was made by somebody else, on another machine or "
        "under another key, and no file is opened on its word alone. Name the encoder yourself."
    )


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
