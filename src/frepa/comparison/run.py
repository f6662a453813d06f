"""`frepa compare` from a study to its folder: read, plan, compute what is missing, tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from frepa.comparison.cells import CELLS, Baseline, plan_cells
from frepa.comparison.page import write_page
from frepa.comparison.running import check_engine, run_cells, threads_for
from frepa.comparison.scores import read_scores
from frepa.comparison.study import HEADS, Study, read_study
from frepa.comparison.table import make_table
from frepa.comparison.writing import counts, write_tables
from frepa.downstream.run import tell
from frepa.errors import InputError, Stopped
from frepa.files import write_text
from frepa.images.hidden_names import Names, naming
from frepa.machine import versions
from frepa.names import shown
from frepa.run_folders import OutFolder, out_folder
from frepa.user_paths import named_folder

_LARGEST = 2**20
STUDY = "study.yaml"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How a study is run; see ``frepa compare``."""

    out: str
    jobs: int = 1
    threads: int | None = None
    backend: str = "loky"
    cluster: str | None = None
    num_workers: int = 0
    retry: bool = False
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    anonymous_names: bool = False


def read_study_file(path: str) -> Mapping[str, Any]:
    """What a study's YAML file holds.

    Raises:
        InputError: it cannot be read, or is no study.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not YAML"
        raise InputError(f"{shown(path)}: the study cannot be read ({reason}). Give a YAML file.") from None
    if content is None:
        raise InputError(f"{shown(path)}: the study is empty. It needs encoders and tasks; see docs/comparing.md.")
    if not isinstance(content, Mapping):
        raise InputError(f"{shown(path)}: this is no study. It needs encoders and tasks, each with names.")
    return content


def run_study(
    content: Mapping[str, Any],
    name: str,
    options: CompareOptions,
    verbs: Mapping[str, Callable[..., Any]],
    baselines: Mapping[str, Baseline],
) -> Path:
    """Compute the missing cells of a study and write its table; returns the folder.

    Args:
        content: of the study's file. name: of the file, for messages.
        options: how it is run.
        verbs: what trains and tests heads, by name.
        baselines: rows that need no encoder.

    Raises:
        InputError: the study is not understood; nothing was computed then.
    """
    check_engine(options.jobs, options.threads, options.backend, options.cluster)
    study = read_study(content, name, verbs, {key: one.options for key, one in baselines.items()})
    root = named_folder(options.out)
    inputs = {"a source": sources_of(study), "an encoder": encoders_of(study)}
    with (
        naming(options.anonymous_names, inputs["a source"], keep=[options.out, *inputs["an encoder"]]) as names,
        out_folder(
            root, "compare", overwrite=options.overwrite, resume=options.resume, can_resume=True, inputs=inputs,
            key=names.key,
        ) as out,
    ):  # fmt: skip
        run_in(out, content, study, options, verbs, baselines, names)
    return root


def sources_of(study: Study) -> list[str]:
    """All that the tasks are of."""
    return [text for task in study.tasks for text in task.sources]


def encoders_of(study: Study) -> list[str]:
    """All encoders that are named."""
    return [spec for row in study.rows for spec in row.encoders]


def run_in(
    out: OutFolder,
    content: Mapping[str, Any],
    study: Study,
    options: CompareOptions,
    verbs: Mapping[str, Callable[..., Any]],
    baselines: Mapping[str, Baseline],
    names: Names,
) -> None:
    """Compute the missing cells of a study in a folder that is open, and write its table there."""
    root = out.root
    if names.hidden:
        study = study.anonymous()
    cells, contents = plan_cells(study, verbs, baselines, names)
    if not out.started:
        out.start()
    kept = without_sources(content, names) if names.hidden else dict(content)
    write_text(root / STUDY, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    try:
        records = run_cells(
            cells,
            root / CELLS,
            verbs,
            baselines,
            jobs=options.jobs,
            threads=options.threads or threads_for(options.jobs),
            backend=options.backend,
            cluster=options.cluster,
            num_workers=options.num_workers,
            retry=options.retry,
            quiet=options.quiet,
            tell=lambda sentence: tell(shown(sentence)),
        )
    except KeyboardInterrupt:
        raise Stopped(
            f"Stopped on request; finished cells are kept. Continue with the same command and --resume ({root})."
        ) from None
    scored = [read_scores(cell, records[cell.key], root / CELLS) for cell in cells]
    table = make_table(study, scored)
    about = {"task": "comparison", **counts(scored, contents), "versions": versions()}
    write_tables(root, study, scored, table, about)
    write_page(root, study, scored, table, contents, names)


def without_sources(content: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """What ``study.yaml`` holds where no source is to be named."""

    def hidden(given: Any, own: Iterable[str]) -> Any:
        if not isinstance(given, Mapping):
            return names.tree(given)
        return {key: names.place("") if key in own else hidden(value, own) for key, value in given.items()}

    kept = {key: names.tree(value) for key, value in content.items()}
    kept["tasks"] = {key: hidden(task, HEADS) for key, task in content["tasks"].items()}
    if "pretrain" in content:
        kept["pretrain"] = hidden(content["pretrain"], ("source", "probe"))
    return kept
