"""Options of `frepa pretrain`: what they are where none was given, and which values they may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from frepa.errors import InputError
from frepa.options import check_seed


@dataclass(frozen=True)
class Data:
    """What the encoder sees of the source.

    Args:
        dims: 2 for images, 3 for volumes.
        image_size: side in pixels (voxels) of what the encoder sees; by default 512 in 2D and 128 in 3D.
        fit: "resize" keeps the aspect and pads with zeros; "crop" takes a random crop at native resolution, padded with
            zeros where the scan is smaller. By default "resize" in 2D and "crop" in 3D.
        spacing: voxel size in mm that scans are brought to, one number or one per axis (slices, rows, columns:
            "3,1,1"); by default they keep their own. Only the crop is read and resampled where the source is a store.
        foreground: share of the crops centred on foreground: in CT above -500 HU, elsewhere above a tenth of the way
            from the scan's darkest values to its brightest (0.5th and 99.5th percentile).
        window: CT window for images in HU; "any" draws one of the four per image. Others are scaled by percentiles.
        modality_weights: how often each modality is drawn, such as "CT=2,MRI=1": shares in any scale, exact within
            every 1000 samples however many scans there are of each; a modality that is not named is left out, and
            "unknown" stands for scans that name none. By default every scan is drawn once per epoch.
        val_images: images held out for the pictures and the validation loss; a source with fewer than ten times as
            many lends them from training.
    """

    dims: Literal[2, 3] = 2
    image_size: int | None = None
    fit: Literal["resize", "crop"] | None = None
    spacing: float | list[float] | str | None = None
    foreground: float = 0.0
    window: Literal["lung", "abdomen", "brain", "bone", "any"] = "any"
    modality_weights: str | None = None
    val_images: int = 8


@dataclass(frozen=True)
class Optimisation:
    """How the weights are found.

    Args:
        epochs: passes over the source.
        max_steps: optimizer steps instead of epochs.
        batch_size: images per optimizer step, over all devices together; by default 16 in 2D and 2 in 3D.
        accumulate: parts a device's share of a batch is worked through in, to save memory.
        lr: highest learning rate.
        schedule: course of the learning rate after the warm-up: constant, step (x0.1 at 60 % and 85 %) or cosine.
        warmup_steps: steps of linear warm-up.
        clip: largest gradient norm; 0 for no clipping.
        ema_decay: decay of an average of the weights, which is then what is saved; 0 for none.
        seed: decides every random draw of the run.
    """

    epochs: float = 100
    max_steps: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    lr: float = 1e-4
    schedule: Literal["constant", "step", "cosine"] = "constant"
    warmup_steps: int = 0
    clip: float = 1.0
    ema_decay: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Execution:
    """How the run is carried out.

    Args:
        checkpoint_every: steps between checkpoints; the two newest are kept.
        num_workers: processes per device that read and scale images; they never change the result.
        max_unreadable: share of the last 200 samples that may be unreadable; above it the source is taken for lost, and
            the run saves its state and ends. 1 for never.
        devices: "auto", or how many (or which, "0,3") GPUs or CPU processes to use.
        num_nodes: machines taking part, as the scheduler started them.
        precision: fp32, bf16, fp16, or auto: bf16 on a GPU that has it, else fp32.
        recompute: compute the encoder's activations again in the backward pass instead of keeping them (activation
            checkpointing): less memory, more time, the same result. For large U-shaped 3D encoders.
        anonymous_names: write and say keyed hashes instead of names of files, everywhere; config.yaml then holds
            neither the source nor the labelled set of --probe.
        resume: continue the run in --out; starts it when there is none yet.
        accept_changed_source: with --resume, go on although files of the source were added, removed or altered.
        overwrite: replace the run in --out: what an earlier run wrote there is removed, and nothing else.
        quiet: no progress bar.
    """

    checkpoint_every: int = 500
    num_workers: int = 2
    max_unreadable: float = 0.2
    devices: str = "auto"
    num_nodes: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    recompute: bool = False
    anonymous_names: bool = False
    resume: bool = False
    accept_changed_source: bool = False
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Watching:
    """How the encoder is watched while it trains.

    Args:
        watch_every: steps between looks at what the encoder keeps of the held-out images, besides one before the first
            step and one after the last; 0 for none. By default as often as a hundredth of the run's time affords, by
            the number of images that pass through the encoder, and at most every 200 steps.
        probe: a small labelled set (masks, or classes), read by a linear probe at some of the looks.
        keep: best keeps the best encoder of all looks in the folder best, beside the last one.
        best_by: what the best is decided by: rank, variance, low, medium, high or probe, all of them better when
            higher. By default probe where there is one, else high.
        patience: end the run after so many looks without a better one, by the same name; 0 for never.
    """

    watch_every: int | None = None
    probe: str | None = None
    keep: Literal["last", "best"] = "last"
    best_by: Literal["rank", "variance", "low", "medium", "high", "probe"] | None = None
    patience: int = 0


@dataclass(frozen=True)
class Settings:
    """All that decides a run. ``method`` is the method's own options, ``method_name`` what it is called."""

    source: str
    out: str
    method_name: str
    method: Any
    encoder: str | None
    start_from: str | None
    guide: str
    guide_as: str
    data: Data
    optimisation: Optimisation
    watching: Watching
    execution: Execution

    @property
    def config(self) -> dict[str, Any]:
        """Every option by name as plain values: what ``config.yaml`` holds and ``--config`` takes."""
        run = {name: value for name, value in asdict(self.execution).items() if name not in _OF_THE_CALL}
        options = {
            "source": self.source,
            "out": self.out,
            "method": {"name": self.method_name, **asdict(self.method)},
            "encoder": self.encoder,
            "start_from": self.start_from,
            "guide": self.guide,
            "guide_as": self.guide_as,
            **asdict(self.data),
            **asdict(self.optimisation),
            **asdict(self.watching),
            **run,
        }
        hidden = ("source", "probe") if self.execution.anonymous_names else ()
        return {name: value for name, value in options.items() if name not in hidden}


