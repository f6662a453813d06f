"""Plain patch masking, as masked image modelling has it: SimMIM's corruption, which Frepa is compared with.

SimMIM (CVPR 2022) masks patches of 32 x 32 pixels, 60 % of them, and lets the encoder put a learnt token where they
were. The mask made here serves that; for encoders that have no such token the masked pixels are filled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frepa.corruption import sizes
from frepa.corruption.histogram import check_ratio, choose_patches, spread
from frepa.corruption.inputs import check_images
from frepa.corruption.sizes import Side
from frepa.corruption.workers import for_each
from frepa.draws import Draws
from frepa.errors import InputError, nearest

FILLS = ("mean", "zero")


def patch_mask(
    x: Tensor,
    draws: Draws,
    *,
    patch: Side | None = "auto",
    mask_ratio: float = 0.6,
    exact: bool = True,
    fill: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Mask random patches of images, in 2D and 3D.

    Patches tile the image from its origin; the last ones along an axis may be partial and count like whole ones.

    Args:
        x: images ``(B, C, *S)`` in [0, 1], finite.
        draws: one row per image.
        patch: side of a patch in pixels; "auto" is the published 32 (16 in 3D), and a quarter of the side where the
            image has fewer than four such patches along it.
        mask_ratio: share of the patches that is masked; the published one is 0.6.
        exact: mask exactly ``round(mask_ratio * patches)`` patches of every image; otherwise each with that
            probability.
        fill: what masked pixels become: ``"mean"``, the mean of the image's visible pixels for each channel (0 where
            none is visible), or ``"zero"``.

    Returns:
        the images, float32 ``(B, C, *S)``, and the mask, bool ``(B, 1, *S)``, True where masked. No gradient flows
        through them.

    Raises InputError for images that `check_images` refuses, for options out of range and for a patch larger than the
    image.
    """
    check_images(x)
    check_options(patch, mask_ratio, fill)
    shape = tuple(x.shape[2:])
    sizes.check_image_room(shape, patch)
    side = sizes.image_side(shape, patch, "crop")
    counts = [-(-size // side) for size in shape]
    out = torch.empty(x.shape, device=x.device)
    mask = torch.empty(len(x), 1, *shape, dtype=torch.bool, device=x.device)

    def work(rows: slice) -> None:
        own = draws.select(range(rows.start, rows.stop))
        masked = spread(choose_patches(counts, own, mask_ratio, exact)[:, None].float(), shape, side)
        visible = x[rows].float() * (1 - masked)
        if fill == "mean":
            axes = tuple(range(2, x.ndim))
            seen = (math.prod(shape) - masked.sum(axes, keepdim=True)).clamp_min_(1)
            visible.add_(masked * (visible.sum(axes, keepdim=True) / seen))
        out[rows], mask[rows] = visible, masked > 0

    for_each(len(x), math.prod(x.shape[1:]), x.device, work)
    return out, mask


def check_options(patch: Side | None, mask_ratio: float, fill: str) -> None:
    """Raise InputError for options of `patch_mask` that are unknown or out of range."""
    sizes.check_side("patch=", patch)
    check_ratio(mask_ratio)
    if fill not in FILLS:
        raise InputError(f"fill={fill!r} is not known. {nearest(fill, FILLS)}")
