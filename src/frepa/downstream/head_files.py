"""Heads on disk: one safetensors file that explains itself, and the same description beside it as JSON.

The encoder is not in it, but a reference to it. A run that was written as a bundle holds ``encoder.safetensors`` too,
and is whole wherever it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from frepa.downstream.frozen import PREFIX, HeadOnFrozen, load_trained_state, trained_state
from frepa.downstream.tuning import mark
from frepa.encoders.contract import Encoder
from frepa.encoders.files import WEIGHTS as BUNDLED
from frepa.encoders.reference import EncoderReference, reopen_encoder
from frepa.errors import InputError
from frepa.files import write_tensors, write_text

WEIGHTS = "head.safetensors"
DESCRIPTION = "head.json"
FORMAT = 2


def save_head(folder: Path, model: HeadOnFrozen, description: dict[str, Any]) -> Path:
    """Write ``head.safetensors`` and ``head.json``: the head, and what of the encoder was trained with it.

    ``description`` holds at least ``task``; ``format`` is added, and ``tuned`` where the encoder was not left frozen.
    """
    tuned = {} if model.tuning is None else {"tuned": model.tuning.as_dict()}
    text = json.dumps({"format": FORMAT, **description, **tuned}, indent=2) + "\n"
    tensors = {**model.head.state_dict(), **trained_state(model.encoder)}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS, weights, {"frepa": text})
    write_text(folder / DESCRIPTION, text)
    return folder / WEIGHTS


def head_files(run: str | Path, *, fold: int | None = None, seed: int | None = None) -> list[Path]:
    """The head files of a run, in the order of folds and seeds: one, or as many as it trained.

    Args:
        run: run folder, a folder in it with one head, or a head file.
        fold, seed: those alone.

    Raises:
        InputError: no head there, none of that fold or seed, or the run is not finished.
    """
    path = Path(run)
    found = [path] if path.is_file() else [path / WEIGHTS] if (path / WEIGHTS).is_file() else []
    for pattern in ("folds/*", "seeds/*", "folds/*/seeds/*"):
        found += path.glob(f"{pattern}/{WEIGHTS}") if path.is_dir() else []
    if not found:
        missing = "this folder does not exist" if not path.exists() else f"no {WEIGHTS} here"
        raise InputError(f"{run}: {missing}. Give the folder of a finished run of frepa segment, classify or detect.")
    if (path / "config.yaml").is_file() and not (path / "results.json").is_file():
        raise InputError(f"{run}: this run is not finished. Finish it with the command that began it and --resume.")
    marked = sorted((_numbers_of(file, path), file) for file in found)
    for name, wanted in (("fold", fold), ("seed", seed)):
        if wanted is None:
            continue
        there = sorted({number for marks, _ in marked for kind, number in marks if kind == name})
        if wanted not in there:
            have = f"its {name}s are {', '.join(map(str, there))}" if there else f"it has no {name}s"
            raise InputError(f"--{name} {wanted}: not in the run {run}; {have}.")
        marked = [(marks, file) for marks, file in marked if (name, wanted) in marks]
    return [file for _, file in marked]


def _numbers_of(file: Path, run: Path) -> tuple[tuple[str, int], ...]:
    """``(("fold", 2), ("seed", 1))`` of ``run/folds/2/seeds/1/head.safetensors``."""
    parts = file.relative_to(run).parts[:-1] if run.is_dir() else ()
    return tuple((kind.removesuffix("s"), int(number)) for kind, number in zip(parts[::2], parts[1::2]))


def open_head(run: str | Path, task: str, encoder: str | Encoder | None) -> tuple[Path, dict[str, Any], Encoder]:
    """File and description of a head, and the encoder it was trained on.

    Args:
        run: as in `read_head`.
        task: what the head must be for.
        encoder: where the encoder is now; None: in the run where that is a bundle, else where it was during training.
            Its weights must be the same. An encoder that is open already is taken as it is.

    Raises:
        InputError: no such head there, or the encoder is gone or another one.
    """
    path, description = read_head(run, task)
    if isinstance(encoder, Encoder):
        return path, description, encoder
    return path, description, reopen_encoder(EncoderReference(**description["encoder"]), encoder or _bundled(path))


def _bundled(head: Path) -> str | None:
    """The encoder file of the run that a head file is in, where it has one."""
    folder = head.parent
    for _ in range(3):  # folds/1/seeds/0
        if (folder / BUNDLED).is_file():
            return str(folder / BUNDLED)
        if folder.parent.name not in ("folds", "seeds"):
            break
        folder = folder.parent.parent
    return None


def read_head(run: str | Path, task: str | None) -> tuple[Path, dict[str, Any]]:
    """File and description of the head in a run folder (or of the file itself); no weights are read.

    ``task`` is what it must be for, None for any.

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
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable head file ({error}).") from None
    found = description.get("format") if isinstance(description, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise InputError(f"{path}: its header describes no head of this program.")
    if "task" not in description or task not in (None, description["task"]):
        raise InputError(f"{path}: holds no {task or 'trained'} head of this program.")
    if found < FORMAT:
        raise InputError(
            f"{path}: made by an older frepa, whose heads saw the encoder's features as they came. Heads now see them "
            f"standardised, and this one does not fit. Train it again with the same command (its config.yaml is "
            "beside it), or install the frepa that made it."
        )
    if found > FORMAT:
        raise InputError(f"{path}: written by a newer frepa (format {found}). Install that one.")
    return path, description


def load_weights(path: Path, encoder: Encoder, head: nn.Module) -> None:
    """Put the weights of a head file into ``head`` and into what of ``encoder`` was trained with it.

    An encoder of which some was tuned holds that afterwards, and is no longer what it was opened as.

    Raises:
        InputError: they do not fit.
    """
    tensors: dict[str, Tensor] = load_file(path)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    mark(encoder, {name.removeprefix(PREFIX) for name in own})
    load_trained_state(encoder, own)
    head.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)})
