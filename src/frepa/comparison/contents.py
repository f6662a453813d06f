"""What a cell of a study is made of, as hashes: the encoder's weights, the data of a task, options, version."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import frepa
from frepa.comparison.study import HEADS, StudyTask
from frepa.datasets.cases import SegmentationSet
from frepa.datasets.stacks import Dividing
from frepa.downstream.classification.data import open_data
from frepa.downstream.detection.data import open_boxes
from frepa.downstream.division import DividedRecords
from frepa.downstream.resuming import digest
from frepa.downstream.segmentation.data import SegmentationData, open_sets, sets_under
from frepa.encoders.reference import EncoderReference, open_encoder
from frepa.errors import InputError
from frepa.images.anonymity import pseudonym
from frepa.images.hidden_names import Names

#: Raised by whoever changes what a cell holds for equal options (a head, its training, a measure), so that cells of
#: before are computed again. 1: heads whose convolutions Adam moved, up to the choice of flips by the masks.
VERSION = 2
#: Options that never change a result.
_PASSING = ("out", "resume", "overwrite", "quiet", "num_workers", "feature_cache", "bundle", "source", "encoder")


@dataclass(frozen=True)
class TaskContent:
    """What a task is measured on: a hash of it, cases in each part (of the first fold), how the parts came about."""

    fingerprint: str
    parts: dict[str, int]
    note: str


def content_of(task: StudyTask, dims: int, names: Names) -> TaskContent:
    """The data of a task for encoders of so many axes: which images, labels and parts. No image is decoded.

    Raises:
        InputError: the source is not understood, holds nothing for the task, or cannot be divided into parts.
    """
    options = task.options
    seed, folds = task.seeds[0], options.get("folds")
    if task.verb == "segment":
        sets = task_sets(task, dims, seed)
        if folds:
            SegmentationData(tuple(sets), {}, {}).folds(folds, seed)
        every = [
            (item.name, case.source.fingerprint, case.record, _size(case.mask), _size(case.fov), case.target, case.rule,
             case.group, case.split, case.fold)
            for item in sets
            for case in item.cases
        ]  # fmt: skip
        parts = {part: sum(len(item.part(part)) for item in sets) for part in ("train", "val", "test")}
        notes = "; ".join(f"{item.name}: {item.split_note}" for item in sets_under(sets, names))
        return TaskContent(_hash(every, task), parts, notes)
    assert isinstance(task.source, str)
    data: DividedRecords
    common = _division(task, dims, seed)
    if task.verb == "classify":
        data = open_data(task.source, **common)
        found: Any = ()
    else:
        data = open_boxes(task.source, mask_threshold=options.get("mask_threshold"), workers=0, **common)
        found = data.findings
    if folds:
        data = data.folds(folds, seed)[0]
    known = (data.source, data.classes, data.records, data.targets, data.parts, data.groups, found)
    names.learn(data.source)
    return TaskContent(_hash(known, task), data.sizes(), names.said(data.split_note))


def _hash(known: Any, task: StudyTask) -> str:
    """Names of files are among what it is made of: whoever has an idea of them could try it, where it has no key."""
    return pseudonym(digest(known)) if task.anonymous else digest(known)


def task_sets(task: StudyTask, dims: int, seed: int) -> list[SegmentationSet]:
    """The sets of a task of segment, divided as its options say."""
    return open_sets(task.sources, **_division(task, dims, seed))


def _division(task: StudyTask, dims: int, seed: int) -> dict[str, Any]:
    options = task.options
    how = Dividing(options.get("divide_by", "patients"), options.get("split", "official"), options.get("folds"))
    return {"dims": dims, "seed": seed, "how": how}


def _size(path: Any) -> int:
    with contextlib.suppress(OSError, TypeError):
        return os.stat(path).st_size
    return -1


@lru_cache(maxsize=1024)
def encoder_content(spec: str) -> EncoderReference:
    """What an encoder is: its weights' hash, axes, guide.

    Raises:
        InputError: nothing there, or no encoder.
    """
    return open_encoder(spec)[1]


def options_of(task: StudyTask, head: str, seed: int, verb: Callable[..., Any]) -> dict[str, Any]:
    """Every option of the verb that this cell is run with, but where it is written and how."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(verb).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    chosen = {**defaults, **task.options, "seed": seed}
    if HEADS[task.verb][head] is not None:
        chosen["head"] = HEADS[task.verb][head]
    return {name: value for name, value in chosen.items() if name not in _PASSING}


def encoder_key(spec: str) -> dict[str, Any]:
    """What of an encoder decides a result: content, not place."""
    found = encoder_content(spec)
    # What follows the first comma changes how an encoder is read, which the weights alone do not tell.
    return {
        "weights": found.weights,
        "name": found.name,
        "dims": found.dims,
        "guide": found.guide,
        "architecture": found.untrained,
        "options": "" if os.path.exists(spec) else spec.partition(",")[2],
    }


def key_of(content: Mapping[str, Any]) -> str:
    """The name of a cell: a hash of what it is made of, with the version of the program."""
    whole = {**content, "version": [frepa.__version__, VERSION]}
    text = json.dumps(whole, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def check_test_part(task: StudyTask, content: TaskContent) -> None:
    """Raise InputError where nothing of a task is tested."""
    if not content.parts.get("test"):
        raise InputError(
            f"task {task.name}: {task.source} has no test part, so there is nothing to compare on (split: "
            f"{content.note}). Give a set with one, or divide it anew with split: random."
        )
