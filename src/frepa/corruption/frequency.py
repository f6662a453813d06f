"""Frequency dual-component masking: high-frequency tiles set to zero, low frequencies perturbed (Frepa Eq. 1-3, 12).

How we read the paper. Tiles are laid from the centre of the centred spectrum: along each axis a coefficient of signed
frequency ``f`` belongs to tile ``k = floor(f / patch)``, whose nominal centre is ``patch (k + 1/2)``. At the paper's 16
bins the centres lie at 8, 24, ... bins on both sides; edge tiles of sizes that the patch does not divide are partial
without moving their centre. The 2^n tiles that touch the zero frequency hold the image's mean and are never masked
unless asked for.

The paper takes the real part of an inverse transform of a plane that need not be Hermitian. For a real mask ``M`` and
a Hermitian ``F`` that equals the inverse real transform of ``(M(u) + M(-u)) / 2 * F`` on the half spectrum, and noise
goes the same way. All of the code below works on the half spectrum.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from frepa.corruption import sizes
from frepa.corruption.adaptive import energy_rank
from frepa.corruption.inputs import check_images
from frepa.corruption.sizes import Side
from frepa.corruption.spectrum import half_shape, low_pass, to_image, to_spectrum
from frepa.corruption.tiles import expand_tiles, tile_probability
from frepa.corruption.workers import for_each
from frepa.draws import Draws
from frepa.errors import InputError, nearest

PERTURBATIONS = ("real", "complex")


def frequency_corrupt(
    x: Tensor,
    draws: Draws,
    *,
    patch: Side = "auto",
    cutoff: float = 0.2,
    sigma: float = 0.002,
    scale_sigma: bool = True,
    high_mask: bool = True,
    low_noise: bool = True,
    mask_centre: bool = False,
    perturbation: str = "real",
    adaptive: bool = False,
) -> Tensor:
    """Mask high-frequency tiles, then perturb low frequencies. Frepa Eq. 1-3 (2D) and 12 (3D).

    A tile is set to zero with probability ``1 - exp(-d^2 / d_c^2)``, ``d_c = cutoff * min(S)`` bins; one mask per
    image, the same for its channels. Then Gaussian noise of standard deviation ``sigma * max|F| * exp(-d^2 / d_c^2)``,
    exactly 0 at the zero frequency, is added to each channel's spectrum. The maximum is taken per image, over its
    channels, before masking. With the defaults the mean of every channel is kept.

    Args:
        x: images ``(B, C, *S)`` in [0, 1], finite.
        draws: one row per image.
        patch: side of a tile in bins, or "auto" by size (`sizes.spectrum_side`).
        cutoff: cut-off distance ``d_c`` as a fraction of the shortest image axis.
        sigma: noise level as a fraction of the spectrum's largest magnitude, at 512 x 512 or 128^3.
        scale_sigma: multiply sigma by `sizes.noise_scale`, so that images of any size change as much.
        high_mask: do the masking.
        low_noise: do the perturbation.
        mask_centre: the tiles that touch the zero frequency can be masked like any other.
        perturbation: ``"real"`` noise on the spectrum, which is point-symmetric in the image, or ``"complex"``: real
            and imaginary parts independent, the same variance in all.
        adaptive: multiply a tile's probability by its energy's rank (`adaptive.energy_rank`) in the image at hand.

    Returns:
        float32 ``(B, C, *S)``; not clipped, so values may leave [0, 1]. No gradient flows through it.

    Raises InputError for images that `check_images` refuses, for options out of range, and for a patch so large that
    the image has no tile to mask.
    """
    check_images(x)
    check_options(patch, cutoff, sigma, perturbation)
    if high_mask and not mask_centre:
        sizes.check_spectrum_room(x.shape[2:], patch)
    out = torch.empty(x.shape, device=x.device)

    def corrupt(rows: slice) -> None:
        out[rows] = corrupt_piece(
            x[rows],
            draws.select(range(rows.start, rows.stop)),
            patch=patch,
            cutoff=cutoff,
            sigma=sigma,
            scale_sigma=scale_sigma,
            high_mask=high_mask,
            low_noise=low_noise,
            mask_centre=mask_centre,
            perturbation=perturbation,
            adaptive=adaptive,
        )

    for_each(len(x), math.prod(x.shape[1:]), x.device, corrupt)
    return out


def check_options(patch: Side, cutoff: float, sigma: float, perturbation: str = "real") -> None:
    """Raise InputError for options of `frequency_corrupt` that are out of range."""
    sizes.check_side("patch=", patch)
    if not 0 < cutoff < math.inf or not 0 <= sigma < math.inf:
        raise InputError(
            f"frequency masking: found cutoff={cutoff}, sigma={sigma}; "
            "expected a cutoff above 0 and a sigma of at least 0."
        )
    if perturbation not in PERTURBATIONS:
        raise InputError(f"perturbation={perturbation!r} is not known. {nearest(perturbation, PERTURBATIONS)}")


def corrupt_piece(
    x: Tensor,
    draws: Draws,
    *,
    patch: Side,
    cutoff: float,
    sigma: float,
    scale_sigma: bool,
    high_mask: bool,
    low_noise: bool,
    mask_centre: bool,
    perturbation: str,
    adaptive: bool,
) -> Tensor:
    """`frequency_corrupt` without its checks, for images that are worked on together."""
    shape = tuple(x.shape[2:])
    noise = low_frequency_noise(x.shape[1:], draws, cutoff=cutoff, kind=perturbation) if low_noise else None
    spectrum, mask = to_spectrum(x), None
    if high_mask:
        side = sizes.spectrum_side(shape, patch)
        rank = energy_rank(spectrum, shape, side) if adaptive else None
        mask = tile_mask(shape, draws, patch=side, cutoff=cutoff, mask_centre=mask_centre, factor=rank)
    level = sigma * sizes.noise_scale(shape) if scale_sigma else sigma
    return to_image(corrupt_spectrum(spectrum, mask, noise, level), shape)


def corrupt_spectrum(spectrum: Tensor, mask: Tensor | None, noise: Tensor | None, sigma: float) -> Tensor:
    """``mask * F + sigma * max|F| * noise`` on the half spectrum. Changes ``spectrum`` and ``noise`` in place.

    Args:
        spectrum: complex64 ``(B, C, *half)``.
        mask: float32 ``(B, 1, *half)`` or None.
        noise: float32 or complex64 ``(B, C, *half)``, already attenuated, or None.
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
        (spectrum if noise.is_complex() else real).add_(noise)
    return spectrum


