"""What a run tells while it trains: progress bar, metrics.jsonl, speed.jsonl, TensorBoard, skipped files."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning_fabric
import torch
from torch import Tensor
from tqdm import tqdm

from frepa.errors import TrainingDiverged
from frepa.files import announce
from frepa.images.hidden_names import Names
from frepa.memory import duration, gigabytes, memory_in_use
from frepa.pretraining.lost_data import LostData
from frepa.pretraining.run_folder import RunFolder

#: Terms in the progress line, the loss among them.
_SHOWN = 5


class Journal:
    """Collects each step's terms on the device and brings them to the host every ``every`` steps, all at once.

    ``metrics.jsonl`` holds only what the training decides (terms, learning rate), so that it is the same however
    fast the machine was and however often the run was interrupted; times go to ``speed.jsonl``.
    """

    def __init__(
        self,
        fabric: lightning_fabric.Fabric,
        run: RunFolder,
        *,
        batch_size: int,
        every: int = 10,
        quiet: bool = False,
        lost: LostData | None = None,
        on_loss: Callable[[str], None] | None = None,
        names: Names | None = None,
    ) -> None:
        self.fabric, self.run = fabric, run
        self.batch_size, self.every, self.quiet = batch_size, every, quiet
        self.lost, self.on_loss, self.names = lost, on_loss, names or Names()
        self.skipped: dict[str, str] = {}
        self._new: dict[str, str] = {}  # found by this rank and not yet told to the others
        self._pending: list[tuple[int, float, dict[str, Tensor], dict[str, Tensor], float]] = []
        self._waited = 0.0
        self._since = time.perf_counter()
        self._since_step = 0
        self._steps: int | None = None
        self._told = False
        self._bar: tqdm | None = None
        self._looked: dict[str, str] = {}
        self._looking, self._from = 0.0, time.perf_counter()
        self._board = _tensorboard(run) if fabric.is_global_zero else None

    def tell(self, sentence: str) -> None:
        """Print one line for the user (rank 0, also when quiet: it is never about progress)."""
        if self.fabric.is_global_zero:
            tqdm.write(sentence, file=sys.stderr)

    def rewind(self, step: int) -> None:
        """Cut the logs back to the state training continues from."""
        if self.fabric.is_global_zero:
            self.run.cut_logs(step)
            if step:
                self.skipped = self.run.read_skipped() | self.skipped
            if step:
                self.tell(f"Continuing {self.run.root} after step {step}.")

    def begin(self, step: int, steps: int) -> None:
        self._since, self._since_step, self._waited = time.perf_counter(), step, 0.0
        self._steps = steps
        self._looking, self._from = 0.0, self._since
        if self.fabric.is_global_zero and not self.quiet:
            terminal = sys.stderr.isatty()
            # In a log file a line every 30 s is enough; on a terminal the bar redraws itself.
            self._bar = tqdm(
                total=steps,
                initial=step,
                unit="step",
                desc="pretrain",
                dynamic_ncols=terminal,
                mininterval=0.5 if terminal else 30.0,
                smoothing=0.05,
            )

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def saw(self, batch: Mapping[str, Any]) -> None:
        """Remember the files of this batch that could not be used, and notice when there are too many."""
        skipped = [self.names.skipped(item) for item in batch.get("skipped", ())]
        self._skip({item.path: item.reason for item in skipped})
        if self.lost is not None and self.on_loss is not None:
            why = self.lost.saw(len(batch["index"]), [f"{item.path}: {item.reason}" for item in skipped])
            if why:
                self.on_loss(why)

    def _skip(self, found: dict[str, str]) -> None:
        for path, reason in found.items():
            if path not in self.skipped:
                self.skipped[path] = self._new[path] = reason
                self.tell(f"Skipped {path}: {reason}")

    def step(
        self, step: int, terms: dict[str, Tensor], whole: dict[str, Tensor] | None = None, *, lr: float, weight: float
    ) -> None:
        """Add a finished step.

        Args:
            step: its number, from 1 on.
            terms: sums over the batch's parts of each term times the part's weight.
            whole: what is one number for all ranks, such as the gradient's norm.
            lr: learning rate.
            weight: sum of the parts' weights, 1 where everything could be read.
        """
        self._pending.append((step, lr, terms, whole or {}, weight))
        if self._bar is not None:
            self._bar.update()
        if step % self.every == 0:
            self.flush()

    def flush(self) -> None:
        """Bring the pending terms to the host, check them, write them."""
        if not self._pending:
            return
        parts = [[*terms.values(), *whole.values()] for _, _, terms, whole, _ in self._pending]
        flat = torch.stack([value.float() for values in parts for value in values])
        weights = [weight for *_, weight in self._pending]
        several = self.fabric.world_size > 1
        flat = torch.cat([flat, flat.new_tensor([*weights, float(bool(self._new))])])
        reduced = self.fabric.all_reduce(flat, reduce_op="mean") if several else flat
        assert isinstance(reduced, Tensor)
        local, found = flat.tolist(), reduced.tolist()
        if several and found[-1] > 0:
            self._share_skipped()
        self._new = {}
        values, weights = iter(found), found[-1 - len(weights) : -1]
        rows = []
        for (step, lr, terms, whole, _), weight in zip(self._pending, weights):
            # Nothing was read on any rank: the step has no terms.
            named = {name: value / weight for name, value in zip(terms, values) if weight > 0}
            rows.append({"step": step, "lr": lr, **named, **dict(zip(whole, values))})
        self._check(rows, local)
        if self.fabric.is_global_zero:
            self.run.append(self.run.metrics, rows)
            self._speed(rows[-1])
            self.run.write_skipped(self.skipped)
            if self._board is not None:
                for row in rows:
                    for name, value in row.items():
                        if name != "step":
                            self._board.add_scalar(name, value, row["step"])
        self._pending.clear()

    def _share_skipped(self) -> None:
        """Tell every rank what the others could not read."""
        found: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(found, self._new)
        for others in found:
            self._skip(others)

    def record(self, row: dict[str, Any]) -> None:
        """Write one more line to ``metrics.jsonl`` (validation terms)."""
        if self.fabric.is_global_zero:
            self.run.append(self.run.metrics, [row])

    def looked(self, row: dict[str, Any], found: Mapping[str, float], seconds: float) -> None:
        """Write what a look at the encoder found, show it in the progress line, and count the time it took."""
        self.record(row)
        self._looking += seconds
        self._looked |= {name: f"{value:.3g}" for name, value in found.items()}
        if self.fabric.is_global_zero:
            self.run.append(self.run.speed, [{"step": row["step"], "looking_seconds": round(seconds, 3)}])
            if self._board is not None:
                for name, value in found.items():
                    self._board.add_scalar(f"health/{name}", value, row["step"])

    def end(self) -> None:
        self.flush()
        if self._looking:
            share = self._looking / max(time.perf_counter() - self._from, 1e-9)
            self.tell(f"Looking at the encoder took {100 * share:.1f} % of the time.")
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()

    def _check(self, rows: list[dict[str, float]], local: list[float]) -> None:
        for row in rows:
            bad = [name for name, value in row.items() if not math.isfinite(value) and name != "gradient_norm"]
            if bad:
                here = any(not math.isfinite(value) for value in local)
                raise TrainingDiverged(
                    f"{', '.join(bad)} became {row[bad[0]]} at step {row['step']}"
                    + (f" on rank {self.fabric.global_rank}" if here else " on another rank")
                    + ". The newest checkpoint is from before it. Lower --lr, add --warmup-steps, or use "
                    "--precision fp32, and continue with --resume in a new run or from this checkpoint."
                )

    def _speed(self, row: dict[str, float]) -> None:
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        steps = int(row["step"]) - self._since_step
        speed = {
            "step": int(row["step"]),
            "images_per_second": round(steps * self.batch_size / seconds, 3),
            "waiting_share": round(self._waited / seconds, 4),
            "memory_bytes": memory_in_use(self.fabric.device),
        }
        self.run.append(self.run.speed, [speed])
        if not self._told and self._steps is not None:
            self._told = True
            left = (self._steps - int(row["step"])) * seconds / steps
            held = gigabytes(speed["memory_bytes"])
            self.tell(f"Step {row['step']} of {self._steps:,}: {held} of memory in use, about {duration(left)} left.")
        if self._bar is not None:
            shown = {name: f"{row[name]:.4f}" for name in [n for n in row if n not in ("step", "lr")][:_SHOWN]}
            self._bar.set_postfix(
                shown
                | self._looked
                | {"img/s": f"{speed['images_per_second']:.1f}", "wait": f"{speed['waiting_share']:.0%}"}
                | {"mem": gigabytes(speed["memory_bytes"])},
                refresh=False,
            )
        self._since, self._since_step, self._waited = now, int(row["step"]), 0.0


def _tensorboard(run: RunFolder) -> Any:
    """A TensorBoard writer where the package is installed, else None: the files above hold everything."""
    try:
        writer: Callable[..., Any] = __import__("torch.utils.tensorboard", fromlist=["SummaryWriter"]).SummaryWriter
    except ImportError:
        return None
    folder = run.root / "tensorboard"
    before = set(folder.glob("*"))
    board = writer(str(folder))
    for path in set(folder.glob("*")) - before:
        announce(path, made=True)
    return board
