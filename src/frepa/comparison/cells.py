"""The cells of a study: which there are, which are there already, and one of them computed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from frepa.comparison.contents import (
    TaskContent,
    check_test_part,
    content_of,
    encoder_content,
    encoder_key,
    key_of,
    options_of,
)
from frepa.comparison.study import Row, Study, StudyTask
from frepa.downstream.sharing import Shared, sharing
from frepa.errors import InputError, RunEnded
from frepa.files import write_json, write_text
from frepa.images.hidden_names import Names
from frepa.locks import InUse
from frepa.machine import memory_of
from frepa.run_folders import CONFIG

CELLS = "cells"
#: What became of a cell: computed; the encoder does not fit the task, with the reason; ended by something unforeseen.
DONE, UNFIT, FAILED = "done", "does not fit", "failed"


@dataclass(frozen=True)
class Baseline:
    """A row that needs no encoder.

    Attributes:
        run: ``run(task, out=..., seed=..., options=..., resume=...)`` writes ``results.json`` and ``cases.csv`` as the
            task's verb does.
        verbs: of the tasks it is for.
        options: their names, with the defaults.
        seeded: another seed gives another result.
        words: what it is, for the table.
    """

    run: Callable[..., Any]
    verbs: tuple[str, ...]
    options: Mapping[str, Any]
    seeded: bool
    words: str


@dataclass(frozen=True)
class Cell:
    """One encoder, head and seed on one task.

    Attributes:
        row, draw: which encoder of which row. task: of the study.
        head: linear or trained; "" of a baseline. seed: of it.
        encoder: specification; "" of a baseline.
        key: name of its folder. content: what the key is a hash of.
        about: what is known of the encoder: name, guide, parameters, method.
        unfit: why it cannot be computed; empty where it can.
    """

    row: Row
    draw: int
    task: StudyTask
    head: str
    seed: int
    encoder: str
    key: str
    content: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    unfit: str = ""


def plan_cells(
    study: Study, verbs: Mapping[str, Callable[..., Any]], baselines: Mapping[str, Baseline], names: Names
) -> tuple[list[Cell], dict[str, TaskContent]]:
    """Every cell of a study, task after task, and the data of every task.

    Raises:
        InputError: an encoder that cannot be opened; a task that fits no encoder at all, or has no test part.
    """
    axes: dict[str, int] = {}
    for row in study.rows:
        for spec in row.encoders:
            try:
                axes[spec] = encoder_content(spec).dims
            except InputError as error:
                raise InputError(f"encoder {row.name}: {error}") from None
    cells: list[Cell] = []
    contents: dict[str, TaskContent] = {}
    for task in study.tasks:
        found: dict[int, TaskContent | str] = {}
        for dims in dict.fromkeys(axes.values()) or (2, 3):
            try:
                found[dims] = content_of(task, dims, names)
            except InputError as error:
                found[dims] = names.said(str(error))
        fitting = [item for item in found.values() if isinstance(item, TaskContent)]
        if not fitting:
            raise InputError(f"task {task.name}: {next(iter(found.values()))}")
        for item in fitting:
            check_test_part(task, item)
        contents[task.name] = fitting[0]
        for row in study.rows:
            if row.kind == "encoder":
                cells += _of_encoder(row, task, found, axes, verbs[task.verb])
            elif task.verb in baselines[row.kind].verbs:
                dims = next(dims for dims, item in found.items() if isinstance(item, TaskContent))
                cells += _of_baseline(row, task, fitting[0], dims, baselines[row.kind], verbs[task.verb])
    return cells, contents


def _of_encoder(
    row: Row,
    task: StudyTask,
    found: Mapping[int, TaskContent | str],
    axes: Mapping[str, int],
    verb: Callable[..., Any],
) -> Iterable[Cell]:
    for draw, spec in enumerate(row.encoders):
        reference, data = encoder_content(spec), found[axes[spec]]
        about = {
            "architecture": reference.name,
            "guide": reference.guide,
            "parameters": reference.parameters,
            "method": reference.method or "",
            "weights": reference.weights,
        }
        for head in task.heads:
            for seed in task.seeds_of(head):
                content = {
                    "verb": task.verb,
                    "encoder": encoder_key(spec),
                    "data": data.fingerprint if isinstance(data, TaskContent) else None,
                    "options": options_of(task, head, seed, verb),
                }
                unfit = data if isinstance(data, str) else ""
                yield Cell(row, draw, task, head, seed, spec, key_of(content), content, about, unfit)


def _of_baseline(
    row: Row, task: StudyTask, data: TaskContent, dims: int, kind: Baseline, verb: Callable[..., Any]
) -> Iterable[Cell]:
    for seed in task.seeds if kind.seeded else task.seeds[:1]:
        options = options_of(task, task.heads[0], seed, verb)
        options.pop("head", None)
        content = {
            "verb": task.verb,
            "baseline": row.kind,
            "of": {**kind.options, **row.options},
            "dims": dims,
            "data": data.fingerprint,
            "options": options,
        }
        yield Cell(row, 0, task, "", seed, "", key_of(content), content, {"architecture": kind.words})


class Record:
    """What became of a cell, as its file ``cells/KEY.json`` tells it."""

    def __init__(self, status: str, reason: str = "", seconds: float = 0.0) -> None:
        self.status, self.reason, self.seconds = status, reason, seconds

    @classmethod
    def read(cls, folder: Path, key: str) -> Record | None:
        """The record of a cell; None where it was never finished."""
        try:
            kept = json.loads((folder / f"{key}.json").read_text("utf-8"))
            return cls(str(kept["status"]), str(kept["reason"]), float(kept["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path, cell: Cell) -> None:
        """Keep it, with what the cell is made of."""
        kept = {"status": self.status, "reason": self.reason, "seconds": self.seconds, "content": dict(cell.content)}
        write_json(folder / f"{cell.key}.json", kept)


@dataclass(frozen=True)
class Job:
    """What a worker is told: call ``function(*arguments, **options)``, writing into ``out``, with so many threads.

    ``shares`` is what other cells have in common with it, "" where none does: encoder and data (see
    `frepa.downstream.sharing`). ``room``: share of the memory that may be held for that.
    """

    key: str
    out: Path
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    threads: int
    shares: str = ""
    room: float = 0.0


#: What the cells of one encoder and set have computed in this process. Of one at a time: cells come in that order.
_SHARED: dict[str, Shared] = {}


def job_of(
    cell: Cell,
    folder: Path,
    verbs: Mapping[str, Callable[..., Any]],
    baselines: Mapping[str, Baseline],
    *,
    threads: int,
    num_workers: int,
) -> Job:
    """The call that computes a cell."""
    out = folder / cell.key
    if not cell.encoder:
        kind = baselines[cell.row.kind]
        given = {"seed": cell.seed, "options": {**kind.options, **cell.row.options}, "dims": cell.content["dims"]}
        return Job(cell.key, out, kind.run, (cell.task,), given, threads)
    sources: Any = cell.task.sources if cell.task.verb == "segment" else cell.task.source
    options = {"num_workers": num_workers, **cell.task.options, **cell.content["options"]}
    return Job(cell.key, out, verbs[cell.task.verb], (sources,), {**options, "encoder": cell.encoder}, threads)


def compute(job: Job) -> tuple[str, Record]:
    """Compute a cell, here or in a worker: whatever goes wrong with it is its record, and no other cell's matter.

    A cell that was killed goes on where it was.

    Raises:
        RunEnded: the disk is full.
        KeyboardInterrupt: it was asked to stop; what it had saved stays.
    """
    import torch

    before, start = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(job.threads)
    again = {"overwrite": True} if _begun_elsewhere(job) else {"resume": True}
    try:
        # What a verb tells is in the cell's own report; the study shows which cell it is at.
        with contextlib.redirect_stderr(io.StringIO()), sharing(_shared(job)):
            job.function(*job.arguments, out=str(job.out), quiet=True, **again, **job.options)
        record = Record(DONE)
    except RunEnded:
        raise
    except InUse as error:  # a worker whose study was killed, say; the next time it has ended
        record = Record(FAILED, str(error))
    except InputError as error:
        record = Record(UNFIT, str(error))
    except Exception as error:  # of one cell: the table goes on, and this one is tried again next time
        said = str(error).strip().partition("\n")[0][:300]
        record = Record(FAILED, f"{type(error).__name__}: {said}")
        write_text(job.out.with_name(f"{job.key}.log"), "".join(traceback.format_exception(error)))
    finally:
        torch.set_num_threads(before)
    record.seconds = time.perf_counter() - start
    return job.key, record


def shares_of(cell: Cell) -> str:
    """Equal for cells of one encoder and set, whatever their heads and seeds; "" of a baseline."""
    if not cell.encoder:
        return ""
    return key_of({name: cell.content[name] for name in ("verb", "encoder", "data")})


def _shared(job: Job) -> Shared | None:
    if job.shares not in _SHARED:
        _SHARED.clear()
        if job.shares:
            import torch

            _SHARED[job.shares] = Shared(int(job.room * memory_of(torch.device("cpu"))))
    return _SHARED.get(job.shares)


def forget_shared() -> None:
    """Give back the memory that cells of this process shared."""
    _SHARED.clear()


def _begun_elsewhere(job: Job) -> bool:
    """Whether a cell that was killed had been begun on the same encoder or data at another place."""
    try:
        kept = yaml.safe_load((job.out / CONFIG).read_text("utf-8"))
        # Where names are hidden the source is not kept.
        return any(name in kept and kept[name] != value for name, value in _named(job).items())
    except (OSError, ValueError, yaml.YAMLError, TypeError):
        return False


def _named(job: Job) -> dict[str, Any]:
    names = {"encoder": job.options["encoder"]} if "encoder" in job.options else {}
    return {**names, "source": job.arguments[0]} if names else {}


def remove_if_empty(folder: Path) -> None:
    """Take away the folder of a cell in which nothing was written."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)
