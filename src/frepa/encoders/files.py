"""Encoders on disk: one safetensors file that explains itself, and the same description beside it as JSON.

``encoder.safetensors`` holds the weights and, in its header, the description that rebuilds the architecture, so that
the file alone is enough. ``encoder.json`` is that description for people and other programs. No pickle anywhere.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from frepa.encoders.contract import Encoder
from frepa.encoders.options import split_name, split_options
from frepa.encoders.registry import Scheme, build_encoder, find_scheme
from frepa.errors import InputError
from frepa.files import write_tensors, write_text
from frepa.names import shown

WEIGHTS = "encoder.safetensors"
DESCRIPTION = "encoder.json"
FORMAT = 1


def save_encoder(folder: str | Path, encoder: Encoder, extra: dict[str, Any] | None = None) -> Path:
    """Write ``encoder.safetensors`` and ``encoder.json`` into ``folder``, and return the path of the first.

    Each file is written under a temporary name and renamed, so that a reader never sees half a file.

    Args:
        folder: made when it is missing.
        encoder: any registered encoder; its weights are written in their own dtype.
        extra: JSON values kept under "extra" (method, data fingerprint, versions); nothing that identifies a patient.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = {"format": FORMAT, "encoder": encoder.config, "contract": describe(encoder), "extra": extra or {}}
    text = json.dumps(description, indent=2, sort_keys=True) + "\n"
    state = encoder.state_dict()
    weights = {key: state[key].detach().contiguous() for key in dict.fromkeys(_first_names(state).values())}
    target = folder / WEIGHTS
    write_tensors(target, weights, {"frepa": text})
    write_text(folder / DESCRIPTION, text)
    return target


def load_encoder(source: str | Path) -> Encoder:
    """An encoder in evaluation mode on the CPU.

    Args:
        source: a run folder or any folder with ``encoder.safetensors``; such a file; ``random:NAME`` (untrained);
            ``timm:NAME@CHECKPOINT`` (weights trained elsewhere); ``slices:ENCODER2D`` (volumes through a 2D encoder).
            Options follow commas.

    Raises:
        InputError: nothing there, not an encoder of this program, or written by a newer format.
    """
    scheme, rest = find_scheme(str(source))
    if scheme is not None:
        return _by_scheme(str(source), scheme, rest).eval()
    path = find_weights(source)
    description = read_description(path)
    encoder = _build(path, description)
    try:
        weights = load_file(path)
        names = _first_names(encoder.state_dict())
        shared = {key: weights[first] for key, first in names.items() if first in weights}
        encoder.load_state_dict(weights | shared)
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            f"the weights in {path} do not fit the encoder it describes ({encoder.name}): {_first_line(error)} "
            "Save the encoder again with save_encoder."
        ) from None
    return encoder.eval()


def absolute(source: str) -> str:
    """``source`` with every path in it absolute, so that it means the same from another folder."""
    scheme, rest = find_scheme(source)
    if scheme is None:
        return str(Path(source).resolve())
    name, options = split_name(rest)
    return f"{source[: len(source) - len(rest)]}{scheme.absolute(name)}{options}"


def method_of(source: str) -> str | None:
    """What an encoder was pretrained by: "random" for none, None where nobody says."""
    scheme, rest = find_scheme(source)
    if scheme is not None:
        return scheme.origin(split_name(rest)[0])
    method = read_description(find_weights(source)).get("extra", {}).get("method")
    return method if isinstance(method, str) else None


