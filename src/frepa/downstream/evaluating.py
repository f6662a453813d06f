"""A trained run scored on another labelled set: nothing is trained, and the scores are those of the task verbs.

Every case that was looked at is a line of ``done.jsonl``; an evaluation that is continued looks at the others alone.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from frepa.downstream.applying import DONE, applying, load
from frepa.downstream.contract import Place, Round
from frepa.downstream.evaluation import EvaluateOptions, Evaluation
from frepa.downstream.fitting import read_ahead
from frepa.downstream.page import RunPage
from frepa.downstream.resuming import digest
from frepa.downstream.run import RESULTS, SKIPPED, tell
from frepa.errors import InputError, Stopped
from frepa.files import append_json_lines, keep_lines, write_csv, write_json
from frepa.images.hidden_names import Names
from frepa.images.scan import Skipped, UnreadableScan, write_skipped
from frepa.machine import versions
from frepa.run_folders import CONFIG
from frepa.stopping import StopRequest

#: What may differ between the command that began an evaluation and the one that continues it.
_MAY_CHANGE = frozenset({"run", "encoder", "num_workers", "precision"})


def evaluate_run(options: EvaluateOptions) -> Path:
    """Put the heads of a run on a labelled set and score what they say; returns the folder written.

    The folder holds ``results.json``, ``cases.csv``, ``skipped.csv``, ``report.html``, ``config.yaml`` and what the
    task adds. Scores in the files are fractions in [0, 1]; the report shows percent.

    Raises:
        InputError: no such run, nothing in the set that can be scored, other classes than the heads know.
    """
    options.check()
    head, known = load(options)
    with applying("evaluate", options, known["heads"], _MAY_CHANGE) as (names, out, stop, go_on):
        module, name = head.evaluation.split(":")
        evaluation: Evaluation[Any] = getattr(importlib.import_module(module), name)(head, options, out.root)

        def progress(items: Iterable, total: int) -> Iterable:
            label = f"Checking {evaluation.unit}s and annotations"
            return tqdm(items, total=total, unit=evaluation.unit, desc=label, disable=options.quiet, leave=False)

        warnings = evaluation.open(progress)
        evaluation.hide(names)
        warnings = names.tree([*warnings, *_seen_before(options)])
        belongs = digest(evaluation.data)
        if out.resumed:
            _check_same_data(out.root / RESULTS, belongs)
        for sentence in [head.describe(), *evaluation.describe(), *warnings]:
            tell(sentence)
        out.start(options.kept())
        source = names.name(", ".join(options.source))
        facts = {**known, "set": belongs, "source": source, "part": options.part}
        write_json(out.root / RESULTS, facts)
        lines, broken = _look_at_all(evaluation, stop, go_on)
        skipped = [names.skipped(error.skipped()) for error in broken]
        if not lines:
            first = skipped[0]
            raise InputError(f"None of the {evaluation.unit}s can be read. {first.path}: {first.reason}")
        _finish(evaluation, facts, warnings, lines, [*evaluation.left_out, *skipped], names)
    return out.root


def _look_at_all(
    evaluation: Evaluation[Any], stop: StopRequest, go_on: str
) -> tuple[dict[int, dict[str, Any]], list[UnreadableScan]]:
    """What the heads say of every case, by place: of those that are in ``done.jsonl`` from there."""
    root, options, names = evaluation.root, evaluation.options, evaluation.names
    keep_lines(root / DONE, lambda line: all((root / name).is_file() for name in line.get("files", ())))
    known = {name: place for place, name in enumerate(names)}
    lines = {known[line["key"]]: line for line in _lines(root) if line["key"] in known}
    skipped: list[UnreadableScan] = []

    def read(place: int) -> tuple[int, Any, UnreadableScan | None]:
        try:
            return place, evaluation.read(place), None
        except UnreadableScan as error:
            return place, None, error

    waiting = [place for place in range(len(names)) if place not in lines]
    with tqdm(total=len(names), initial=len(lines), unit=evaluation.unit, desc="Testing",
              disable=options.quiet, dynamic_ncols=True) as bar:  # fmt: skip
        for place, case, trouble in read_ahead(read, waiting, options.num_workers):
            bar.update()
            if trouble is not None:
                skipped.append(trouble)
                continue
            with stop.deferred():
                line = {"key": names[place], **evaluation.look(place, case)}
                append_json_lines(root / DONE, [line])
            lines[place] = line
            if stop.requested:
                raise Stopped(f"Stopped on request. {go_on}")
    return {place: lines[place] for place in sorted(lines)}, skipped


def _finish(
    evaluation: Evaluation[Any],
    facts: dict[str, Any],
    warnings: list[str],
    lines: dict[int, dict[str, Any]],
    left_out: list[Skipped],
    names: Names,
) -> None:
    root, head = evaluation.root, evaluation.head
    seed = next(iter(head.noted("seed")), 0)
    tested = evaluation.finish(lines, Place(root, root, root / "metrics.jsonl", head.reference), Round(None, seed))
    own = evaluation.summarise(tested)
    broken = {item.path: item for item in left_out}
    summary = {
        **facts,
        **names.tree(own),
        "left_out": len(broken),
        "warnings": [*warnings, *names.tree(list(own.get("warnings", [])))],
        "training": [],
        "versions": versions(),
    }
    write_json(root / RESULTS, summary)
    write_skipped(root / SKIPPED, broken.values())
    for table in evaluation.tables(tested):
        write_csv(root / table.name, table.columns, table.rows)
    sentences = [*own.get("warnings", []), *evaluation.others_files(tested, own), *evaluation.verdicts(summary)]
    page = RunPage(root, summary)
    evaluation.fill_page(page, summary, tested)
    page.finish()
    if broken:
        sentences.append(f"{len(broken):,} images could not be read and are left out; see {SKIPPED}.")
    for sentence in sentences:
        tell(sentence)


def _lines(root: Path) -> Iterator[dict[str, Any]]:
    if (root / DONE).is_file():
        with open(root / DONE, encoding="utf-8") as file:
            yield from map(json.loads, file)


def _check_same_data(results: Path, belongs: str) -> None:
    if results.is_file() and json.loads(results.read_text("utf-8")).get("set") != belongs:
        raise InputError(
            f"--resume: the images or annotations have changed since {results.parent} was begun, and its scores would "
            "be of both. Put them back as they were, or start again with --overwrite."
        )


def _seen_before(options: EvaluateOptions) -> Iterator[str]:
    """A sentence where the run's own configuration names one of the sources."""
    try:
        config = yaml.safe_load(Path(options.run, CONFIG).read_text("utf-8"))
        trained = config["source"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return  # a head file by itself, or in a folder of another making
    named = {os.path.realpath(text) for text in ([trained] if isinstance(trained, str) else trained)}
    for text in options.source:
        if os.path.realpath(text) in named:
            yield (
                f"{text}: the heads were trained on this set. What they saw of it scores better than what is new to "
                "them: only the test part of the run itself, in its own results, is that."
            )
