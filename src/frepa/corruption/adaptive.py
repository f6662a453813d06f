"""A spectrum mask that looks at the image: tiles that hold more of its energy are masked more often.

A variant of this project's, off by default. Frepa Eq. 2 gives all tiles at one distance the same probability. Here it
is multiplied by the rank of the tile's energy among the tiles of its ring, so that at each distance the directions in
which this image has its structures go first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from frepa.corruption.tiles import tile_distance, tile_of_bin


def energy_rank(spectrum: Tensor, shape: Sequence[int], patch: int) -> Tensor:
    """Rank of each tile's energy within its ring, float32 ``(B, *tiles)`` in (0, 1].

    A ring holds the tiles whose nominal centres are as many whole patches away from the zero frequency. Of ``m`` tiles
    the strongest has rank 1, the weakest ``1 / m``. Energy is the mean of ``|F|^2`` over a tile's bins, so partial
    tiles compete fairly, summed over channels.

    Args:
        spectrum: half spectrum, complex64 ``(B, C, *half)``, of images of shape ``shape``.
        shape: ``S``.
        patch: side of a tile in bins.
    """
    energy = tile_energy(spectrum, shape, patch)
    ring, share = _rings(tuple(shape), patch, spectrum.device)
    # By ring, and by energy within a ring: two sorts, the second of which keeps the order of the first.
    by_energy = energy.flatten(1).argsort(1)
    order = by_energy.gather(1, ring[by_energy].argsort(dim=1, stable=True))
    rank = torch.empty_like(energy.flatten(1)).scatter_(1, order, share.expand(len(order), -1))
    return rank.view_as(energy)


def tile_energy(spectrum: Tensor, shape: Sequence[int], patch: int) -> Tensor:
    """Mean of ``|F|^2`` over each tile's bins of the full plane, summed over channels: float32 ``(B, *tiles)``."""
    real, imaginary = torch.view_as_real(spectrum).unbind(-1)
    own = real.square().addcmul_(imaginary, imaginary).sum(1)
    mirror, last = own, len(shape) - 1
    for axis, size in enumerate(shape):
        here, there = _averaging(size, patch, axis == last, spectrum.device)
        own, mirror = (
            torch.tensordot(power, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
            for power, weights in ((own, here), (mirror, there))
        )
    return own + mirror


# Tables, one per shape and device, shared: never changed in place.


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _averaging(size: int, patch: int, half: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights ``(tiles, bins)`` that average an axis over tiles: from a bin's own place, and from its mirror's.

    Along the last axis, of which the half is kept, each bin is counted at its own frequency by the first and at the
    negative of it by the second, but for those that are their own mirror. Along the others the second reads the bins
    mirrored, and both count every bin.
    """
    tile = tile_of_bin(size, patch)
    member = torch.nn.functional.one_hot(tile).T.float()
    mirrored = member[:, -torch.arange(size) % size]
    if half:
        kept = size // 2 + 1
        own_mirror = 2 * torch.arange(kept) % size == 0
        here, there = member[:, :kept], mirrored[:, :kept].masked_fill(own_mirror, 0)
    else:
        here, there = member, mirrored
    bins = member.sum(1, keepdim=True)
    return (here / bins).to(device), (there / bins).to(device)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _rings(shape: tuple[int, ...], patch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ring of each tile, int64 ``(tiles)``, and, for tiles sorted by ring and then energy, the rank of each place."""
    ring = (tile_distance(shape, patch) / patch).floor().long().flatten()
    number, counts = ring.sort().values, torch.bincount(ring)
    first = counts.cumsum(0) - counts
    rank = (torch.arange(len(ring)) - first[number] + 1) / counts[number]
    return ring.to(device), rank.float().to(device)
