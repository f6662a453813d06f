"""The folder of a pretraining run: what is in it, when it may be written, and its metrics file."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from frepa.checkpoints import Checkpoints
from frepa.errors import InputError
from frepa.files import append_json_lines, clean_temporaries, keep_lines, write_csv
from frepa.run_folders import check_same_options, out_folder
from frepa.user_paths import inputs_near, named_folder

# What a resumed run may change: how it is executed and how long it is. Everything else decides the result.
MAY_CHANGE_ON_RESUME = frozenset(
    {
        "out",
        "resume",
        "overwrite",
        "quiet",
        "num_workers",
        "devices",
        "num_nodes",
        "checkpoint_every",
        "config",
        "recompute",
    }
    | {"accept_changed_source", "max_unreadable"}
)


class RunFolder:
    """Paths of a run and the rules for opening it; used as a context, so that the folder is given back at the end.

    ``config.yaml`` every option, resolved; ``metrics.jsonl`` one line per step (the same for every machine speed);
    ``speed.jsonl`` images/s and share of waiting; ``skipped.csv`` files that could not be used; ``source.npz`` what it
    trains on, in hashes; ``reconstructions/``
    one picture per epoch; ``volumes/`` in 3D, crops of the newest picture as NIfTI; ``checkpoints/``; ``best/`` the
    best encoder so far, where one is kept; ``encoder.safetensors`` + ``encoder.json``; ``report.html``.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = named_folder(root)
        self.config = self.root / "config.yaml"
        self.metrics = self.root / "metrics.jsonl"
        self.speed = self.root / "speed.jsonl"
        self.skipped = self.root / "skipped.csv"
        self.source = self.root / "source.npz"
        self.pictures = self.root / "reconstructions"
        self.volumes = self.root / "volumes"
        self.best = self.root / "best"
        self.report = self.root / "report.html"
        self.checkpoints = Checkpoints(self.root / "checkpoints")
        self.resumed = False
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Give the folder back, to be called on every rank; says in plain words that the disk is full."""
        self._opened.__exit__(kind, error, trace)

    def open(
        self,
        config: Mapping[str, Any],
        source: str,
        *,
        resume: bool,
        overwrite: bool,
        key: Callable[[str | None], str | None] = lambda _: None,
    ) -> None:
        """Create the folder, or check that it may be continued or replaced; hold it until the end of the context.

        Raises:
            InputError: the folder exists and neither ``resume`` nor ``overwrite`` was asked for; both were; the
                folder is not a run, or lies in the source; or a resumed run was started with other options.
        """
        if Path(source).is_dir() and any(where == "around" for where, _ in inputs_near(self.root, source)):
            raise InputError(
                f"--out {self.root} lies inside the source {source}, and the pictures that a run writes would become "
                "part of it. Name a folder outside."
            )
        folder = self._opened.enter_context(
            out_folder(
                self.root,
                "pretrain",
                overwrite=overwrite,
                resume=resume,
                can_resume=True,
                inputs={"the source": source},
                key=key,
            )
        )
        self.resumed = folder.resumed
        if self.resumed:
            check_same_options(self.config, config, _free(config))
        folder.start(config)
        clean_temporaries(self.checkpoints.folder)
        if not self.resumed and self.checkpoints.steps():
            raise InputError(
                f"{self.checkpoints.folder} holds states that this run did not write, and it would go on from them. "
                "Move them elsewhere."
            )

    def cut_logs(self, step: int) -> None:
        """Drop the lines of ``metrics.jsonl`` and ``speed.jsonl`` after ``step``: they will be written again.

        After step 0, all of them: what is looked at before the first step belongs to no state.
        """
        for path in (self.metrics, self.speed):
            keep_lines(path, lambda row: step > 0 and row["step"] <= step)

    def append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows as JSON lines."""
        append_json_lines(path, rows)

    def read_skipped(self) -> dict[str, str]:
        """What :meth:`write_skipped` listed; nothing where there is no list, or no sound one."""
        try:
            with open(self.skipped, newline="", encoding="utf-8", errors="replace") as file:
                return {row["path"]: row["reason"] for row in csv.DictReader(file)}
        except (OSError, KeyError, csv.Error):
            return {}

    def write_skipped(self, skipped: Mapping[str, str]) -> None:
        """List files that could not be used, one row each: path and reason."""
        rows = [{"path": path, "reason": reason} for path, reason in sorted(skipped.items())]
        write_csv(self.skipped, ["path", "reason"], rows)


def _free(config: Mapping[str, Any]) -> frozenset[str]:
    # Only a constant rate makes a longer run the continuation of a shorter one.
    longer = {"epochs", "max_steps"} if config.get("schedule") == "constant" else set()
    return MAY_CHANGE_ON_RESUME | longer
