"""The checkpoints of a run: the two newest are kept, a damaged one is named and the one before it is used."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frepa.states import DamagedFile, hash_path, load_tree, save_tree

_NAME = re.compile(r"step-(\d{9})\.safetensors$")


class Checkpoints:
    """Training states in ``folder``, one file per step: ``step-000001200.safetensors`` and its ``.sha256``."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps that have a checkpoint file, oldest first (whether or not the file is sound)."""
        found = (_NAME.match(path.name) for path in self.folder.glob("step-*.safetensors"))
        return sorted(int(match.group(1)) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.safetensors"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after ``step`` finished steps, then drop all but the ``keep`` newest.

        Raises:
            OSError: the state could not be written; the earlier checkpoints are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(step)
        save_tree(path, state)
        for old in self.steps()[: -self.keep]:
            for file in (self.path(old), hash_path(self.path(old))):
                with contextlib.suppress(FileNotFoundError):
                    file.unlink()
        return path

    def load_newest(self, tell: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
        """The newest sound state as ``(step, state)``; None where the folder holds no checkpoint at all.

        ``tell`` is called with one sentence for every damaged file that was passed over.

        Raises:
            DamagedFile: there are checkpoints and every one of them is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, load_tree(self.path(step))
            except DamagedFile as error:
                tell(f"Checkpoint damaged, using the one before it. {error}")
        if steps:
            raise DamagedFile(
                f"{self.folder}: every checkpoint is damaged ({', '.join(self.path(s).name for s in steps)}). "
                "Restore one from a backup, or start again with --overwrite."
            )
        return None
