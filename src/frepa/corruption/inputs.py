"""What every public function of this room asks of its images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frepa.corruption.workers import for_each
from frepa.errors import InputError


def check_images(x: Tensor, name: str = "images") -> int:
    """Number of image axes (2 or 3) of ``x``, after checking shape, dtype and, on the CPU, that all values are finite.

    ``x`` is ``(B, C, H, W)`` or ``(B, C, D, H, W)``, floating point. Values on an accelerator are not looked at: that
    would wait for the device on every step. The loader refuses files with NaN or infinite values before they get there.

    Raises InputError when ``x`` has another number of axes, an empty axis or an integer dtype, or holds NaN or infinity
    (CPU only).
    """
    if x.ndim not in (4, 5):
        raise InputError(
            f"{name}: found shape {tuple(x.shape)}, expected (batch, channels, height, width) or "
            "(batch, channels, depth, height, width). Add the missing axes, for instance with x[None, None]."
        )
    if not x.is_floating_point():
        raise InputError(f"{name}: found dtype {x.dtype}, expected floating point in [0, 1]. Scale the images first.")
    if 0 in x.shape[1:]:
        raise InputError(f"{name}: found an empty axis in shape {tuple(x.shape)}. Remove empty images.")
    check_finite(x, name)
    return x.ndim - 2


def check_fov(fov: Tensor | None, x: Tensor) -> None:
    """Raise InputError unless ``fov`` is None or bool ``(B, 1, *S)`` for images ``x (B, C, *S)``, on their device."""
    if fov is None:
        return
    expected = (len(x), 1, *x.shape[2:])
    if tuple(fov.shape) != expected or fov.dtype != torch.bool or fov.device != x.device:
        raise InputError(
            f"field of view: found {fov.dtype} of shape {tuple(fov.shape)} on {fov.device}, expected torch.bool of "
            f"shape {expected} on {x.device}, True inside."
        )


def check_finite(x: Tensor, name: str = "images") -> None:
    """Raise InputError when a CPU tensor ``(B, ...)`` holds NaN or infinity; other devices are not made to wait."""
    if x.device.type != "cpu" or not x.numel():
        return
    # A sum is one cheap pass and any NaN or infinity shows in it; only rows where it does are looked at closely.
    total = torch.empty(len(x))

    def add(rows: slice) -> None:
        torch.sum(x[rows].flatten(1), 1, dtype=torch.float32, out=total[rows])

    for_each(len(x), math.prod(x.shape[1:]), x.device, add)
    suspects = (~total.isfinite()).nonzero().flatten().tolist()
    bad = [row for row in suspects if not bool(x[row].isfinite().all())]
    if bad:
        raise InputError(
            f"{name}: NaN or infinite values in rows {bad[:8]} of the batch. "
            "Run `frepa check` on the source and remove or repair the files it names."
        )
