"""Frequency dual-component masking: high-frequency tiles set to zero, low frequencies perturbed (Frepa Eq. 1-3, 12).

How we read the paper. Tiles are laid from the centre of the centred spectrum: along each axis a coefficient of signed
frequency ``f`` belongs to tile ``k = floor(f / 16)``, whose nominal centre is ``16 (k + 1/2)``. So the centres lie at
8, 24, ... bins on both sides, and edge tiles of sizes that 16 does not divide are partial without moving their centre.
The tiles around the zero frequency can be masked like any other.

The paper takes the real part of an inverse transform of a plane that need not be Hermitian. For a real mask ``M`` and
a Hermitian ``F`` that equals the inverse real transform of ``(M(u) + M(-u)) / 2 * F`` on the half spectrum, and real
noise goes the same way. All of the code below works on the half spectrum.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from frepa.corruption.inputs import check_images
from frepa.corruption.spectrum import half_shape, low_pass, signed_frequencies, to_image, to_spectrum
from frepa.corruption.workers import for_each
from frepa.draws import Draws
from frepa.errors import InputError


def frequency_corrupt(
    x: Tensor,
    draws: Draws,
    *,
    patch: int = 16,
    cutoff: float = 0.2,
    sigma: float = 0.002,
    high_mask: bool = True,
    low_noise: bool = True,
) -> Tensor:
    """Mask high-frequency tiles, then perturb low frequencies. Frepa Eq. 1-3 (2D) and 12 (3D).

    A tile is set to zero with probability ``1 - exp(-d^2 / d_c^2)``, ``d_c = cutoff * min(S)`` bins; one mask per
    image, the same for its channels. Then real Gaussian noise of standard deviation ``sigma * max|F| * exp(-d^2 /
    d_c^2)``, exactly 0 at the zero frequency, is added to each channel's spectrum. The maximum is taken per image, over
    its channels, before masking.

    Args:
        x: images ``(B, C, *S)`` in [0, 1], finite.
        draws: one row per image.
        patch: side of a tile in bins.
        cutoff: cut-off distance ``d_c`` as a fraction of the shortest image axis.
        sigma: noise level as a fraction of the spectrum's largest magnitude.
        high_mask: do the masking.
        low_noise: do the perturbation.

    Returns:
        float32 ``(B, C, *S)``; not clipped, so values may leave [0, 1]. No gradient flows through it.

    Raises InputError for images that `check_images` refuses and for options out of range.
    """
    check_images(x)
    check_options(patch, cutoff, sigma)
    out = torch.empty(x.shape, device=x.device)

    def corrupt(rows: slice) -> None:
        own = draws.select(range(rows.start, rows.stop))
        out[rows] = corrupt_piece(
            x[rows], own, patch=patch, cutoff=cutoff, sigma=sigma, high_mask=high_mask, low_noise=low_noise
        )

    for_each(len(x), math.prod(x.shape[1:]), x.device, corrupt)
    return out


def check_options(patch: int, cutoff: float, sigma: float) -> None:
    """Raise InputError for options of `frequency_corrupt` that are out of range."""
    if patch < 1 or cutoff <= 0 or sigma < 0:
        raise InputError(
            f"frequency masking: found patch={patch}, cutoff={cutoff}, sigma={sigma}; "
            "expected a patch of at least 1, a cutoff above 0 and a sigma of at least 0."
        )


def corrupt_piece(
    x: Tensor, draws: Draws, *, patch: int, cutoff: float, sigma: float, high_mask: bool, low_noise: bool
) -> Tensor:
    """`frequency_corrupt` without its checks, for images that are worked on together."""
    shape = x.shape[2:]
    mask = tile_mask(shape, draws, patch=patch, cutoff=cutoff) if high_mask else None
    noise = low_frequency_noise(x.shape[1:], draws, cutoff=cutoff) if low_noise else None
    return to_image(corrupt_spectrum(to_spectrum(x), mask, noise, sigma), shape)


def corrupt_spectrum(spectrum: Tensor, mask: Tensor | None, noise: Tensor | None, sigma: float) -> Tensor:
    """``mask * F + sigma * max|F| * noise`` on the half spectrum. Changes ``spectrum`` and ``noise`` in place.

    Args:
        spectrum: complex64 ``(B, C, *half)``.
        mask: float32 ``(B, 1, *half)`` or None.
        noise: real float32 ``(B, C, *half)``, already attenuated, or None.
        sigma: noise level as a fraction of each image's largest magnitude.
    """
    real, imaginary = torch.view_as_real(spectrum).unbind(-1)
    if noise is not None:
        power = real.square().addcmul_(imaginary, imaginary)
        level = power.flatten(1).amax(1).sqrt_().mul_(sigma)
        noise.mul_(level.view(-1, *[1] * (noise.ndim - 1)))
    if mask is not None:
        spectrum.mul_(mask)
    if noise is not None:
        real.add_(noise)
    return spectrum


def to_half(plane: Tensor, dims: int) -> Tensor:
    """``(A(u) + A(-u)) / 2`` on the half spectrum ``(..., *half)`` of a real plane ``(..., *S)`` in transform order."""
    return hermitian_part(plane, range(-dims, 0))[..., : plane.shape[-1] // 2 + 1]


def hermitian_part(plane: Tensor, dims: Iterable[int]) -> Tensor:
    """``(A(u) + A(-u)) / 2`` of a real plane in transform order, ``u`` running over the axes ``dims``."""
    axes = tuple(dims)
    mirrored = plane.flip(axes).roll((1,) * len(axes), axes) if axes else plane
    return (plane + mirrored) / 2


def tile_probability(shape: Sequence[int], patch: int, cutoff: float) -> Tensor:
    """Masking probability of each tile, float32 ``(*tiles)``, zero frequency in the middle. Frepa Eq. 2, 12."""
    square = torch.zeros((), dtype=torch.float64)
    for size in shape:
        tiles = torch.arange(-(size // 2) // patch, (size - 1) // 2 // patch + 1)
        square = square[..., None] + (patch * (tiles + 0.5)) ** 2
    return -torch.expm1(-square / (cutoff * min(shape)) ** 2).float()


def tile_mask(shape: Sequence[int], draws: Draws, *, patch: int, cutoff: float) -> Tensor:
    """Half-spectrum mask ``(M(u) + M(-u)) / 2``, float32 ``(B, 1, *half)`` with values 0, 1/2 and 1."""
    probability = _probability(tuple(shape), patch, cutoff, draws.device)
    keep = (draws.uniform(probability.shape, "frequency_tiles") >= probability).float()
    return expand_tiles(keep, shape, patch)[:, None]


def expand_tiles(keep: Tensor, shape: Sequence[int], patch: int) -> Tensor:
    """Half-spectrum factor, float32 ``(B, *half)``, of one value per tile, ``keep (B, *tiles)``.

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


