"""One pretraining run from options to folder: open the source, build the parts, train, write the report."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning_fabric
import torch

from frepa.corruption.dual import Corruption
from frepa.datasets.opening import open_source
from frepa.encoders.files import DESCRIPTION, save_encoder
from frepa.encoders.options import split_options
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError, RunEnded, Stopped
from frepa.images.loading import load_images, make_loader
from frepa.images.source import Source
from frepa.pretraining.defaults import check_ranges, resolved
from frepa.pretraining.journal import Journal
from frepa.pretraining.loop import Batch, Plan, fit
from frepa.pretraining.lost_data import LostData
from frepa.pretraining.methods.augment import Augmentation
from frepa.pretraining.methods.contract import Method
from frepa.pretraining.methods.objective import Objective
from frepa.pretraining.methods.registry import build_method
from frepa.pretraining.run_folder import RunFolder
from frepa.pretraining.run_report import voxels, write_report
from frepa.pretraining.source_checks import check_something_readable, check_spacing_known
from frepa.pretraining.source_record import check_source
from frepa.pretraining.training_part import TrainingPart, modality_weights, training_part
from frepa.pretraining.validation import Validation
from frepa.schedules import learning_rates
from frepa.stopping import StopRequest, workers_starting

if TYPE_CHECKING:
    from frepa.pretraining.methods.adversarial import Adversary

_MOST_PICTURES = 100
_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def run_pretraining(options: Mapping[str, Any]) -> Path:
    """Run ``frepa pretrain`` with its options and return the run folder.

    Raises:
        InputError: anything the user can mend.
    """
    with RunFolder(options["out"]) as run:
        _pretrain(resolved(options), run)
    return run.root


def _pretrain(options: Mapping[str, Any], run: RunFolder) -> None:
    config = {name: value for name, value in options.items() if name not in ("resume", "overwrite", "quiet")}
    config["precision"] = _precision(options["precision"])
    fabric = lightning_fabric.Fabric(
        accelerator="auto",
        devices=_devices(options["devices"]),
        num_nodes=options["num_nodes"],
        precision=_PRECISIONS[config["precision"]],  # type: ignore[arg-type]
        strategy="auto",
    )
    fabric.launch()
    source, plan, part = _open(options, fabric.world_size)
    check_something_readable(source)
    method, adversary = _build(options, source)
    _on_first_rank(fabric, lambda: _begin(run, config, source, options))

    shape = {
        "size": options["image_size"],
        "mode": options["fit"],
        "window": options["window"],
        "spacing": options["spacing"],
        "foreground": options["foreground"],
        "seed": plan.seed,
    }
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
            num_workers=options["num_workers"],
            pin_memory=fabric.device.type == "cuda",
            **shape,
        )
        with workers_starting():
            return iter(loader)

    stop = StopRequest()
    lost = LostData(options["max_unreadable"], share, fabric.world_size)
    journal = Journal(fabric, run, batch_size=plan.batch_size, quiet=options["quiet"], lost=lost, on_loss=stop.ask)
    for sentence in source.warnings:
        journal.tell(sentence)
    if source.skipped:
        journal.tell(f"{len(source.skipped)} files of the source cannot be used; {run.skipped} lists them.")
        journal.skipped |= {item.path: item.reason for item in source.skipped}
    # Every rank gets one, because the ranks wait for each other around it; only the first one does anything.
    validation = (
        Validation(load_images(source, part.held_out.tolist(), **shape), fabric, run, journal)
        if len(part.held_out)
        else None
    )
    journal.tell(_announcement(options, source, plan, method, fabric, run))

    def facts(step: int) -> dict[str, Any]:
        return {
            "method": options["method"],
            "pretraining": {"source": source.fingerprint, "images": len(source), "steps": step},
            "image_size": options["image_size"],
            "spacing": options["spacing"],
        }

    def keep_encoder(trained: Method, step: int) -> None:
        """The encoder as it is now, so that it can be tried downstream while the run goes on."""
        save_encoder(run.checkpoints.folder, trained.encoder, facts(step))

    with stop:
        complete = fit(
            fabric,
            method,
            batches,
            plan,
            run,
            journal,
            adversary=adversary,
            checkpoint_every=options["checkpoint_every"],
            on_epoch=validation,
            on_checkpoint=keep_encoder,
            stop=stop,
        )
    if not complete:
        fabric.barrier()
        reason = _first_reason(fabric, stop.reason)
        if fabric.is_global_zero:
            raise _stopped(run, reason)
    elif fabric.is_global_zero:
        save_encoder(run.root, method.encoder, facts(len(plan.rates)))
        write_report(run, config, method, source)
    fabric.barrier()


def _begin(run: RunFolder, config: Mapping[str, Any], source: Source, options: Mapping[str, Any]) -> None:
    """Open the folder, and see that a run that is continued has the source it was begun on."""
    run.open(config, resume=options["resume"], overwrite=options["overwrite"])
    newest = run.checkpoints.folder / DESCRIPTION
    fingerprint = None
    if run.resumed and newest.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            fingerprint = json.loads(newest.read_text("utf-8"))["extra"]["pretraining"]["source"]
    accept = options["accept_changed_source"]
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


def _open(options: Mapping[str, Any], world_size: int) -> tuple[Source, Plan, TrainingPart]:
    check_ranges(options)
    if options["foreground"] and options["fit"] != "crop":
        raise InputError(
            f"--foreground {options['foreground']} says where crops lie, and with --fit resize there are none. "
            "Add --fit crop, or leave --foreground out."
        )
    source = open_source(options["source"], dims=options["dims"])
    if options["spacing"] is not None:
        check_spacing_known(source, options["spacing"])
    weights = modality_weights(options["modality_weights"])
    part = training_part(source, val_images=options["val_images"], seed=options["seed"], weights=weights)
    samples = part.samples
    parts = world_size * options["accumulate"]
    if options["batch_size"] % parts:
        raise InputError(
            f"--batch-size {options['batch_size']}: it is the total over all devices and has to divide by devices x "
            f"accumulate = {world_size} x {options['accumulate']} = {parts}."
        )
    steps = options["max_steps"]
    if steps is None:
        steps = max(1, math.ceil(options["epochs"] * samples / options["batch_size"]))
    rates = learning_rates(options["schedule"], peak=options["lr"], steps=steps, warmup_steps=options["warmup_steps"])
    plan = Plan(
        rates=rates,
        batch_size=options["batch_size"],
        samples=samples,
        seed=options["seed"],
        accumulate=options["accumulate"],
        clip=options["clip"],
        ema_decay=options["ema_decay"],
        # With few images an epoch is over in seconds, and looking at it would take longer than training.
        epochs_between=max(1, math.ceil(steps * options["batch_size"] / samples / _MOST_PICTURES)),
    )
    return source, plan, part


def _build(options: Mapping[str, Any], source: Source) -> tuple[Method, Adversary | None]:
    torch.manual_seed(options["seed"])  # initial weights; nothing after this draws from the global generator
    name, encoder_options = split_options(options["encoder"])
    encoder = build_encoder(name, dims=options["dims"], **{"guide": options["guide"], **encoder_options})
    if options["recompute"]:
        encoder.set_grad_checkpointing()
    corruption = Corruption(
        frequency_patch=options["spectrum_patch"],
        cutoff=options["spectrum_cutoff"],
        sigma=options["noise_sigma"],
        high_mask=options["high_mask"],
        low_noise=options["low_noise"],
        patch=options["image_patch"],
        fit=options["fit"],
        mask_ratio=options["mask_ratio"],
        noise=options["mask_noise"],
        frequency_probability=options["frequency_probability"],
    )
    corruption.check_size((options["image_size"],) * options["dims"])
    method = build_method(
        options["method"],
        encoder=encoder,
        channels=source.channels,
        seed=options["seed"],
        corruption=corruption,
        objective=Objective(
            rmse=options["rmse_weight"],
            gradient=options["gradient_weight"],
            hfl=options["hfl_weight"],
            consistency=options["consistency_weight"],
            focal_frequency=options["focal_frequency_weight"],
            adversarial=options["adversarial_weight"],
        ),
        augmentation=Augmentation() if options["augment"] else None,
    )
    adversary = None
    if options["adversarial_weight"]:
        from frepa.pretraining.methods.adversarial import Adversary

        adversary = Adversary(options["dims"], source.channels, start_epoch=options["adversarial_start_epoch"])
    return method, adversary


def _precision(asked: str) -> str:
    if asked != "auto":
        return asked
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def _devices(asked: str) -> Any:
    if asked == "auto":
        # On a machine without a GPU one process with all threads beats several.
        return "auto" if torch.cuda.is_available() else 1
    try:
        return [int(part) for part in asked.split(",")] if "," in asked else int(asked)
    except ValueError:
        raise InputError(f'--devices {asked}: expected "auto", a number, or numbers such as 0,3.') from None


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
    options: Mapping[str, Any],
    source: Source,
    plan: Plan,
    method: Method,
    fabric: lightning_fabric.Fabric,
    run: RunFolder,
) -> str:
    size = sum(p.numel() for p in method.encoder.parameters()) / 1e6
    kind, extent = ("images", f"{options['image_size']} px") if source.dims == 2 else ("volumes", voxels(options))
    count = f"{len(source):,} {kind}"
    if options["modality_weights"]:
        count = f"{plan.samples:,} of {count}, drawn by {options['modality_weights']}"
    return (
        f"{options['method']}: {options['encoder']} ({size:.1f} M parameters, guide {method.encoder.guide}) on "
        f"{count}, {len(plan.rates):,} steps of {plan.batch_size} at {extent}, "
        f"{fabric.world_size} x {fabric.device.type}. Results go to {run.root}."
    )
