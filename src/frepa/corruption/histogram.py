"""Histogram-equalized image masking: patches replaced by noise of their own histogram (Frepa Eq. 4, 13)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from frepa.corruption import sizes
from frepa.corruption.inputs import check_fov, check_images
from frepa.corruption.sizes import Side
from frepa.corruption.workers import for_each
from frepa.draws import Draws
from frepa.errors import InputError, nearest


def histogram_mask(
    x: Tensor,
    draws: Draws,
    *,
    patch: Side | None = "auto",
    mask_ratio: float = 0.7,
    exact: bool = False,
    noise: str = "gaussian",
    fit: str | None = None,
    fov: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace random patches by noise of the same histogram. Frepa Eq. 4 (2D) and 13 (3D).

    Patches tile the image from its origin; the last ones along an axis may be partial and count like whole ones.

    Args:
        x: images ``(B, C, *S)`` in [0, 1], finite.
        draws: one row per image.
        patch: side of a patch in pixels, or "auto" by size and ``fit`` (`sizes.image_side`).
        mask_ratio: probability of a patch to be masked, or the masked share with ``exact``.
        exact: mask exactly ``round(mask_ratio * patches)`` patches of every image.
        noise: ``"gaussian"``: normal noise of the patch's own mean and variance, for each channel apart.
            ``"permute"``: the patch's pixels change places, channels together, so its histogram is kept exactly.
            ``"zero"``: zeros.
        fit: how the images came to their size, ``"resize"`` or ``"crop"``; only read by "auto".
        fov: field of view, bool ``(B, 1, *S)``, or None. Pixels outside it are never masked, do not count towards a
            patch's histogram, and patches without a pixel inside are none of the patches.

    Returns:
        the images, float32 ``(B, C, *S)``, not clipped, and the mask, bool ``(B, 1, *S)``, True where masked. No
        gradient flows through them.

    Raises InputError for images that `check_images` refuses, for options out of range, for a patch larger than the
    image and for a field of view of another shape.
    """
    check_images(x)
    check_options(patch, mask_ratio, noise, fit)
    sizes.check_image_room(x.shape[2:], patch)
    check_fov(fov, x)
    side = sizes.image_side(x.shape[2:], patch, fit)
    out = torch.empty(x.shape, device=x.device)
    mask = torch.empty(len(x), 1, *x.shape[2:], dtype=torch.bool, device=x.device)

    def replace(rows: slice) -> None:
        own, seen = draws.select(range(rows.start, rows.stop)), None if fov is None else fov[rows]
        out[rows], mask[rows] = mask_piece(
            x[rows], own, patch=side, mask_ratio=mask_ratio, exact=exact, noise=noise, fov=seen
        )

    for_each(len(x), math.prod(x.shape[1:]), x.device, replace)
    return out, mask


def check_options(patch: Side | None, mask_ratio: float, noise: str, fit: str | None = None) -> None:
    """Raise InputError for options of `histogram_mask` that are unknown or out of range."""
    if noise not in _FILLS:
        raise InputError(f"noise={noise!r} is not known. {nearest(noise, _FILLS)}")
    sizes.check_side("patch=", patch)
    sizes.check_fit(fit)
    check_ratio(mask_ratio)


def check_ratio(mask_ratio: float) -> None:
    """Raise InputError unless ``mask_ratio`` is a share."""
    if not 0 <= mask_ratio <= 1:
        raise InputError(f"image masking: found mask_ratio={mask_ratio}; expected a share between 0 and 1.")


