"""What predict and evaluate have in common: a trained run that is applied, and a folder that is gone on with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from frepa.downstream.options import check_least
from frepa.downstream.run import RESULTS
from frepa.downstream.trained import TrainedHead, load_head
from frepa.errors import InputError
from frepa.files import file_digest
from frepa.images.hidden_names import Names, naming
from frepa.machine import device_name
from frepa.run_folders import CONFIG, OutFolder, check_same_options, out_folder
from frepa.stopping import StopRequest

#: What is finished, a line each.
DONE = "done.jsonl"


@dataclass(frozen=True, kw_only=True)
class ApplyOptions:
    """What both are told; see the verbs."""

    run: str
    source: list[str]
    out: str
    encoder: str | None
    fold: int | None
    head_seed: int | None
    precision: str
    num_workers: int
    anonymous_names: bool = False
    resume: bool
    overwrite: bool
    quiet: bool

    def check(self) -> None:
        """Raise InputError for values out of range."""
        check_least(0, num_workers=self.num_workers)

    def kept(self) -> dict[str, Any]:
        """What ``config.yaml`` holds."""
        left_out = ("resume", "overwrite", "quiet", *(["source"] if self.anonymous_names else []))
        return {name: value for name, value in asdict(self).items() if name not in left_out}


class Applying(NamedTuple):
    """What is open while a run is applied.

    names: what stands for names of files. out: the folder. stop, go_on: whether it is to stop, and how to continue
    then, in words.
    """

    names: Names
    out: OutFolder
    stop: StopRequest
    go_on: str


def load(options: ApplyOptions) -> tuple[TrainedHead[Any], dict[str, Any]]:
    """The heads of the run, and what ``results.json`` says of them."""
    head = load_head(
        options.run, fold=options.fold, seed=options.head_seed, encoder=options.encoder, precision=options.precision
    )
    return head, {
        "task": head.task,
        "heads": [file_digest(file) for file in head.files],
        "encoder": head.reference.as_dict(),
        "guide": head.reference.guide,
        "train": head.tuned or "head",
        "device": device_name(head.models[0].device),
    }


@contextlib.contextmanager
def applying(verb: str, options: ApplyOptions, heads: list[str], may_change: frozenset[str]) -> Iterator[Applying]:
    """The folder, begun or gone on with, from the moment the heads are there.

    Args:
        verb: whose folder it is.
        heads: hashes of their files.
        may_change: options that may differ between the command that began the folder and the one that continues it.

    Raises:
        InputError: the folder is not to be touched, or was begun with other options or heads.
    """
    go_on = f"Continue with the same command and --resume ({options.out})."
    with (
        naming(options.anonymous_names, options.source, keep=[options.out, options.run, options.encoder]) as names,
        out_folder(
            options.out,
            verb,
            overwrite=options.overwrite,
            resume=options.resume,
            can_resume=True,
            inputs={"the source": options.source, "the run": options.run, "--encoder": options.encoder},
            key=names.key,
        ) as out,
        StopRequest(at_once=f"Stopped on request. {go_on}") as stop,
    ):
        if out.resumed:
            check_same_options(out.root / CONFIG, options.kept(), may_change)
            _check_same_heads(out.root / RESULTS, heads)
        yield Applying(names, out, stop, go_on)


def _check_same_heads(results: Path, hashes: list[str]) -> None:
    """Raise InputError where ``results.json`` of a folder that is gone on with names other heads."""
    if not results.is_file():
        return
    known = json.loads(results.read_text("utf-8")).get("heads")
    if known != hashes:
        raise InputError(
            f"--resume: {results.parent} was begun with other heads than the run holds now, and its results would be "
            "of both. Start again with --overwrite, or name another folder."
        )
