"""Heads on disk: one safetensors file that explains itself, and the same description beside it as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from frepa.downstream.frozen import PREFIX, load_trained_state, trained_state
from frepa.encoders.contract import Encoder
from frepa.errors import InputError
from frepa.files import write_tensors, write_text

WEIGHTS = "head.safetensors"
DESCRIPTION = "head.json"
FORMAT = 2


def save_head(folder: Path, encoder: Encoder, head: nn.Module, description: dict[str, Any]) -> Path:
    """Write ``head.safetensors`` and ``head.json``: the head, and what of the encoder was trained with it.

    ``description`` holds at least ``task``; ``format`` is added.
    """
    text = json.dumps({"format": FORMAT, **description}, indent=2) + "\n"
    tensors = {**head.state_dict(), **trained_state(encoder)}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS, weights, {"frepa": text})
    write_text(folder / DESCRIPTION, text)
    return folder / WEIGHTS


def read_head(run: str | Path, task: str) -> tuple[Path, dict[str, Any]]:
    """File and description of the head in a run folder (or of the file itself); no weights are read.

    Raises:
        InputError: no head there, not one for ``task``, or written by a newer program.
    """
    path = Path(run) / WEIGHTS if Path(run).is_dir() else Path(run)
    if not path.is_file():
        folds = sorted(Path(run).glob(f"folds/*/{WEIGHTS}"))
        hint = (
            f" It has one per fold: give {folds[0].parent}." if folds else f" Give the folder of a finished {task} run."
        )
        raise InputError(f"{run}: no {WEIGHTS} here.{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("frepa", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable head file ({error}).") from None
    if description.get("task") != task:
        raise InputError(f"{path}: holds no {task} head of this program.")
    if description["format"] < FORMAT:
        raise InputError(
            f"{path}: made by an older frepa, whose heads saw the encoder's features as they came. Heads now see them "
            f"standardised, and this one does not fit. Train it again with the same command (its config.yaml is "
            "beside it), or install the frepa that made it."
        )
    if description["format"] > FORMAT:
        raise InputError(f"{path}: written by a newer frepa (format {description['format']}). Install that one.")
    return path, description


def load_weights(path: Path, encoder: Encoder, head: nn.Module) -> None:
    """Put the weights of a head file into ``head`` and into what of ``encoder`` was trained with it.

    Raises:
        InputError: they do not fit.
    """
    tensors: dict[str, Tensor] = load_file(path)
    load_trained_state(encoder, {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)})
    head.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)})
