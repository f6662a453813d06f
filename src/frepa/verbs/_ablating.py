"""An ablation from its study to its folder: every row pretrained, then all of them compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frepa.comparison.ablations import Pretraining, read_ablation, with_encoders
from frepa.comparison.contents import check_test_part, content_of
from frepa.comparison.run import CompareOptions, encoders_of, run_in, sources_of
from frepa.comparison.running import check_engine
from frepa.comparison.study import StudyTask, read_study
from frepa.downstream.run import tell
from frepa.encoders.files import WEIGHTS
from frepa.errors import InputError, Stopped
from frepa.files import announce
from frepa.images.hidden_names import Names, naming
from frepa.names import shown
from frepa.options import groups
from frepa.run_folders import out_folder
from frepa.user_paths import named_folder
from frepa.verbs._comparing import BASELINES, VERBS
from frepa.verbs.pretrain import pretrain

ROWS = "rows"


def run_ablation(content: Mapping[str, Any], name: str, options: CompareOptions) -> Path:
    """Pretrain what is missing, compare, and return the folder.

    Raises:
        InputError: the study is not understood, or no task of it can be opened; nothing was pretrained then.
    """
    check_engine(options.jobs, options.threads, options.backend, options.cluster)
    known = {option.name: option for group in groups(pretrain) for option in group.options}
    planned = read_ablation(
        content,
        name,
        {key: one for key, one in known.items() if "." not in key},
        anonymous_names=options.anonymous_names,
    )
    root = named_folder(options.out)
    whole = with_encoders(content, planned, lambda folder: str(root / ROWS / folder))
    study = read_study(whole, name, VERBS, {key: one.options for key, one in BASELINES.items()})
    dims = planned[0].options.get("dims", 2)
    source = planned[0].source
    with (
        naming(
            options.anonymous_names, [source, *sources_of(study)], keep=[options.out, *encoders_of(study)]
        ) as names,
        out_folder(
            root, "ablate", overwrite=options.overwrite, resume=options.resume, can_resume=True,
            inputs={"the source": source}, key=names.key,
        ) as out,
    ):  # fmt: skip
        for task in study.tasks:
            _check(task, dims, names)
        out.start()
        for number, one in enumerate(planned, start=1):
            _pretrain(one, root / ROWS / one.folder, f"Row {number} of {len(planned)}", options)
        run_in(out, content, study, options, VERBS, BASELINES, names)
    return root


def _check(task: StudyTask, dims: int, names: Names) -> None:
    """Raise InputError where a task fits no encoder: hours before it would be found."""
    try:
        check_test_part(task, content_of(task, dims, names))
    except InputError as error:
        raise InputError(f"task {task.name}: {error}") from None


def _pretrain(one: Pretraining, place: Path, words: str, options: CompareOptions) -> None:
    if (place / WEIGHTS).is_file():
        return
    place.mkdir(parents=True, exist_ok=True)
    announce(place)
    tell(shown(f"{words}: {one.row}, seed {one.seed}."))
    try:
        pretrain(
            one.source,
            out=str(place),
            seed=one.seed,
            resume=True,
            quiet=options.quiet,
            **{"num_workers": options.num_workers, **one.options},
        )
    except InputError as error:
        raise InputError(f"row {one.row}: {error}") from None
    except Stopped:
        raise Stopped(
            "Stopped on request; what was pretrained so far is kept. Continue with the same command and --resume "
            f"({options.out})."
        ) from None