def hermitian_part(plane: Tensor, dims: Iterable[int]) -> Tensor:
    """``(A(u) + conj A(-u)) / 2`` of a plane in transform order, ``u`` running over the axes ``dims``."""
    axes = tuple(dims)
    mirrored = plane.flip(axes).roll((1,) * len(axes), axes) if axes else plane
    return (plane + mirrored.conj()) / 2


def tile_mask(
    shape: Sequence[int],
    draws: Draws,
    *,
    patch: int,
    cutoff: float,
    mask_centre: bool = False,
    factor: Tensor | None = None,
) -> Tensor:
    """Half-spectrum mask ``(M(u) + M(-u)) / 2``, float32 ``(B, 1, *half)`` with values 0, 1/2 and 1.

    ``factor``, float32 ``(B, *tiles)`` in [0, 1], multiplies the probabilities of Eq. 2.
    """
    probability = _probability(tuple(shape), patch, cutoff, mask_centre, draws.device)
    score = draws.uniform(probability.shape, "frequency_tiles")
    keep = (score >= (probability if factor is None else probability * factor)).float()
    return expand_tiles(keep, shape, patch)[:, None]


def low_frequency_noise(shape: Sequence[int], draws: Draws, *, cutoff: float, kind: str = "real") -> Tensor:
    """``N(0, 1) * exp(-d^2 / d_c^2)`` of a full plane as a half-spectrum term. Frepa Eq. 3.

    ``shape`` is ``(C, *S)``; gives ``(B, C, *half)``, float32 or, with ``kind="complex"``, complex64, exactly 0 at the
    zero frequency. The Hermitian part of independent noise is independent noise of half its variance wherever a
    coefficient and its mirror are not both in the half spectrum. Both are in the columns of zero and highest frequency
    of the last axis: those are made symmetric here, because the inverse real transform is not defined for others.
    """
    channels, *size = shape
    half = half_shape(size)
    if kind == "complex":
        parts = draws.normal((channels, *half, 2), "frequency_noise")
        noise = torch.view_as_complex(parts).div_(math.sqrt(2))  # variance 1 in all
    else:
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
def _probability(shape: tuple[int, ...], patch: int, cutoff: float, mask_centre: bool, device: torch.device) -> Tensor:
    return tile_probability(shape, patch, cutoff, mask_centre=mask_centre).to(device)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _interior_weight(shape: tuple[int, ...], cutoff: float, device: torch.device) -> Tensor:
    return low_pass(shape, cutoff, device) / math.sqrt(2)