def low_frequency_noise(shape: Sequence[int], draws: Draws, *, cutoff: float) -> Tensor:
    """``N(0, 1) * exp(-d^2 / d_c^2)`` of a full real plane as a half-spectrum factor. Frepa Eq. 3.

    ``shape`` is ``(C, *S)``; gives float32 ``(B, C, *half)``, exactly 0 at the zero frequency. The Hermitian part of
    independent noise is independent noise of variance 1/2 wherever a coefficient and its mirror are not both in the
    half spectrum. Both are in the columns of zero and highest frequency of the last axis: those are made symmetric
    here, because the inverse real transform is not defined for others.
    """
    channels, *size = shape
    half = half_shape(size)
    noise = draws.normal((channels, *half), "frequency_noise")
    columns = [0, half[-1] - 1] if size[-1] % 2 == 0 else [0]
    symmetric = [hermitian_part(noise[..., column], range(2, noise.ndim - 1)) for column in columns]
    weight = low_pass(size, cutoff, draws.device)
    noise.mul_(_interior_weight(tuple(size), cutoff, draws.device))
    for column, values in zip(columns, symmetric):
        noise[..., column] = values * weight[..., column]
    noise.flatten(2)[..., 0] = 0  # the zero frequency
    return noise


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _probability(shape: tuple[int, ...], patch: int, cutoff: float, device: torch.device) -> Tensor:
    return tile_probability(shape, patch, cutoff).to(device)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _interior_weight(shape: tuple[int, ...], cutoff: float, device: torch.device) -> Tensor:
    return low_pass(shape, cutoff, device) / math.sqrt(2)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _tile_pairs(size: int, patch: int, half: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tile of u and tile of -u for each pair that exists along an axis, and the pair of each bin."""
    tile = signed_frequencies(size).div(patch, rounding_mode="floor") - (-(size // 2) // patch)
    mirror = tile[-torch.arange(size) % size]
    kept = size // 2 + 1 if half else size
    pairs, bins = torch.unique(torch.stack([tile[:kept], mirror[:kept]]), dim=1, return_inverse=True)
    return pairs[0].to(device), pairs[1].to(device), bins.to(device)
