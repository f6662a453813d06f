"""Heads that go on after a kill: where each training stands, and what the finished heads of a run found.

Below ``checkpoints/`` of the run every head has a folder: the two newest states of its training, and when it was tested
what came of it. A run that is complete has none of them any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from frepa.checkpoints import Checkpoints
from frepa.downstream.frozen import HeadOnFrozen
from frepa.errors import InputError, Stopped
from frepa.files import clean_temporaries
from frepa.images.source import Source
from frepa.optimizers import MuonAndAdam
from frepa.states import DamagedFile, hash_path, load_tree, save_tree
from frepa.stopping import StopRequest

#: What may differ between the command that began a run and the one that continues it.
MAY_CHANGE_ON_RESUME = frozenset({"out", "resume", "overwrite", "quiet", "num_workers", "config", "feature_cache"})
STATES = "checkpoints"
#: Seconds after which a state is saved although no validation is due.
_LONG = 120.0


class Standing(Protocol):
    """Where a training stands (see `frepa.downstream.fitting.FitState`)."""

    model: HeadOnFrozen
    optimizer: MuonAndAdam
    step: int
    weights: dict[str, Tensor]
    pending: list[dict[str, Tensor]]

    def kept(self) -> dict[str, Any]:
        """What else there is to remember, as plain values."""
        ...

    def take(self, kept: Mapping[str, Any]) -> None:
        """Put back what :meth:`kept` gave."""
        ...


class HeadState:
    """The state of one head on disk, and what came of it.

    Args:
        folder: its own.
        metrics: JSON lines of all heads of the run; cut back to the state training goes on from.
        begin: bytes of ``metrics`` that earlier heads have written.
        belongs: what the state is good for: encoder, data, options.
        stop: asked after every step.
        go_on: how to continue, in a sentence.
        tell: called with sentences for the user.
    """

    def __init__(
        self,
        folder: Path,
        metrics: Path,
        begin: int,
        belongs: str,
        stop: StopRequest,
        go_on: str,
        tell: Callable[[str], None],
    ) -> None:
        self.metrics, self.begin, self.belongs = metrics, begin, belongs
        self.stop, self.go_on, self.tell = stop, go_on, tell
        self.states = Checkpoints(folder)
        self.result = folder / "result.safetensors"
        self._saved = time.monotonic()

    def restore(self, standing: Standing) -> None:
        """Go on from the newest sound state where there is one; cut ``metrics`` back to it."""
        clean_temporaries(self.states.folder)
        found = self.states.load_newest(self.tell)
        if found is None:
            _cut(self.metrics, self.begin)
            return
        step, kept = found
        self._check(kept)
        standing.model.load_trained_state({n: t.to(standing.model.device) for n, t in kept["model"].items()})
        try:
            standing.optimizer.load_state_dict(kept["optimizer"])
        except ValueError:  # other groups of weights
            raise InputError(
                f"{self.states.folder}: the state there is of another version of frepa, which trained heads otherwise. "
                "Start again with --overwrite, or go on with the version that began it."
            ) from None
        standing.step = step
        standing.weights = {name: tensor.to(standing.model.device) for name, tensor in kept["weights"].items()}
        standing.pending = [{n: torch.tensor(v) for n, v in terms.items()} for terms in kept["pending"]]
        standing.take(kept["kept"])
        _cut(self.metrics, kept["metrics"])
        self.tell(f"Continuing the head after step {step}.")

    def after_step(self, standing: Standing, *, due: bool) -> None:
        """Save where it is ``due`` (or was not for long), and end the run where somebody asked for it.

        Raises:
            Stopped: the state is saved.
        """
        if due or self.stop.requested or time.monotonic() - self._saved > _LONG:
            self.save(standing)
        if self.stop.requested:
            raise Stopped(f"Stopped on request after saving the state. {self.go_on}")

    def save(self, standing: Standing) -> None:
        """Write the state after ``standing.step`` steps; what is in ``metrics`` so far is on disk before it is."""
        names = list(standing.pending[0]) if standing.pending else []
        values = [[terms[name] for name in names] for terms in standing.pending]
        numbers = torch.stack([torch.stack(row) for row in values]).tolist() if names else []
        state = {
            "belongs": self.belongs,
            "metrics": _synced_size(self.metrics),
            "model": standing.model.trained_state(),
            "optimizer": standing.optimizer.state_dict(),
            "weights": dict(standing.weights),
            "pending": [dict(zip(names, row)) for row in numbers],
            "kept": standing.kept(),
        }
        self.states.save(standing.step, state)
        self._saved = time.monotonic()

    def load_result(self) -> Any:
        """What :meth:`save_result` was given, or None where the head is not finished."""
        if not self.result.is_file():
            return None
        try:
            kept = load_tree(self.result)
        except DamagedFile as error:
            self.tell(f"What a finished head found is damaged, and is made again. {error}")
            return None
        self._check(kept)
        return unpacked(kept["result"])

    def save_result(self, result: Any) -> None:
        """Keep what a tested head found; the states of its training are not needed any more."""
        self.states.folder.mkdir(parents=True, exist_ok=True)
        kept = {"belongs": self.belongs, "metrics": _synced_size(self.metrics), "result": packed(result)}
        save_tree(self.result, kept)
        self._drop_states()

    @property
    def end(self) -> int:
        """Bytes of ``metrics`` with the lines of this head, which is finished."""
        return int(load_tree(self.result)["metrics"])

    def remove(self) -> None:
        """Take away all there is of it."""
        self._drop_states()
        for path in (self.result, hash_path(self.result)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        with contextlib.suppress(OSError):  # holds something else
            self.states.folder.rmdir()

    def _drop_states(self) -> None:
        for step in self.states.steps():
            for path in (self.states.path(step), hash_path(self.states.path(step))):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

    def _check(self, kept: Mapping[str, Any]) -> None:
        if kept["belongs"] != self.belongs:
            raise InputError(
                f"--resume: {self.states.folder} was begun with another encoder, with data that have changed since, "
                "or under another secret key for patients, and its result would fit neither. Put them back as they "
                "were, or start again with --overwrite."
            )


def digest(*parts: Any) -> str:
    """Of values in nested dataclasses, sequences and mappings: arrays by content, sources by their fingerprint.

    Files count by path and size, what is of no known kind by its type.
    """
    state = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Source):
            state.update(value.fingerprint.encode())
        elif isinstance(value, np.ndarray):
            state.update(f"{value.dtype} {value.shape}".encode())
            state.update(repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes())
        elif isinstance(value, os.PathLike):
            with contextlib.suppress(OSError):
                state.update(str(os.stat(value).st_size).encode())
            state.update(os.fsencode(value))
        elif is_dataclass(value):
            add([(field.name, getattr(value, field.name)) for field in fields(value)])
        elif isinstance(value, Mapping):
            add(list(value.items()))
        elif isinstance(value, list | tuple):
            state.update(b"[")
            for item in value:
                add(item)
            state.update(b"]")
        elif value is None or isinstance(value, str | bytes | int | float | np.generic):
            state.update(f"{value!r},".encode("utf-8", "surrogatepass"))
        else:
            state.update(type(value).__qualname__.encode())

    add(parts)
    return state.hexdigest()


def packed(value: Any) -> Any:
    """A tree that `frepa.states.save_tree` takes, of dataclasses and named tuples of this program, arrays and paths."""
    if isinstance(value, np.ndarray):
        return {"array": torch.from_numpy(np.ascontiguousarray(value)), "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return {"path": os.fspath(value).encode("utf-8", "surrogateescape").hex()}
    if isinstance(value, type):
        return {"type": f"{value.__module__}:{value.__qualname__}"}
    kind = f"{type(value).__module__}:{type(value).__qualname__}"
    if is_dataclass(value):
        return {"class": kind, "values": {f.name: packed(getattr(value, f.name)) for f in fields(value) if f.init}}
    if hasattr(value, "_asdict"):
        return {"class": kind, "values": {name: packed(item) for name, item in value._asdict().items()}}
    if isinstance(value, Mapping):
        return {"mapping": [[packed(key), packed(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [packed(item) for item in value]}
    if isinstance(value, list):
        return [packed(item) for item in value]
    return value


def unpacked(value: Any) -> Any:
    """What :func:`packed` was given. Of classes only dataclasses and named tuples of this program are made.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return value["array"].numpy().reshape(value["shape"])
    if "type" in value:
        return _class(value["type"])
    if "path" in value:
        return Path(bytes.fromhex(value["path"]).decode("utf-8", "surrogateescape"))
    if "tuple" in value:
        return tuple(unpacked(item) for item in value["tuple"])
    if "mapping" in value:
        return {unpacked(key): unpacked(item) for key, item in value["mapping"]}
    return _class(value["class"])(**{name: unpacked(item) for name, item in value["values"].items()})


def _class(name: str) -> Callable[..., Any]:
    module, _, kind = name.partition(":")
    if module.split(".")[0] == "frepa":
        with contextlib.suppress(ImportError, AttributeError):
            found = getattr(importlib.import_module(module), kind)
            if isinstance(found, type) and (is_dataclass(found) or hasattr(found, "_fields")):
                return found
    raise InputError(f"A state names {name}, which this version of frepa has not. Start again with --overwrite.")


def _synced_size(path: Path) -> int:
    """Bytes of a file that is brought to the disk; 0 where there is none."""
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _cut(path: Path, size: int) -> None:
    if path.is_file() and path.stat().st_size > size:
        os.truncate(path, size)