_OF_THE_CALL = ("resume", "accept_changed_source", "overwrite", "quiet")

# The paper's settings; the batch sizes are ours. A crop of 128^3 has as many voxels as eight images of 512 x 512.
_BY_DIMS: dict[int, dict[str, Any]] = {
    2: {"encoder": "vit_base", "image_size": 512, "fit": "resize", "batch_size": 16},
    3: {"encoder": "vit3d_base", "image_size": 128, "fit": "crop", "batch_size": 2},
}

# Options that no part of the program further down checks itself.
_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (
        ("image_size", "batch_size", "accumulate", "checkpoint_every", "num_nodes", "max_steps"),
        "1 or more",
        lambda value: value >= 1,
    ),
    (("num_nodes", "num_workers"), "10,000 at most", lambda value: value <= 10_000),
    (("batch_size", "accumulate"), "a thousand million at most", lambda value: value <= 10**9),
    (("lr", "epochs"), "a number above 0", lambda value: 0 < value < math.inf),
    (
        ("clip", "val_images", "num_workers", "watch_every", "patience"),
        "0 or more",
        lambda value: 0 <= value < math.inf,
    ),
    (("max_unreadable",), "a share, a number from 0 to 1", lambda value: 0 <= value <= 1),
    (("foreground",), "the share of the crops, a number from 0 to 1", lambda value: 0 <= value <= 1),
    (("ema_decay",), "0 (none) or a number below 1", lambda value: 0 <= value < 1),
)


def resolved(settings: Settings) -> Settings:
    """The settings with options that are None and depend on the number of axes filled in, and all in their range.

    Raises:
        InputError: one that is out of its range, or two that contradict each other.
    """
    from frepa.images.readers.pixels import check_extent  # the command's help does without numpy

    dims = settings.data.dims
    if dims not in _BY_DIMS:
        raise InputError(f"--dims {dims}: expected 2 for images or 3 for volumes.")
    defaults = _BY_DIMS[dims]
    settings = replace(
        settings,
        encoder=settings.encoder or (None if settings.start_from else defaults["encoder"]),
        data=replace(_filled(settings.data, defaults), spacing=spacing_in_mm(settings.data.spacing, dims)),
        optimisation=_filled(settings.optimisation, defaults),
        watching=replace(
            settings.watching, best_by=settings.watching.best_by or ("probe" if settings.watching.probe else "high")
        ),
    )
    _check_ranges(settings.config)
    check_extent("image_size", settings.data.image_size, dims)
    check_seed(settings.optimisation.seed)
    if settings.guide in ("input", "target"):
        raise InputError(
            f"--guide {settings.guide}: this option names the guide, frangi or hessian_dark for instance; what it is "
            f"used as is told by --guide-as {settings.guide}."
        )
    if settings.guide_as == "target" and settings.guide == "none":
        raise InputError("--guide-as target: there is no guide to tell with --guide none. Leave one of them out.")
    data = settings.data
    if data.foreground and data.fit != "crop":
        raise InputError(
            f"--foreground {data.foreground} says where crops lie, and with --fit resize there are none. "
            "Add --fit crop, or leave --foreground out."
        )
    return settings


def _filled(part: Any, defaults: dict[str, Any]) -> Any:
    empty = [field.name for field in fields(part) if getattr(part, field.name) is None]
    return replace(part, **{name: defaults[name] for name in empty if name in defaults})


def _check_ranges(config: dict[str, Any]) -> None:
    """Raise InputError for the first option that is out of its range; None is always in it."""
    for names, expected, fits in _RANGES:
        for name in names:
            if config[name] is not None and not fits(config[name]):
                raise InputError(f"--{name.replace('_', '-')} {config[name]}: expected {expected}.")


def spacing_in_mm(spacing: Any, dims: int) -> float | list[float] | None:
    """``--spacing``, one number or "3,1,1" or a list, as a number or a list of ``dims`` numbers; None as it is.

    Raises:
        InputError: anything else.
    """
    if spacing is None:
        return None
    parts = (
        spacing.split(",") if isinstance(spacing, str) else spacing if isinstance(spacing, list | tuple) else [spacing]
    )
    try:
        values = [float(part) for part in parts]
    except (TypeError, ValueError):
        values = []
    if len(values) not in (1, dims) or not all(0 < value < math.inf for value in values):
        several = "three (slices, rows, columns) such as 3,1,1" if dims == 3 else "two (rows, columns) such as 0.5,0.5"
        raise InputError(f"--spacing {spacing}: expected one number in mm above 0, or {several}.")
    return values[0] if len(values) == 1 else values
