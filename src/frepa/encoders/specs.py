"""Encoders named on the command line without a run folder: ``random:NAME`` and ``timm:NAME@CHECKPOINT``.

Options follow a question mark: ``random:convnext_atto?guide=none&output_stride=8``. A new kind of specification is one
function with ``@scheme``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import torch

from frepa.encoders.contract import Encoder
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError, nearest

_SCHEMES: dict[str, Callable[[str, dict[str, Any]], Encoder]] = {}


def scheme(name: str) -> Callable:
    """Register ``loader(rest, options) -> Encoder`` for ``name:rest?option=value``."""

    def add(loader: Callable[[str, dict[str, Any]], Encoder]) -> Callable:
        _SCHEMES[name] = loader
        return loader

    return add


def is_spec(text: str) -> bool:
    """Whether the text begins with a known scheme such as ``random:``."""
    return text.split(":", 1)[0] in _SCHEMES and ":" in text


def load_spec(text: str) -> Encoder:
    """The encoder that a specification means. Raises InputError on an unknown name, option or checkpoint."""
    kind, rest = text.split(":", 1)
    rest, options = split_options(rest)
    return _SCHEMES[kind](rest, options)


def split_spec(text: str) -> tuple[str, str, str]:
    """Scheme, what follows it, and its options with their question mark; ``("", text, "")`` for anything else.

    ``"slices:runs/a?width=64"`` gives ``("slices", "runs/a", "?width=64")``.
    """
    if not is_spec(text):
        return "", text, ""
    kind, rest = text.split(":", 1)
    name, mark, query = rest.partition("?")
    return kind, name, mark + query


def split_options(text: str) -> tuple[str, dict[str, Any]]:
    """``"convnext_atto?output_stride=8"`` as ``("convnext_atto", {"output_stride": 8})``."""
    name, _, query = text.partition("?")
    return name, {key: _value(value) for key, value in parse_qsl(query, keep_blank_values=True)}


def join_options(name: str, options: dict[str, Any]) -> str:
    """The inverse of ``split_options``."""
    query = {key: value if isinstance(value, str) else json.dumps(value) for key, value in options.items()}
    return f"{name}?{urlencode(query)}" if query else name


@scheme("random")
def _random(name: str, options: dict[str, Any]) -> Encoder:
    """``random:NAME``: untrained weights, the same for the same ``seed`` (0 unless given)."""
    seed = options.pop("seed", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(name, **options)


@scheme("timm")
def _timm(rest: str, options: dict[str, Any]) -> Encoder:
    """``timm:NAME@CHECKPOINT``: a trunk trained elsewhere; ``timm:NAME?download=true`` fetches timm's own weights."""
    from frepa.encoders.foreign import load_timm

    name, _, checkpoint = rest.partition("@")
    return load_timm(name, Path(checkpoint) if checkpoint else None, **options)


@scheme("slices")
def _slices(rest: str, options: dict[str, Any]) -> Encoder:
    """``slices:ENCODER2D``: volumes slice by slice through a frozen 2D encoder (Frepa section 3.3.2).

    ENCODER2D is a run folder, an encoder file or a specification; options that are not the transfer's go to it.
    """
    from frepa.encoders.files import load_encoder
    from frepa.encoders.slice_transfer import SliceTransfer

    own = {key: options.pop(key) for key in ("rounds", "width", "heads", "chunk") if key in options}
    seed = options.get("seed", 0)
    if is_spec(rest):
        rest = join_options(rest, options)
    else:
        unknown = next((key for key in options if key != "seed"), None)
        if unknown is not None:
            known = ("rounds", "width", "heads", "chunk", "seed")
            raise InputError(f"slices:{rest} has no option {unknown!r}. {nearest(unknown, known)}")
    encoder2d = load_encoder(rest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SliceTransfer(encoder2d, **own)


def _value(text: str) -> Any:
    """Numbers and true/false as such, anything else as text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
