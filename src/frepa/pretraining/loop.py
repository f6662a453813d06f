"""The pretraining loop, top to bottom on one page: one or many devices, exact resume, no host sync per step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import lightning_fabric
import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from frepa import __version__
from frepa.errors import InputError, RunEnded, TrainingDiverged
from frepa.images.loading import Batch as Loaded
from frepa.optimizers import adam
from frepa.pretraining.journal import Journal
from frepa.pretraining.methods.contract import Batch, Method
from frepa.pretraining.run_folder import RunFolder
from frepa.pretraining.watching import Watch
from frepa.stopping import StopRequest

#: Labels and texts of a loaded batch, as `frepa.pretraining.methods.contract.Batch` has them.
Columns = Callable[[Loaded], tuple[Tensor | None, list[str] | None]]


@dataclass(frozen=True)
class Plan:
    """The numbers that decide the result of a run.

    rates: learning rate of every step, ``(steps,)``. batch_size: samples per optimizer step over all devices.
    samples: length of the source, so that ``step * batch_size / samples`` is the epoch.
    clip: largest gradient norm, 0 for none.
    ema_decay: 0 for none. epochs_between: from one validation to the next.
    """

    rates: np.ndarray
    batch_size: int
    samples: int
    seed: int
    accumulate: int = 1
    clip: float = 1.0
    ema_decay: float = 0.0
    epochs_between: int = 1


def fit(
    fabric: lightning_fabric.Fabric,
    method: Method,
    make_batches: Callable[[int, int], Iterator[Loaded]],
    plan: Plan,
    run: RunFolder,
    journal: Journal,
    *,
    columns: Columns | None = None,
    checkpoint_every: int = 500,
    on_epoch: Callable[[Method, int, int], None] | None = None,
    on_checkpoint: Callable[[Method, int], None] | None = None,
    watch: Watch | None = None,
    stop: StopRequest | None = None,
) -> int | None:
    """Train ``method`` by ``plan``; continue from the newest sound checkpoint in ``run`` if there is one.

    Nothing random lives between steps: corruption and augmentation are keyed by a sample's position in the stream,
    dropout by step and rank, the learning rate is an array. A state is therefore weights, optimizer moments and the
    step number, and a run that was killed ends as the one that was not.

    Args:
        make_batches: ``(first_micro_batch, last_micro_batch) -> iterator`` of this rank's micro-batches.
        columns: what the source knows about the images of a batch beside them.
        on_epoch: called on rank 0 after every ``epochs_between`` epochs with the method (EMA weights if used), epoch
            and step; the ranks wait for each other around it, so it is given to all of them or to none.
        on_checkpoint: called on rank 0 after a state was saved with the method (EMA weights if used) and step.
        watch: looks at the encoder (EMA weights if used) and may end the run before its time; given to all ranks, and
            part of the state.
        stop: asked after every step; when it says so the state is saved and the loop ends.

    Returns:
        Steps taken by a run that is complete, None for one that was stopped on request, to be resumed.

    Raises:
        TrainingDiverged: the loss is not finite; names the step and the rank.
    """
    steps = len(plan.rates)
    method.to(fabric.device)
    groups = method.parameter_groups()
    scales = [group.pop("lr_scale", 1.0) for group in groups]
    optimizer = adam(groups, lr=float(plan.rates[0]))
    # Of weights alone, begun with those of the first step; buffers, which are averages already, follow the method's
    ema = AveragedModel(method, multi_avg_fn=get_ema_multi_avg_fn(plan.ema_decay)) if plan.ema_decay else None
    judged = method if ema is None else cast(Method, ema.module)
    states: dict[str, Any] = {"method": method, "optimizer": optimizer, "ema": ema, "scaler": _scaler(fabric)}
    states |= {"watch": watch, **method.states()}
    step = _restore(run, states, journal)
    trained, optimizer = fabric.setup(method, optimizer)
    method.setup(fabric)
    trained.train()
    journal.begin(step, steps)
    batches = make_batches(step * plan.accumulate, steps * plan.accumulate)

    share = plan.batch_size // (fabric.world_size * plan.accumulate)

    def save() -> None:
        journal.flush()  # the metrics up to a state are on disk before the state is
        if fabric.is_global_zero:
            run.checkpoints.save(step, _capture(states, step))
            if on_checkpoint is not None:
                on_checkpoint(judged, step)

    def lost(error: Exception) -> RunEnded:
        """Save where one process alone can, and say how to go on: between two batches nothing is half done."""
        saved = step > 0 and fabric.world_size == 1
        if saved:
            save()
        state = f"The state after step {step} is saved" if saved else "What was saved before is as it was"
        return _killed_reader(error, state)

    def look(epoch: int) -> bool:
        """Whether the run is at its end, the same on every rank."""
        if watch is None or not watch.due(step, steps):
            return False
        journal.flush()
        if fabric.is_global_zero:
            watch(judged, epoch, step, steps)
        return bool(fabric.broadcast(watch.enough))

    ended = watch.enough if watch is not None else False
    if not step:
        look(0)
    while step < steps and not ended:
        rate = float(plan.rates[step])
        for group, scale in zip(optimizer.param_groups, scales):
            group["lr"] = rate * scale
        torch.manual_seed(_key(plan.seed, step, fabric.global_rank))  # dropout and stochastic depth
        epoch_before = step * plan.batch_size // plan.samples
        terms: dict[str, Tensor] = {}
        whole: dict[str, Tensor] = {}
        weights = 0.0
        for micro in range(plan.accumulate):
            with journal.waiting():
                loaded = _loaded(batches, lost)
            batch, weight = _for_method(loaded, fabric.device, step, epoch_before, columns, share)
            weights += weight
            with fabric.no_backward_sync(trained, enabled=micro < plan.accumulate - 1):
                result = trained(batch)
                fabric.backward(result.loss * (weight / plan.accumulate))
            for name, value in {"loss": result.loss.detach(), **result.terms}.items():
                terms[name] = terms.get(name, 0.0) + value * weight / plan.accumulate
            journal.saw(loaded)
        if plan.clip:
            norm = _clipped(fabric, trained, optimizer, plan.clip, step)
            if norm is not None:
                whole["gradient_norm"] = norm
        optimizer.step()
        optimizer.zero_grad()
        whole |= method.after_step(step, rate)
        if ema is not None:
            ema.update_parameters(method)
        step += 1
        journal.step(step, terms, whole, lr=rate, weight=weights / plan.accumulate)

        epoch = step * plan.batch_size // plan.samples
        due = epoch // plan.epochs_between > epoch_before // plan.epochs_between
        if on_epoch is not None and (due or step == steps):
            journal.flush()
            if fabric.is_global_zero:
                on_epoch(judged, epoch, step)
            fabric.barrier()
        ended = look(epoch)
        stopping = stop is not None and stop.agreed(fabric, step)
        if step % checkpoint_every == 0 or step == steps or stopping or ended:
            save()
            fabric.barrier()
        if stopping:
            break
    journal.end()
    complete = step == steps or ended
    if ema is not None and complete:
        method.load_state_dict(judged.state_dict())
    return step if complete else None


def _loaded(batches: Iterator[Loaded], lost: Callable[[Exception], RunEnded]) -> Loaded:
    try:
        return next(batches)
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # its batch was on the way
        raise lost(error) from None
    except RuntimeError as error:
        if not _is_killed_reader(error):
            raise
        raise lost(error) from None


@contextlib.contextmanager
def killed_readers_told() -> Iterator[None]:
    """Tell of a reader that was ended while a step was under way: PyTorch's handler of SIGCHLD raises wherever we are.

    The step may be half done, so nothing is saved.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_killed_reader(error):
            raise
        raise _killed_reader(error, "What was saved before is as it was") from None


