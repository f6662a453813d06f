"""The folder of a pretraining run: what is in it, when it may be written, and its metrics file."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from frepa.errors import InputError
from frepa.files import write_text_atomically
from frepa.pretraining.checkpoints import Checkpoints

# What a resumed run may change: how it is executed and how long it is. Everything else decides the result.
MAY_CHANGE_ON_RESUME = frozenset(
    {"resume", "overwrite", "quiet", "num_workers", "devices", "num_nodes", "checkpoint_every", "config", "recompute"}
)


class RunFolder:
    """Paths of a run and the rules for opening it.

    ``config.yaml`` every option, resolved; ``metrics.jsonl`` one line per step (the same for every machine speed);
    ``speed.jsonl`` images/s and share of waiting; ``skipped.csv`` files that could not be used; ``reconstructions/``
    one picture per epoch; ``volumes/`` in 3D, crops of the newest picture as NIfTI; ``checkpoints/``;
    ``encoder.safetensors`` + ``encoder.json``; ``report.html``.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.metrics = self.root / "metrics.jsonl"
        self.speed = self.root / "speed.jsonl"
        self.skipped = self.root / "skipped.csv"
        self.pictures = self.root / "reconstructions"
        self.volumes = self.root / "volumes"
        self.report = self.root / "report.html"
        self.checkpoints = Checkpoints(self.root / "checkpoints")

    def open(self, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Create the folder, or check that it may be continued or replaced.

        Raises:
            InputError: the folder exists and neither ``resume`` nor ``overwrite`` was asked for; both were; the
                folder is not a run; or a resumed run was started with other options.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite contradict each other: give one of them.")
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"--out {self.root}: this is a file. Name a folder.")
        occupied = self.root.is_dir() and any(self.root.iterdir())
        if occupied and not self.config.is_file():
            raise InputError(
                f"--out {self.root}: the folder holds files but no config.yaml, so it is not a run of this program "
                "and nothing in it will be touched. Name another folder."
            )
        if occupied and not resume and not overwrite:
            raise InputError(
                f"--out {self.root}: a run is there already. Add --resume to continue it, --overwrite to replace it, "
                "or name another folder."
            )
        if occupied and overwrite:
            shutil.rmtree(self.root)
            occupied = False
        if occupied:
            self._check_same_options(config)
        self.root.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.config, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def _check_same_options(self, config: Mapping[str, Any]) -> None:
        stored = yaml.safe_load(self.config.read_text()) or {}
        free = set(MAY_CHANGE_ON_RESUME)
        if config.get("schedule") == "constant":
            # Only a constant rate makes a longer run the continuation of a shorter one.
            free |= {"epochs", "max_steps"}
        changed = [
            f"  {name}: was {stored.get(name)!r}, now {value!r}"
            for name, value in config.items()
            if name not in free and stored.get(name) != value
        ]
        if changed:
            raise InputError(
                f"--resume: {self.root} was started with other options, and its result would fit neither:\n"
                + "\n".join(changed)
                + f"\nGive the same options again (--config {self.config} holds them), or start a new run."
            )

    def cut_logs(self, step: int) -> None:
        """Drop the lines of ``metrics.jsonl`` and ``speed.jsonl`` after ``step``: they will be written again."""
        for path in (self.metrics, self.speed):
            if path.is_file():
                kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
                write_text_atomically(path, "".join(line + "\n" for line in kept))

    def append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows as JSON lines."""
        with open(path, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def write_skipped(self, skipped: Mapping[str, str]) -> None:
        """List files that could not be used, one row each: path and reason."""
        with open(self.skipped, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "reason"])
            writer.writerows(sorted(skipped.items()))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut by a kill: drop it