def mask_piece(
    x: Tensor, draws: Draws, *, patch: int, mask_ratio: float, exact: bool, noise: str, fov: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`histogram_mask` without its checks, for images that are worked on together; the mask is float32, 0 and 1."""
    shape, x = x.shape[2:], x.float()
    counts = [-(-size // patch) for size in shape]
    fov = None if fov is None else fov.float()
    allowed = None if fov is None else _patch_sum(fov, patch)[:, 0] > 0
    chosen = choose_patches(counts, draws, mask_ratio, exact, allowed)
    mask = spread(chosen[:, None].float(), shape, patch)
    if fov is not None:
        mask = mask * fov
    # Interpolation with weights 0 and 1 is exact, and quicker on the CPU than selecting.
    return torch.lerp(x, _FILLS[noise](x, draws, patch, fov), mask), mask


def choose_patches(
    counts: Sequence[int], draws: Draws, mask_ratio: float, exact: bool, allowed: Tensor | None = None
) -> Tensor:
    """Which patches are masked, bool ``(B, *counts)``; of those ``allowed (B, *counts)`` only where that is given.

    The share ``mask_ratio`` is a probability or, with ``exact``, exactly ``round(mask_ratio * patches)`` of them.
    """
    score = draws.uniform(counts, "patches")
    if not exact:
        chosen = score < mask_ratio
        return chosen if allowed is None else chosen & allowed
    flat = score.flatten(1)
    if allowed is None:
        order = flat.argsort(1)[:, : round(mask_ratio * flat.shape[1])]
        return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True).view_as(score)
    # Scores are below 1, so what is not allowed comes last.
    rank = flat.masked_fill(~allowed.flatten(1), 2.0).argsort(1).argsort(1)
    wanted = (mask_ratio * allowed.flatten(1).sum(1, keepdim=True)).round()
    return (rank < wanted).view_as(score)


def spread(values: Tensor, shape: Sequence[int], patch: int) -> Tensor:
    """One value per patch ``(B, C, *counts)`` to one per pixel ``(B, C, *S)``."""
    for axis in reversed(range(len(shape))):
        values = values.index_select(axis + 2, _patch_of_pixel(shape[axis], patch, values.device))
    return values


def patch_moments(x: Tensor, patch: int, fov: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, float32 ``(B, C, *counts)``, over the pixels it really has.

    With ``fov``, float32 ``(B, 1, *S)`` of 0 and 1, over those inside it; 0 for patches that have none.
    """
    if fov is None:
        pixels = _pixels_of_patch(tuple(x.shape[2:]), patch, x.device)
    else:
        pixels = _patch_sum(fov, patch).clamp_min_(1)
    mean = _patch_sum(x if fov is None else x * fov, patch).div_(pixels)
    # In two passes: the mean of squares less the squared mean would lose the digits of a faint texture.
    square = (x - spread(mean, x.shape[2:], patch)).square_()
    return mean, _patch_sum(square if fov is None else square.mul_(fov), patch).div_(pixels).sqrt_()


def _patch_sum(x: Tensor, patch: int) -> Tensor:
    split = _split_axes(x, patch)
    return split.sum(tuple(range(3, split.ndim, 2)))


def _fill_gaussian(x: Tensor, draws: Draws, patch: int, fov: Tensor | None) -> Tensor:
    mean, deviation = (spread(moment, x.shape[2:], patch) for moment in patch_moments(x, patch, fov))
    return mean.addcmul_(deviation, draws.normal(x.shape[1:], "patch_noise"))


def _fill_permuted(x: Tensor, draws: Draws, patch: int, fov: Tensor | None) -> Tensor:
    shape = tuple(x.shape[2:])
    inside, rank = _places(shape, patch, x.device) if fov is None else _rank_real(to_patches(fov, patch) > 0)
    key = to_patches(draws.uniform((1, *shape), "patch_order"), patch)
    # Keys are below 1, so what pads a partial patch comes last and the real pixels change places among themselves.
    order = key.masked_fill_(~inside, 2.0).argsort(-1).gather(-1, rank.expand_as(key))
    patches = to_patches(x, patch)
    return from_patches(patches.gather(-1, order.expand_as(patches)), shape, patch)


def _fill_zero(x: Tensor, draws: Draws, patch: int, fov: Tensor | None) -> Tensor:
    return torch.zeros_like(x)


_FILLS = {"gaussian": _fill_gaussian, "permute": _fill_permuted, "zero": _fill_zero}


def to_patches(x: Tensor, patch: int) -> Tensor:
    """Images ``(B, C, *S)``, padded with zeros, as patches ``(B, C, patches, pixels)``."""
    dims = x.ndim - 2
    order = [2 + 2 * axis for axis in range(dims)] + [3 + 2 * axis for axis in range(dims)]
    return _split_axes(x, patch).permute(0, 1, *order).reshape(*x.shape[:2], -1, patch**dims)


def from_patches(patches: Tensor, shape: Sequence[int], patch: int) -> Tensor:
    """The inverse of `to_patches`: ``(B, C, *S)`` with the padding cut off."""
    dims, counts = len(shape), [-(-size // patch) for size in shape]
    split = patches.reshape(*patches.shape[:2], *counts, *[patch] * dims)
    order = [axis for pair in range(dims) for axis in (2 + pair, 2 + dims + pair)]
    whole = split.permute(0, 1, *order).reshape(*patches.shape[:2], *[count * patch for count in counts])
    for axis, size in enumerate(shape):
        whole = whole.narrow(axis + 2, 0, size)
    return whole


def _split_axes(x: Tensor, patch: int) -> Tensor:
    """Each image axis, padded with zeros, as two: ``(B, C, count, patch, count, patch, ...)``."""
    padding = [side for size in reversed(x.shape[2:]) for side in (0, -size % patch)]
    padded = functional.pad(x, padding) if any(padding) else x
    return padded.reshape(*x.shape[:2], *[side for size in padded.shape[2:] for side in (size // patch, patch)])


# Index tables, one per shape and device, shared: never changed in place.


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _patch_of_pixel(size: int, patch: int, device: torch.device) -> Tensor:
    return torch.arange(size).div(patch, rounding_mode="floor").to(device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _pixels_of_patch(shape: tuple[int, ...], patch: int, device: torch.device) -> Tensor:
    """Number of real pixels of each patch, float32 ``(*counts)``."""
    pixels = torch.ones(())
    for size in shape:
        pixels = pixels[..., None] * (size - torch.arange(0, size, patch)).clamp_max(patch)
    return pixels.to(device)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _places(shape: tuple[int, ...], patch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which places of each patch are real pixels, and each place's rank with the real ones counted first."""
    inside, rank = _rank_real(to_patches(torch.ones(1, 1, *shape), patch) > 0)
    return inside.to(device), rank.to(device)


def _rank_real(inside: Tensor) -> tuple[Tensor, Tensor]:
    """``inside`` as it is, and each place's rank along the last axis with those inside counted first."""
    return inside, (~inside).long().argsort(dim=-1, stable=True).argsort(-1)
