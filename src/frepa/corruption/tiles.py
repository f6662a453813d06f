"""The tiles of the spectrum: which there are, how likely each is masked, and from tiles to bins (Frepa Eq. 2, 12)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from frepa.corruption.spectrum import signed_frequencies


def tile_numbers(size: int, patch: int) -> Tensor:
    """Numbers k of the tiles along an axis, in ascending order: tile k holds the frequencies ``patch k`` and up."""
    return torch.arange(-(size // 2) // patch, (size - 1) // 2 // patch + 1)


def tile_of_bin(size: int, patch: int) -> Tensor:
    """Place among `tile_numbers` of each bin along an axis, in transform order (int64, CPU)."""
    return signed_frequencies(size).div(patch, rounding_mode="floor") - (-(size // 2) // patch)


def tile_distance(shape: Sequence[int], patch: int) -> Tensor:
    """Distance of each tile's nominal centre from the zero frequency, in bins: float64 ``(*tiles)``."""
    square = torch.zeros((), dtype=torch.float64)
    for size in shape:
        square = square[..., None] + (patch * (tile_numbers(size, patch) + 0.5)) ** 2
    return square.sqrt()


def touches_zero(shape: Sequence[int], patch: int) -> Tensor:
    """Which tiles touch the zero frequency, bool ``(*tiles)``: those numbered -1 or 0 along every axis."""
    near = torch.ones((), dtype=torch.bool)
    for size in shape:
        number = tile_numbers(size, patch)
        near = near[..., None] & ((number == 0) | (number == -1))
    return near


def tile_probability(shape: Sequence[int], patch: int, cutoff: float, *, mask_centre: bool = False) -> Tensor:
    """Masking probability of each tile, float32 ``(*tiles)``, zero frequency in the middle. Frepa Eq. 2, 12.

    0 for the tiles that touch the zero frequency, unless ``mask_centre``.
    """
    probability = -torch.expm1(-((tile_distance(shape, patch) / (cutoff * min(shape))) ** 2)).float()
    return probability if mask_centre else probability.masked_fill_(touches_zero(shape, patch), 0)


def expand_tiles(keep: Tensor, shape: Sequence[int], patch: int) -> Tensor:
    """Half-spectrum factor ``(M(u) + M(-u)) / 2``, float32 ``(B, *half)``, of one value per tile, ``keep (B, *tiles)``.

    Along an axis only few pairs (tile of u, tile of -u) exist. The two are averaged once per pair, on a small grid, and
    the grid is then spread over the bins one axis at a time.
    """
    here, there, spread = keep, keep, []
    for axis, size in enumerate(shape):
        own, mirror, bins = _tile_pairs(size, patch, axis == len(shape) - 1, keep.device)
        here, there = here.index_select(axis + 1, own), there.index_select(axis + 1, mirror)
        spread.append(bins)
    factor = (here + there) / 2
    for axis in reversed(range(len(shape))):
        factor = factor.index_select(axis + 1, spread[axis])
    return factor


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _tile_pairs(size: int, patch: int, half: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tile of u and tile of -u for each pair that exists along an axis, and the pair of each bin."""
    tile = tile_of_bin(size, patch)
    mirror = tile[-torch.arange(size) % size]
    kept = size // 2 + 1 if half else size
    pairs, bins = torch.unique(torch.stack([tile[:kept], mirror[:kept]]), dim=1, return_inverse=True)
    return pairs[0].to(device), pairs[1].to(device), bins.to(device)
