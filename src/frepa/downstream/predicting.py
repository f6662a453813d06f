"""A trained head put on every scan of a source: what is written for each, one after the other, and gone on with.

Nothing is held but the scan that is worked on and those read ahead, so a source may be larger than memory. Every scan
that is finished is a line of ``done.jsonl``; a run that is continued does the others alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from frepa.datasets.opening import open_source
from frepa.downstream.applying import DONE, ApplyOptions, applying, load
from frepa.downstream.fitting import read_ahead
from frepa.downstream.predicted import FORMATS, Writing, out_name, write_answer
from frepa.downstream.predicted_page import write_page
from frepa.downstream.run import RESULTS, SKIPPED, tell
from frepa.downstream.trained import Answer, TrainedHead
from frepa.errors import InputError, Stopped, nearest
from frepa.files import append_json_lines, keep_lines, write_csv, write_json
from frepa.images.filed import OF_VOLUMES, Filed, filed
from frepa.images.files import FileSource
from frepa.images.hidden_names import Names
from frepa.images.scan import Scan, Skipped, UnreadableScan, write_skipped
from frepa.images.source import Source
from frepa.machine import device_name, versions

PREDICTIONS, BOXES = "predictions.csv", "boxes.csv"
_FOR_VOLUMES = 'Train one on volumes, with a 3D encoder or --encoder "slices:ENCODER".'
#: What may differ between the command that began a run and the one that continues it.
_NO_SIZE = "its file says no voxel size"
_MAY_CHANGE = frozenset({"encoder", "num_workers", "source", "precision"})


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ApplyOptions):
    """What `predict` is told; see the verb."""

    format: str
    probabilities: bool
    overlays: bool

    def check(self) -> None:
        """Raise InputError for values out of range."""
        super().check()
        if self.anonymous_names and self.format == "dicom-seg":
            raise InputError(
                "--format dicom-seg: such a file names the patient and the images it belongs to. Take nifti, or leave "
                "--anonymous-names out."
            )
        if self.format not in FORMATS:
            raise InputError(f"--format {self.format}: not known. {nearest(self.format, FORMATS)}")


class _Read(NamedTuple):
    """One record: where it comes from and what it is called; and the scan, or why there is none."""

    key: tuple[int, str]
    scan: Scan | None
    grid: Filed | None
    trouble: Skipped | None


def predict_all(options: PredictOptions) -> Path:
    """Put the heads of a run on every scan of the sources; returns the folder written.

    The folder holds ``predictions.csv`` (a line per scan), ``masks/``, or ``boxes/`` and ``boxes.csv``, ``overlays/``
    and ``probabilities/`` where asked for, ``skipped.csv``, ``results.json`` and ``config.yaml``.

    Raises:
        InputError: no such run, nothing to read in the sources, or scans with another number of axes.
    """
    options.check()
    head, facts = load(options)
    how = Writing(options.format, options.probabilities, options.overlays, tuple(facts["heads"]))
    how.check(head)
    with applying("predict", options, facts["heads"], _MAY_CHANGE) as (names, out, stop, go_on):
        sources = [_open(text, head) for text in options.source]
        if options.format == "dicom-seg":
            _check_dicom(sources)
        for source in sources:
            names.learn(source)
        for sentence in _announced(sources, head):
            tell(sentence)
        out.start(options.kept())
        root = out.root
        write_json(root / RESULTS, facts)
        done, taken = _finished(root)
        skipped = {item.path: item for source in sources for item in map(names.skipped, source.skipped)}
        waiting = _records(sources, done, options.num_workers, names)
        with tqdm(total=sum(map(len, sources)), initial=len(done), unit="scan", desc="Predicting",
                  disable=options.quiet, dynamic_ncols=True) as bar:  # fmt: skip
            for item in waiting:
                bar.update()
                if item.trouble is not None or item.scan is None or item.grid is None:
                    if item.trouble is not None:
                        skipped[item.trouble.path] = item.trouble
                    continue
                answer: Answer = head.answer(item.scan, item.grid)
                with stop.deferred():
                    target = out_name(item.key[1], sources[item.key[0]].location, taken)
                    row: dict[str, Any] = {"image": item.key[1]}
                    try:
                        row |= write_answer(answer, root, target, how) | answer.row
                    except UnreadableScan as error:  # a format that this scan cannot be written in
                        skipped[item.key[1]] = names.skipped(error.skipped(item.key[1]))
                        continue
                    sizeless = head.dims == 3 and head.has_sizes and item.grid.spacing is None
                    row["notes"] = names.said("; ".join([*item.scan.notes, *[_NO_SIZE] * sizeless]))
                    line = {"key": item.key, "target": target, "row": row, "boxes": getattr(answer, "boxes", None)}
                    append_json_lines(root / DONE, [line])
                if stop.requested:
                    raise Stopped(f"Stopped on request. {go_on}")
        count, sizeless_count = _write_tables(root, head)
        write_skipped(root / SKIPPED, skipped.values())
        rows = (line["row"] for line in _lines(root))
        write_page(root / "report.html", head, rows, list(skipped.values()), facts["device"])
        write_json(root / RESULTS, facts | {"scans": count, "left_out": len(skipped), "versions": versions()})
    if sizeless_count:
        tell(f"Of {sizeless_count:,} of the scans the files say no voxel size: nothing is told of these in mm or ml.")
    tell(
        f"{count:,} scan{'s' * (count != 1)}"
        + (f"; {len(skipped):,} could not be used, see {SKIPPED}." if skipped else ".")
    )
    if not count:
        raise InputError(f"None of the scans could be read; {root / SKIPPED} says why.")
    return root


def _open(text: str, head: TrainedHead[Any]) -> Source:
    """A source in the axes of its files.

    Raises:
        InputError: nothing there, or scans of another number of axes.
    """
    dims = head.dims
    try:
        source = open_source(text, dims=dims, canonical=False)
    except InputError as error:
        try:
            open_source(text, dims=5 - dims)
        except InputError:
            raise error from None
        kinds = {2: "2D images", 3: "volumes"}
        remedy = {2: _FOR_VOLUMES, 3: "Train one on images, or give volumes: a DICOM series is its folder."}
        raise InputError(
            f"{text}: holds {kinds[5 - dims]}, and the head was trained on {kinds[dims]}. {remedy[dims]}"
        ) from None
    if dims == 2 and isinstance(source, FileSource):
        for index in range(len(source)):
            origin = source.origin(index)
            if origin.reader in OF_VOLUMES and origin.parts is None and origin.of > 1:
                raise InputError(
                    f"{text}: {source.file(index)} holds {origin.of} slices, and the head was trained on 2D images. "
                    f"{_FOR_VOLUMES} Or save the slices as images."
                )
    return source


def _announced(sources: Sequence[Source], head: TrainedHead[Any]) -> Iterator[str]:
    yield head.describe()
    total = sum(map(len, sources))
    noun = ("image" if head.dims == 2 else "volume") + "s" * (total != 1)
    yield f"{total:,} {noun}, on {device_name(head.models[0].device)}."
    for source in sources:
        yield from source.warnings


def _records(sources: Sequence[Source], done: set[tuple[int, str]], workers: int, names: Names) -> Iterator[_Read]:
    def called(number: int, index: int) -> tuple[int, str]:
        name = sources[number].name(index)
        # A source that is its only record has no name below itself
        return number, names.name(os.path.basename(os.path.abspath(sources[number].location)) if name == "." else name)

    def read(place: tuple[int, int]) -> _Read:
        number, index = place
        source = sources[number]
        key = called(number, index)
        try:
            scan = source.read(index)
            return _Read(key, scan, filed(source, index, scan), None)
        except UnreadableScan as error:
            return _Read(key, None, None, names.skipped(error.skipped(key[1])))

    places = (
        (number, index)
        for number, source in enumerate(sources)
        for index in range(len(source))
        if not done or called(number, index) not in done
    )
    return read_ahead(read, places, workers)


def _finished(root: Path) -> tuple[set[tuple[int, str]], set[str]]:
    """Scans of ``done.jsonl`` whose files are all there, and the names they were written under.

    The other lines are dropped from it.
    """

    def whole(line: dict[str, Any]) -> bool:
        return all((root / name).is_file() for name in line["row"]["files"])

    keep_lines(root / DONE, whole)
    keys, names = set(), set()
    for line in _lines(root):
        number, name = line["key"]
        keys.add((number, name))
        names.add(line["target"])
    return keys, names


def _lines(root: Path) -> Iterator[dict[str, Any]]:
    """The lines of ``done.jsonl``, by source and name, 10 after 9; one at a time."""
    if not (root / DONE).is_file():
        return
    with open(root / DONE, "rb") as file:
        places = []
        while line := file.readline():
            number, name = json.loads(line)["key"]
            places.append((number, _by_numbers(name), name, file.tell() - len(line)))
        for *_, place in sorted(places):
            file.seek(place)
            yield json.loads(file.readline())


def _by_numbers(name: str) -> str:
    """To sort by: images of a stack are called by their numbers, and whoever scores the table has their order."""
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(20), name)


def _write_tables(root: Path, head: TrainedHead[Any]) -> tuple[int, int]:
    """Tables from ``done.jsonl``, whose numbers are written out in full; returns how many scans, and without size."""
    names, count, sizeless = dict[str, None](), 0, 0
    for line in _lines(root):
        names |= dict.fromkeys(line["row"])
        count += 1
        sizeless += _NO_SIZE in line["row"]["notes"]
    columns = [*(name for name in names if name not in ("files", "notes")), "notes"]
    write_csv(root / PREDICTIONS, columns, (_exact(line["row"]) for line in _lines(root)))
    if head.task == "detection":
        from frepa.downstream.detection.testing import found_columns

        rows = (_exact({"image": line["row"]["image"], **box}) for line in _lines(root) for box in line["boxes"])
        write_csv(root / BOXES, found_columns(head.dims), rows)
    return count, sizeless


def _exact(row: dict[str, Any]) -> dict[str, Any]:
    """Floats with all their digits, so that whoever scores the table gets what we would."""
    return {name: repr(value) if isinstance(value, float) else value for name, value in row.items()}


def _check_dicom(sources: Sequence[Source]) -> None:
    for source in sources:
        for index in range(len(source)):
            if not isinstance(source, FileSource) or source.origin(index).reader != "dicom":
                raise InputError(
                    f"--format dicom-seg: {source.name(index)} in {source.location} is no DICOM, and a segmentation of "
                    "this kind refers to the images of a DICOM study. Leave the option out for NIfTI and PNG."
                )
