"""Options of the verbs that train a head, grouped by what they decide; a task adds its own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from frepa.datasets.stacks import Dividing, check_unit
from frepa.downstream.division import check_rule
from frepa.errors import InputError
from frepa.images.intensity import check_window
from frepa.images.readers.pixels import check_extent
from frepa.options import check_seed
from frepa.user_paths import as_list, check_source_name

_BLOCKS = re.compile(r"blocks=([1-9]\d{0,3})")
#: Options that never change a result: they are not kept with a run.
_MOST = 10**9  # of what is counted: far more than anything has, and far less than an integer of C holds
_PASSING = ("resume", "overwrite", "quiet")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images, how they are divided, and how they are brought before the encoder.

    Attributes:
        source: as the user named it; a list where a task takes several sets at once.
        split: ``official`` or ``random``.
        divide_by: what stays whole in that: patients, slices or blocks (`frepa.datasets.stacks`).
        folds: number of folds of a cross-validation; None is one split.
        image_size: pixels; what it means is the task's.
        window: CT window by name; None scales by the image's own values.
    """

    source: str | list[str]
    split: str
    divide_by: str = "patients"
    folds: int | None
    image_size: int | None
    window: str | None

    @property
    def how(self) -> Dividing:
        """How the images are to be divided into parts."""
        return Dividing(self.divide_by, self.split, self.folds)

    def check(self) -> None:
        """Raise InputError for values out of range."""
        for text in as_list(self.source):
            check_source_name(text)
        check_rule(self.split)
        check_unit(self.divide_by)
        check_extent("image_size", self.image_size, 2)
        if self.folds is not None and self.folds < 2:
            raise InputError(f"--folds {self.folds}: expected 2 or more; leave it out for one split.")
        check_window(self.window)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a head is trained.

    Attributes:
        batch_size: images or crops per step; None is the task's default.
        epochs: passes over the training part; max_steps: optimizer steps instead.
        lr: highest learning rate, None where the number of axes decides; schedule: its course, after warmup_steps.
        augment: flips, and quarter turns of crops; None where the training part decides.
        val_every: steps between validations; None is the default.
        train: ``head`` alone, on a frozen encoder; or ``blocks=N`` or ``all`` of the encoder with it.
        encoder_lr: highest learning rate of the encoder's last layer, and ``layer_decay`` from each layer to the one
            before it; None are the defaults of `frepa.downstream.tuning`.
    """

    batch_size: int | None
    epochs: float
    max_steps: int | None
    lr: float | None
    schedule: str
    warmup_steps: int
    augment: bool | None
    val_every: int | None
    train: str = "head"
    encoder_lr: float | None = None
    layer_decay: float | None = None

    @property
    def tunes(self) -> bool:
        """Something of the encoder trains with the head."""
        return self.train != "head"

    @property
    def blocks(self) -> int:
        """N of ``blocks=N``; 0 where all or nothing of the encoder trains."""
        found = _BLOCKS.fullmatch(self.train)
        return int(found[1]) if found else 0

    def check(self) -> None:
        """Raise InputError for values out of range."""
        check_least(1, batch_size=self.batch_size, max_steps=self.max_steps, val_every=self.val_every)
        check_least(0, warmup_steps=self.warmup_steps)
        for name, value in (("lr", self.lr), ("epochs", self.epochs)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{name} {value}: expected a number above 0.")
        if self.train not in ("head", "all") and not self.blocks:
            raise InputError(f"--train {self.train}: expected head, all, or blocks=N with N from 1 on.")
        for name, most in (("encoder_lr", math.inf), ("layer_decay", 1.0)):
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is None:
                continue
            if not self.tunes:
                raise InputError(f"{option}: the encoder is frozen. Add --train blocks=N or all, or leave it out.")
            if not (0 < value <= most and value < math.inf):
                end = " and up to 1." if most == 1 else "."
                raise InputError(f"{option} {value}: expected a number above 0{end}")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run is written and how it is executed.

    Attributes:
        out: the run folder.
        seed: of every random draw, and of what of the division is not official.
        seeds: heads that are trained per division, with ``seed``, ``seed + 1`` and so on.
        num_workers: threads that read ahead; they never change the result.
        precision: fp32, bf16 or auto.
        bundle: the encoder is written into the run too.
        anonymous_names: keyed hashes stand for names of files in all that the run writes and says.
        feature_cache: folder for the 2D features of a slice transfer; None keeps none.
        resume: continue the run that is there. overwrite: replace it.
    """

    out: str
    seed: int
    seeds: int
    num_workers: int
    precision: str
    feature_cache: str | None
    bundle: bool = False
    anonymous_names: bool = False
    resume: bool = False
    overwrite: bool
    quiet: bool

    def check(self) -> None:
        """Raise InputError for values out of range."""
        check_least(1, seeds=self.seeds)
        if self.seeds > 10_000:
            raise InputError(f"--seeds {self.seeds}: expected 10000 at most.")
        check_seed(self.seed, self.seeds)
        check_least(0, num_workers=self.num_workers)


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What every verb that trains a head is told; ``encoder`` as the user named it."""

    encoder: str
    data: DataOptions
    fit: FitOptions
    run: RunOptions

    def check(self) -> None:
        """Raise InputError for values out of range; a task adds its own checks."""
        self.data.check()
        self.fit.check()
        self.run.check()

    def fit_of(self, dims: int) -> FitOptions:
        """How a head is trained on an encoder of so many axes, with what they decide."""
        return self.fit

    def kept(self) -> dict[str, Any]:
        """What ``config.yaml`` holds: the verb's options by name, so that the file can be given as ``--config``."""
        hidden = ("source",) if self.run.anonymous_names else ()
        return {name: value for name, value in _flat(self) if name not in (*_PASSING, *hidden)}


def check_least(least: int, **values: int | None) -> None:
    """Raise InputError where an option that was given is below ``least``, or more than anything can be counted by."""
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected {least} or more.")
        if value is not None and value > _MOST:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected {_MOST:,} at most.")


def check_share(*, whole: bool = True, **values: float) -> None:
    """Raise InputError where an option is no share in [0, 1], or in [0, 1) unless ``whole``."""
    for name, value in values.items():
        if not (0 <= value <= 1 if whole else 0 <= value < 1):
            to = "to 1" if whole else "to below 1"
            raise InputError(f"--{name.replace('_', '-')} {value}: expected a share from 0 {to}.")


def _flat(options: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from _flat(value)
        else:
            yield field.name, value
