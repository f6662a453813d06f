"""One pretraining run from options to folder: open the source, build the parts, train, write the report."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning_fabric
import torch

from frepa.datasets.derived import training_images
from frepa.datasets.opening import open_source
from frepa.datasets.reading import field_of_view
from frepa.encoders.files import DESCRIPTION, save_encoder
from frepa.errors import InputError, RunEnded, Stopped
from frepa.images.hidden_names import Names, naming
from frepa.images.loading import Batch, load_images, make_loader
from frepa.images.source import Source
from frepa.machine import default_device, keeping_memory, training_devices, training_precision
from frepa.memory import StepMemory, check_room, measure_step
from frepa.pretraining.columns import Classes, classes_of
from frepa.pretraining.journal import Journal
from frepa.pretraining.loop import Plan, fit, killed_readers_told
from frepa.pretraining.lost_data import LostData
from frepa.pretraining.methods.contract import Batch as MethodBatch
from frepa.pretraining.methods.contract import Method, Setting
from frepa.pretraining.methods.registry import build_method, find_method
from frepa.pretraining.options import Settings, resolved
from frepa.pretraining.precision import precision_plugin
from frepa.pretraining.run_folder import RunFolder
from frepa.pretraining.run_report import voxels, write_report
from frepa.pretraining.source_checks import check_something_readable, check_spacing_known
from frepa.pretraining.source_record import check_source
from frepa.pretraining.starting import starting_encoder
from frepa.pretraining.training_part import TrainingPart, modality_weights, training_part
from frepa.pretraining.validation import Validation
from frepa.pretraining.watching import Instruments, Watch, open_looks
from frepa.schedules import learning_rates
from frepa.stopping import StopRequest, workers_starting

_MOST_PICTURES = 100


def run_pretraining(settings: Settings, instruments: Instruments) -> Path:
    """Run ``frepa pretrain`` with its settings and return the run folder.

    ``instruments``: what the encoder is looked at with while it trains.

    Raises:
        InputError: anything the user can mend.
    """
    texts, keep = [settings.source, settings.watching.probe], [settings.out, settings.encoder, settings.start_from]
    hidden = settings.execution.anonymous_names
    with naming(hidden, texts, keep=keep) as names, RunFolder(settings.out) as run:
        _pretrain(resolved(settings), run, instruments, names)
    return run.root


def _pretrain(settings: Settings, run: RunFolder, instruments: Instruments, names: Names) -> None:
    precision = training_precision(settings.execution.precision, default_device())
    execution = replace(settings.execution, precision=cast(Any, precision))
    settings = replace(settings, execution=execution)
    data, seed = settings.data, settings.optimisation.seed
    fabric = lightning_fabric.Fabric(
        accelerator="auto",
        devices=training_devices(execution.devices),
        num_nodes=execution.num_nodes,
        plugins=precision_plugin(execution.precision, default_device()),
        strategy="auto",
    )
    fabric.launch()
    source, plan, part = _open(settings, fabric.world_size)
    names.learn(source)
    check_something_readable(source)
    news: list[str] = []
    classes = classes_of(source, settings.method_name, find_method(settings.method_name).build.needs)
    method = _build(settings, source, classes, news.append)
    shape: dict[str, Any] = {
        "size": data.image_size,
        "mode": data.fit,
        "window": data.window,
        "spacing": data.spacing,
        "foreground": data.foreground,
        "seed": seed,
        "inside": method.wants_inside,
        "field": field_of_view,
    }
    held_out = load_images(source, part.held_out.tolist(), **shape)
    looks = open_looks(
        settings.watching,
        instruments,
        held_out["image"],
        data.dims,
        size=cast(int, data.image_size),
        resized=data.fit == "resize",
        window=None if data.window == "any" else data.window,
    )
    _on_first_rank(fabric, lambda: _begin(run, settings, source, names))

    share = plan.batch_size // (fabric.world_size * plan.accumulate)

    def batches(first: int, last: int) -> Iterator[Batch]:
        per_step = share * fabric.world_size
        loader = make_loader(
            source,
            stream=part.stream,
            batch_size=share,
            start_position=first * per_step,
            stop_position=last * per_step,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            num_workers=execution.num_workers,
            pin_memory=fabric.device.type == "cuda",
            **shape,
        )
        with workers_starting():
            return iter(loader)

    stop = StopRequest()
    lost = LostData(execution.max_unreadable, share, fabric.world_size)
    journal = Journal(
        fabric, run, batch_size=plan.batch_size, quiet=execution.quiet, lost=lost, on_loss=stop.ask, names=names
    )
    for sentence in filter(None, (source.aside, *source.warnings, *news)):
        journal.tell(sentence)
    if source.skipped:
        journal.tell(f"{len(source.skipped)} files of the source cannot be used; {run.skipped} lists them.")
        journal.skipped |= {item.path: item.reason for item in map(names.skipped, source.skipped)}
    columns = classes.columns if classes.names else None
    # Every rank gets one, because the ranks wait for each other around it; only the first one does anything.
    validation = Validation(held_out, fabric, run, journal, columns) if len(part.held_out) else None
    journal.tell(_announcement(settings, source, plan, method, fabric, run))
    if fabric.device.type == "cpu":  # a GPU says itself that its memory is full; here the process would be ended
        remedies = [] if execution.recompute else ["--recompute (more time, the same result)"]
        needed = _step_memory(method, source.channels, cast(int, data.image_size))
        journal.tell(
            check_room(
                needed, batch=share * plan.accumulate, parts=plan.accumulate, device=fabric.device, remedies=remedies
            )
        )

    def facts(step: int) -> dict[str, Any]:
        return {
            "method": settings.method_name,
            "pretraining": {"source": source.fingerprint, "images": len(source), "steps": step},
            "image_size": data.image_size,
            "spacing": data.spacing,
        }

    def keep_encoder(trained: Method, step: int) -> None:
        """The encoder as it is now, so that it can be tried downstream while the run goes on."""
        save_encoder(run.checkpoints.folder, trained.encoder, facts(step))

    def keep_best(trained: Method, step: int, found: dict[str, float]) -> None:
        save_encoder(run.best, trained.encoder, {**facts(step), "best_by": found})

    watch = Watch(
        looks,
        settings.watching,
        fabric,
        journal,
        batch_size=plan.batch_size,
        save_best=keep_best,
        best_is_there=lambda: (run.best / DESCRIPTION).is_file(),
    )
    if watch.announcement():
        journal.tell(watch.announcement())

    with stop, killed_readers_told(), keeping_memory():
        steps = fit(
            fabric,
            method,
            batches,
            plan,
            run,
            journal,
            columns=columns,
            checkpoint_every=execution.checkpoint_every,
            on_epoch=validation,
            on_checkpoint=keep_encoder,
            watch=watch,
            stop=stop,
        )
    if steps is None:
        fabric.barrier()
        reason = _first_reason(fabric, stop.reason)
        if fabric.is_global_zero:
            raise _stopped(run, reason)
    elif fabric.is_global_zero:
        save_encoder(run.root, method.encoder, facts(steps))
        write_report(run, settings.config, method, source)
    fabric.barrier()


def _step_memory(method: Method, channels: int, side: int) -> StepMemory:
    """What a step takes, from one sample without content; in evaluation mode, so that nothing is changed or drawn."""
    image = torch.zeros(1, channels, *(side,) * method.encoder.dims)
    sample = MethodBatch(image, torch.zeros(1, dtype=torch.bool), [0], augment=False)
    method.eval()
    try:
        return measure_step(method, lambda: method(sample).loss)
    finally:
        method.train()


def _begin(run: RunFolder, settings: Settings, source: Source, names: Names) -> None:
    """Open the folder, and see that a run that is continued has the source it was begun on."""
    execution = settings.execution
    resume, overwrite = execution.resume, execution.overwrite
    run.open(settings.config, settings.source, resume=resume, overwrite=overwrite, key=names.key)
    newest = run.checkpoints.folder / DESCRIPTION
    fingerprint = None
    if run.resumed and newest.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            fingerprint = json.loads(newest.read_text("utf-8"))["extra"]["pretraining"]["source"]
    accept = execution.accept_changed_source
    check_source(run.source, source, resumed=run.resumed, accept=accept, fingerprint=fingerprint)


def _first_reason(fabric: lightning_fabric.Fabric, reason: str) -> str:
    """Why the run asked itself to stop, from the first rank that did; empty where somebody else asked."""
    if fabric.world_size == 1:
        return reason
    reasons: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(reasons, reason)
    return next((text for text in reasons if text), "")


def _stopped(run: RunFolder, reason: str) -> RunEnded | Stopped:
    if reason:
        return RunEnded(
            f"{reason}. The state is saved: see to the source, then continue with the same command and --resume "
            f"({run.root}), with a higher --max-unreadable if the files are lost for good."
        )
    return Stopped(
        f"Stopped on request after saving the state. Continue with the same command and --resume ({run.root})."
    )


def _open(settings: Settings, world_size: int) -> tuple[Source, Plan, TrainingPart]:
    data, how = settings.data, settings.optimisation
    assert how.batch_size is not None  # resolved
    source = training_images(open_source(settings.source, dims=data.dims))
    if data.spacing is not None:
        check_spacing_known(source, data.spacing)
    weights = modality_weights(data.modality_weights)
    part = training_part(source, val_images=data.val_images, seed=how.seed, weights=weights)
    parts = world_size * how.accumulate
    if how.batch_size % parts:
        raise InputError(
            f"--batch-size {how.batch_size}: it is the total over all devices and has to divide by devices x "
            f"accumulate = {world_size} x {how.accumulate} = {parts}."
        )
    steps = how.max_steps
    if steps is None:
        steps = max(1, math.ceil(how.epochs * part.samples / how.batch_size))
    plan = Plan(
        rates=learning_rates(how.schedule, peak=how.lr, steps=steps, warmup_steps=how.warmup_steps),
        batch_size=how.batch_size,
        samples=part.samples,
        seed=how.seed,
        accumulate=how.accumulate,
        clip=how.clip,
        ema_decay=how.ema_decay,
        # With few images an epoch is over in seconds, and looking at it would take longer than training.
        epochs_between=max(1, math.ceil(steps * how.batch_size / part.samples / _MOST_PICTURES)),
    )
    return source, plan, part


def _build(settings: Settings, source: Source, classes: Classes, tell: Callable[[str], None]) -> Method:
    data, seed = settings.data, settings.optimisation.seed
    torch.manual_seed(seed)  # initial weights; nothing after this draws from the global generator
    as_target = settings.guide_as == "target"
    encoder = starting_encoder(
        settings.encoder,
        settings.start_from,
        dims=data.dims,
        guide="none" if as_target else settings.guide,
        uses_guide=not as_target,
        tell=tell,
    )
    if settings.execution.recompute:
        encoder.set_grad_checkpointing()
    setting = Setting(
        encoder=encoder,
        channels=source.channels,
        image_size=cast(int, data.image_size),
        fit=cast(str, data.fit),
        seed=seed,
        classes=classes.names,
        guide_target=settings.guide if as_target else "none",
    )
    return build_method(settings.method_name, settings.method, setting)


def _on_first_rank(fabric: lightning_fabric.Fabric, act: Callable[[], None]) -> None:
    """Let rank 0 act on the run folder; where it refuses, every rank refuses with it instead of waiting for ever."""
    message = None
    if fabric.is_global_zero:
        try:
            act()
        except InputError as error:
            message = str(error)
    message = fabric.broadcast(message)
    if message is not None:
        raise InputError(message)


def _announcement(
    settings: Settings,
    source: Source,
    plan: Plan,
    method: Method,
    fabric: lightning_fabric.Fabric,
    run: RunFolder,
) -> str:
    size = sum(p.numel() for p in method.encoder.parameters()) / 1e6
    data = settings.data
    kind, extent = ("images", f"{data.image_size} px") if source.dims == 2 else ("volumes", voxels(settings.config))
    count = f"{len(source):,} {kind}"
    if data.modality_weights:
        count = f"{plan.samples:,} of {count}, drawn by {data.modality_weights}"
    return (
        f"{settings.method_name}: {method.encoder.name} ({size:.1f} M parameters, guide {method.encoder.guide}) on "
        f"{count}, {len(plan.rates):,} steps of {plan.batch_size} at {extent}, "
        f"{fabric.world_size} x {fabric.device.type}. Results go to {run.root}."
    )
