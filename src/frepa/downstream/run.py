"""A downstream run, from options to a run folder: the ten steps that every task takes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from frepa.datasets.stacks import WORDS
from frepa.downstream.contract import Data, Model, Place, Result, Round, Task, found_in, tested_again
from frepa.downstream.frozen import load_trained_state, open_cache, trained_state
from frepa.downstream.page import RunPage
from frepa.downstream.resuming import MAY_CHANGE_ON_RESUME, STATES, HeadState, digest
from frepa.downstream.tuning import all_frozen, tuning_of
from frepa.encoders.files import save_encoder
from frepa.encoders.reference import EncoderReference, open_encoder, weights_hash
from frepa.files import remove_empty, write_csv, write_json
from frepa.images.hidden_names import Names, naming
from frepa.images.scan import write_skipped
from frepa.machine import default_device, device_name, versions
from frepa.run_folders import CONFIG, OutFolder, check_same_options, out_folder
from frepa.stopping import StopRequest
from frepa.user_paths import as_list

METRICS = "metrics.jsonl"
RESULTS = "results.json"
SKIPPED = "skipped.csv"


def run_task(task: Task[Data, Model, Result]) -> Path:
    """Train a head on a frozen encoder and test it, for every fold and seed; returns the run folder.

    The folder holds ``head.safetensors`` + ``head.json`` with a reference to the encoder (of every head, under
    ``folds/`` and ``seeds/``, where there are several), ``config.yaml``, ``metrics.jsonl``, ``results.json``,
    ``cases.csv``, ``skipped.csv``, ``report.html`` and what the task adds. Scores in the files are fractions in [0, 1];
    the report shows percent.

    Raises:
        InputError: anything the user can mend; nothing was written then, as far as it shows before training.
    """
    # 1. Check what was asked for, and where it is to be written.
    options = task.options
    options.check()
    inputs = {"the source": options.data.source, "--encoder": options.encoder}
    go_on = f"Continue with the same command and --resume ({options.run.out})."
    texts = as_list(options.data.source)
    with (
        naming(options.run.anonymous_names, texts, keep=[options.run.out, options.encoder]) as names,
        out_folder(
            options.run.out,
            task.verb,
            overwrite=options.run.overwrite,
            resume=options.run.resume,
            can_resume=True,
            inputs=inputs,
            key=names.key,
        ) as out,
        StopRequest(at_once=f"Stopped on request. {go_on}") as stop,
    ):
        if out.resumed:
            check_same_options(out.root / CONFIG, options.kept(), MAY_CHANGE_ON_RESUME)
        if out.resumed and (out.root / RESULTS).is_file() and not (out.root / STATES).is_dir():
            tell(f"The run {out.root} is complete; nothing is left to do.")
        else:
            _run(task, out, stop, go_on, names)
    return out.root


def _run(task: Task[Data, Model, Result], out: OutFolder, stop: StopRequest, go_on: str, names: Names) -> None:
    options, root, quiet = task.options, out.root, task.options.run.quiet

    # 2. Open the encoder. 3. Open the data.
    encoder, reference = open_encoder(options.encoder)
    tuning = tuning_of(options.fit_of(encoder.dims), encoder)
    if tuning is not None:
        reference = replace(reference, trained=tuning.parameters)

    def progress(items: Iterable, total: int) -> Iterable:
        label = f"Checking {task.unit}s and annotations"
        return tqdm(items, total=total, unit=task.unit, desc=label, disable=quiet, leave=False)

    data = task.open(encoder.dims, progress)

    # 4. Divide: one split, or folds.
    folds, seed = options.data.folds, options.run.seed
    divided = data.folds(folds, seed) if folds else [data]
    # Not before: an order by name decides what is drawn
    data, *divided = (part.under(names) for part in (data, *divided))
    warnings = _checked(task, divided)

    # 5. Build the heads, and what is done once for all of them.
    device = default_device()
    rounds = [
        Round(number if folds else None, seed + repeat, options.run.seeds > 1)
        for repeat in range(options.run.seeds)
        for number in range(1, len(divided) + 1)
    ]
    models = [task.build(encoder, divided[(one.fold or 1) - 1], one.seed, device) for one in rounds]
    cache = open_cache(options.run.feature_cache, encoder)
    for model in models:
        model.cache = cache
        model.tune(tuning)
    prepared = task.prepare(models, data)
    if prepared.unreadable:
        data, *divided = (part.without(prepared.unreadable) for part in (data, *divided))
        warnings = _checked(task, divided)
    warnings += prepared.warnings

    out.start(options.kept())
    for sentence in _announced(task, divided, reference, models[0], device, warnings):
        tell(sentence)

    # 6. Train. 7. Test.
    fresh = {name: tensor.clone() for name, tensor in trained_state(encoder).items()}
    tested: list[Result] = []
    belongs, states, written = digest(reference.weights, data), list[HeadState](), 0
    for one, model in zip(rounds, models):
        part = divided[(one.fold or 1) - 1]
        # The encoder is one object for all heads: every head begins with what trains of it as it was.
        load_trained_state(encoder, fresh)
        state = HeadState(one.folder(root / STATES), root / METRICS, written, belongs, stop, go_on, tell)
        place = Place(root, one.folder(root), root / METRICS, reference, state)
        place.folder.mkdir(parents=True, exist_ok=True)
        found = state.load_result() if out.resumed else None
        if found is None:
            tested.append(task.train_and_test(model, part, one, place))
            state.save_result(found_in(tested[-1]))
        else:
            tested.append(tested_again(found, one, place, part, model))
        states.append(state)
        written = state.end
    task.close()

    # 8. Verify that the encoder is what it was; what of it was tuned is in the heads' own files.
    load_trained_state(encoder, fresh)
    with all_frozen(encoder, tuning):
        if weights_hash(encoder) != reference.weights:
            raise RuntimeError("the frozen encoder's weights changed during training: this is a defect of frepa")

        if options.run.bundle:
            save_encoder(root, encoder, {"method": reference.method} if reference.method else None)

    # 9. Summarise.
    broken = {skipped.path: skipped for item in tested for skipped in item.unreadable.values()}
    left_out = [names.skipped(item) for item in (*data.left_out, *broken.values())]
    own = task.summarise(tested)
    summary: dict[str, Any] = {
        "task": task.name,
        "encoder": reference.as_dict(),
        "guide": reference.guide,
        "train": options.fit.train,
        **({} if tuning is None else {"tuned": tuning.as_dict()}),
        "source": names.name(", ".join(as_list(options.data.source))),
        **names.tree(own),
        "left_out": len(left_out),
        "warnings": names.tree([*warnings, *own.get("warnings", [])]),
        "training": [{"fold": item.round.fold, "seed": item.round.seed, **asdict(item.training)} for item in tested],
        "device": device_name(device),
        "versions": versions(),
    }
    write_json(root / RESULTS, summary)
    write_skipped(root / SKIPPED, left_out)
    for table in task.tables(tested):
        write_csv(root / table.name, table.columns, table.rows)

    # 10. Report.
    page = RunPage(root, summary)
    task.fill_page(page, summary, tested)
    page.finish()
    for sentence in [*own.get("warnings", []), *task.verdicts(summary)]:
        tell(sentence)
    for state in states:
        state.remove()
    remove_empty(root / STATES)


def tell(sentence: str) -> None:
    """A sentence on the screen, above the progress bar where there is one."""
    tqdm.write(sentence, file=sys.stderr)


def _checked(task: Task[Data, Model, Result], divided: Sequence[Data]) -> list[str]:
    shared = any(part.shared for part in divided)
    warnings = [WORDS[task.options.data.divide_by]] if shared else []
    for number, part in enumerate(divided, start=1):
        warnings += task.check(part, f", fold {number}" if task.options.data.folds else "")
    return list(dict.fromkeys(warnings))


def _announced(
    task: Task[Data, Model, Result],
    divided: Sequence[Data],
    reference: EncoderReference,
    model: Model,
    device: torch.device,
    warnings: Sequence[str],
) -> Iterable[str]:
    yield from task.describe(divided)
    left_out = divided[0].left_out
    if left_out:
        shown = "; ".join(f"{item.path}: {item.reason}" for item in left_out[:3])
        yield f"{len(left_out):,} images cannot be read and are left out; skipped.csv lists them. {shown}"
    yield reference.sentence(device_name(device))
    yield from task.plan_sentences(model, divided[0])
    yield from warnings