def find_weights(source: str | Path) -> Path:
    """The ``encoder.safetensors`` that a run folder, a folder or a file path means; InputError where there is none."""
    if not str(source).strip():
        raise InputError(
            "The encoder is empty. Give a run folder, an encoder file, random:NAME or timm:NAME@CHECKPOINT."
        )
    path = Path(source)
    if os.path.isdir(path):  # which, unlike Path.is_dir, takes any name
        weights = path / WEIGHTS
        if not weights.is_file():
            unfinished = next(path.glob(f"checkpoints/{WEIGHTS}"), None)
            raise InputError(
                f"{path} has no {WEIGHTS}. "
                + (
                    f"The run is not finished; {unfinished.parent} holds the encoder as its newest checkpoint has it."
                    if unfinished
                    else "Give the folder of a finished run, or the encoder file itself."
                )
            )
        return weights
    if not os.path.isfile(path):
        raise InputError(
            f"encoder {shown(source)} was not found. "
            f"Give a run folder, an {WEIGHTS} file, random:NAME or timm:NAME@CHECKPOINT."
        )
    return path


def read_description(path: Path) -> dict[str, Any]:
    """The description in the header of an encoder file; the weights are not read."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a safetensors file, or was cut short ({_first_line(error)}). "
            "A torch checkpoint trained elsewhere is given as timm:NAME@FILE."
        ) from None
    if "frepa" not in metadata:
        raise InputError(
            f"{path} is a safetensors file, but no encoder of this program: it does not say how to build the network. "
            f"Give weights trained elsewhere as timm:NAME@{path}."
        )
    description = _parsed(path, metadata["frepa"])
    found = description["format"]
    if found > FORMAT:
        raise InputError(
            f"{path} is in encoder format {found}, and this version of frepa reads up to {FORMAT}. Install a newer "
            "frepa."
        )
    if found < 1:
        raise InputError(
            f"{path} says that it is in encoder format {found}, and there is none below 1: its header was damaged or "
            "altered. Save the encoder again with save_encoder."
        )
    return description


def _parsed(path: Path, text: str) -> dict[str, Any]:
    """The description as it is written, of the kinds of values that it is read with. Others may have made the file."""
    try:
        description = json.loads(text)
        kinds = {"format": int, "encoder": dict, "extra": dict}
        if not all(isinstance(description.get(key, kind()), kind) for key, kind in kinds.items()):
            raise ValueError("its entries are of other kinds")
        if isinstance(description["format"], bool):
            raise ValueError("its format is no number")
        if not isinstance(description["encoder"]["name"], str):
            raise ValueError("its name is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: the description in its header is damaged, so the network cannot be built "
            f"({type(error).__name__}: {shown(str(error))[:80]}). Save the encoder again with save_encoder."
        ) from None
    return description


def describe(encoder: Encoder) -> dict[str, Any]:
    """The input and output contract of an encoder as JSON values."""
    return {
        "dims": encoder.dims,
        "in_channels": encoder.in_channels,
        "image_channels": encoder.image_channels,
        "guide": encoder.guide,
        "intensity": encoder.intensity,
        "size_multiple": encoder.size_multiple,
        "stride": encoder.stride,
        "channels": encoder.channels,
        "embedding_channels": encoder.embedding_channels,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
    }


def _first_names(state: dict[str, Tensor]) -> dict[str, str]:
    """For each key the first key of the same tensor: a layer that a network holds under two names is stored once."""
    seen: dict[Any, str] = {}
    return {key: seen.setdefault((tensor.data_ptr() or key, tensor.shape), key) for key, tensor in state.items()}


def _build(path: Path, description: dict[str, Any]) -> Encoder:
    # Building draws random weights that are overwritten at once: the caller's random stream must not notice.
    with torch.random.fork_rng(devices=[]):
        try:
            return build_encoder(**description["encoder"])
        except MemoryError:
            raise
        except Exception as error:  # whatever the values of a file make of an architecture
            raise InputError(f"{path} cannot be built by this version of frepa: {shown(_first_line(error))}") from None


def _by_scheme(source: str, scheme: Scheme, rest: str) -> Encoder:
    name, options = split_options(rest)
    try:
        return scheme.load(name, options)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # options and files that nobody foresaw: what they name is the user's
        reason = f"{type(error).__name__}: {shown(_first_line(error))}"
        raise InputError(f"encoder {shown(source)} cannot be opened ({reason}).") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else (lines[0] if lines else type(error).__name__)
