"""Histogram-equalized image masking: patches replaced by noise of their own histogram (Frepa Eq. 4, 13)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from frepa.corruption.inputs import check_images
from frepa.corruption.workers import for_each
from frepa.draws import Draws
from frepa.errors import InputError, nearest

# Side of a patch by the number of image axes.
DEFAULT_PATCH = {2: 32, 3: 16}


def histogram_mask(
    x: Tensor,
    draws: Draws,
    *,
    patch: int | None = None,
    mask_ratio: float = 0.7,
    exact: bool = False,
    noise: str = "gaussian",
) -> tuple[Tensor, Tensor]:
    """Replace random patches by noise of the same histogram. Frepa Eq. 4 (2D) and 13 (3D).

    Patches tile the image from its origin; the last ones along an axis may be partial and count like whole ones.

    Args:
        x: images ``(B, C, *S)`` in [0, 1], finite.
        draws: one row per image.
        patch: side of a patch in pixels; 32 in 2D and 16 in 3D when not given.
        mask_ratio: probability of a patch to be masked, or the masked share with ``exact``.
        exact: mask exactly ``round(mask_ratio * patches)`` patches of every image.
        noise: ``"gaussian"``: normal noise of the patch's own mean and variance, for each channel apart.
            ``"permute"``: the patch's pixels change places, channels together, so its histogram is kept exactly.
            ``"zero"``: zeros.

    Returns:
        the images, float32 ``(B, C, *S)``, not clipped, and the mask, bool ``(B, 1, *S)``, True where masked. No
        gradient flows through them.

    Raises InputError for images that `check_images` refuses and for options out of range.
    """
    check_images(x)
    check_options(patch, mask_ratio, noise)
    out = torch.empty(x.shape, device=x.device)
    mask = torch.empty(len(x), 1, *x.shape[2:], dtype=torch.bool, device=x.device)

    def replace(rows: slice) -> None:
        own = draws.select(range(rows.start, rows.stop))
        out[rows], mask[rows] = mask_piece(x[rows], own, patch=patch, mask_ratio=mask_ratio, exact=exact, noise=noise)

    for_each(len(x), math.prod(x.shape[1:]), x.device, replace)
    return out, mask


def check_options(patch: int | None, mask_ratio: float, noise: str) -> None:
    """Raise InputError for options of `histogram_mask` that are unknown or out of range."""
    if noise not in _FILLS:
        raise InputError(f"noise={noise!r} is not known. {nearest(noise, _FILLS)}")
    if (patch is not None and patch < 1) or not 0 <= mask_ratio <= 1:
        raise InputError(
            f"image masking: found patch={patch}, mask_ratio={mask_ratio}; "
            "expected a patch of at least 1 and a share between 0 and 1."
        )


def mask_piece(
    x: Tensor, draws: Draws, *, patch: int | None, mask_ratio: float, exact: bool, noise: str
) -> tuple[Tensor, Tensor]:
    """`histogram_mask` without its checks, for images that are worked on together; the mask is float32, 0 and 1."""
    x, shape = x.float(), x.shape[2:]
    patch = DEFAULT_PATCH[len(shape)] if patch is None else patch
    chosen = choose_patches([-(-size // patch) for size in shape], draws, mask_ratio, exact)
    mask = spread(chosen[:, None].float(), shape, patch)
    # Interpolation with weights 0 and 1 is exact, and quicker on the CPU than selecting.
    return torch.lerp(x, _FILLS[noise](x, draws, patch), mask), mask


def choose_patches(counts: Sequence[int], draws: Draws, mask_ratio: float, exact: bool) -> Tensor:
    """Which patches are masked, bool ``(B, *counts)``."""
    score = draws.uniform(counts, "patches")
    if not exact:
        return score < mask_ratio
    flat = score.flatten(1)
    chosen = flat.argsort(1)[:, : round(mask_ratio * flat.shape[1])]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, chosen, True).view_as(score)


def spread(values: Tensor, shape: Sequence[int], patch: int) -> Tensor:
    """One value per patch ``(B, C, *counts)`` to one per pixel ``(B, C, *S)``."""
    for axis in reversed(range(len(shape))):
        values = values.index_select(axis + 2, _patch_of_pixel(shape[axis], patch, values.device))
    return values


def patch_moments(x: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, float32 ``(B, C, *counts)``, over the pixels it really has."""
    mean = _patch_mean(x, patch)
    # In two passes: the mean of squares less the squared mean would lose the digits of a faint texture.
    centred = x - spread(mean, x.shape[2:], patch)
    return mean, _patch_mean(centred.square_(), patch).sqrt_()


def _patch_mean(x: Tensor, patch: int) -> Tensor:
    split = _split_axes(x, patch)
    total = split.sum(tuple(range(3, split.ndim, 2)))
    return total.div_(_pixels_of_patch(tuple(x.shape[2:]), patch, x.device))


def _fill_gaussian(x: Tensor, draws: Draws, patch: int) -> Tensor:
    mean, deviation = (spread(moment, x.shape[2:], patch) for moment in patch_moments(x, patch))
    return mean.addcmul_(deviation, draws.normal(x.shape[1:], "patch_noise"))


def _fill_permuted(x: Tensor, draws: Draws, patch: int) -> Tensor:
    shape = tuple(x.shape[2:])
    inside, rank = _places(shape, patch, x.device)
    key = to_patches(draws.uniform((1, *shape), "patch_order"), patch)
    # Keys are below 1, so what pads a partial patch comes last and the real pixels change places among themselves.
    order = key.masked_fill_(~inside, 2.0).argsort(-1).gather(-1, rank.expand_as(key))
    patches = to_patches(x, patch)
    return from_patches(patches.gather(-1, order.expand_as(patches)), shape, patch)


def _fill_zero(x: Tensor, draws: Draws, patch: int) -> Tensor:
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
    inside = to_patches(torch.ones(1, 1, *shape), patch) > 0
    rank = (~inside).long().argsort(dim=-1, stable=True).argsort(-1)
    return inside.to(device), rank.to(device)
