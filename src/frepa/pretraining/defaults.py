"""Options of `frepa pretrain`: what they are where none was given, and which values they may have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from frepa.errors import InputError

# The paper's settings; the batch sizes are ours. A crop of 128^3 has as many voxels as eight images of 512 x 512.
BY_DIMS: dict[int, dict[str, Any]] = {
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
    (("lr", "epochs"), "a number above 0", lambda value: 0 < value < math.inf),
    (
        ("clip", "val_images", "num_workers", "adversarial_start_epoch"),
        "0 or more",
        lambda value: 0 <= value < math.inf,
    ),
    (("max_unreadable",), "a share, a number from 0 to 1", lambda value: 0 <= value <= 1),
    (("foreground",), "the share of the crops, a number from 0 to 1", lambda value: 0 <= value <= 1),
    (("ema_decay",), "0 (none) or a number below 1", lambda value: 0 <= value < 1),
)


def check_ranges(options: Mapping[str, Any]) -> None:
    """Raise InputError for the first option that is out of its range; None is always in it."""
    for names, expected, fits in _RANGES:
        for name in names:
            if options[name] is not None and not fits(options[name]):
                raise InputError(f"--{name.replace('_', '-')} {options[name]}: expected {expected}.")


def resolved(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with those that are None and in ``BY_DIMS`` filled in, in the order given.

    Raises:
        InputError: a number of axes other than 2 and 3.
    """
    if options["dims"] not in BY_DIMS:
        raise InputError(f"--dims {options['dims']}: expected 2 for images or 3 for volumes.")
    defaults = BY_DIMS[options["dims"]]
    filled = {name: defaults.get(name) if value is None else value for name, value in options.items()}
    return filled | {"spacing": spacing_in_mm(filled.get("spacing"), options["dims"])}


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