def _is_killed_reader(error: RuntimeError) -> bool:
    """Whether a process that reads images was ended from outside; PyTorch has no error of its own for it."""
    return str(error).startswith("DataLoader worker (pid")


def _killed_reader(error: Exception, state: str) -> RunEnded:
    """What to tell of it; ``state`` says what is saved."""
    return RunEnded(
        "A process that reads images was ended from outside, most likely for want of memory "
        f"({str(error).strip()[:100]}). {state}: continue with the same command and --resume, with fewer "
        "--num-workers if it happens again."
    )


def _clipped(fabric: lightning_fabric.Fabric, trained: Any, optimizer: Any, most: float, step: int) -> Tensor | None:
    """The gradient's norm, brought to ``most`` where it is larger. In fp16 the loss scaler sees to what overflowed."""
    norm = fabric.clip_gradients(trained, optimizer, max_norm=most, error_if_nonfinite=False)
    if _scaler(fabric) is None and norm is not None and not torch.isfinite(norm):
        raise TrainingDiverged(
            f"The gradient became infinite or not a number at step {step + 1}. The newest checkpoint is from before "
            "it. Lower --lr, add --warmup-steps, or use --precision fp32."
        )
    return norm


def _for_method(
    loaded: Loaded, device: torch.device, step: int, epoch: int, columns: Columns | None, share: int
) -> tuple[Batch, float]:
    """What the method is given, on the device, and its weight: how much of its ``share`` of images could be read.

    What is missing counts nothing, so that a step is the same however many ranks its batch is spread over. An empty
    batch still goes through the model, as one blank image of no weight, because with several devices every
    rank has to take part in every step.
    """
    image = loaded["image"]
    labels, texts = columns(loaded) if columns is not None else (None, None)
    if len(image):
        image, inside = image.to(device, non_blocking=True), loaded["inside"]
        if inside is not None:
            inside = inside.to(device, non_blocking=True)
        known: dict[str, Any] = {"labels": labels, "texts": texts, "inside": inside, "told": loaded["told"]}
        return Batch(image, loaded["grey"], loaded["position"], step, epoch, **known), len(image) / share
    blank = torch.zeros(1, *image.shape[1:], device=device)
    labels = None if labels is None else torch.full((1,), -1)
    batch = Batch(blank, torch.ones(1, dtype=torch.bool), [0], step, epoch, labels=labels, texts=texts and [""])
    return batch, 0.0


def _capture(states: dict[str, Any], step: int) -> dict[str, Any]:
    kept = {name: part.state_dict() for name, part in states.items() if part is not None}
    return {"step": step, "states": kept}


def _restore(run: RunFolder, states: dict[str, Any], journal: Journal) -> int:
    found = run.checkpoints.load_newest(journal.tell)
    if found is None:
        journal.rewind(0)
        return 0
    step, state = found
    for name, part in states.items():
        if part is None:
            continue
        try:
            part.load_state_dict(state["states"][name])
        except torch.OutOfMemoryError:  # a RuntimeError too, and no matter of versions
            raise
        except (RuntimeError, ValueError, KeyError):  # names or shapes of tensors, groups of the optimizer, a part
            raise InputError(
                f"{run.root}: its state of step {step:,} does not fit this version of frepa "
                f"({__version__}), whose {name} has other tensors; nothing is changed. Go on with the one that "
                f"wrote it, or begin another run from its encoder: --start-from {run.checkpoints.folder}."
            ) from None
    journal.rewind(step)
    return step


def _scaler(fabric: lightning_fabric.Fabric) -> Any:
    """The loss scaler of fp16, which is part of the state; None in other precisions."""
    return getattr(fabric.strategy.precision, "scaler", None)


def _key(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
