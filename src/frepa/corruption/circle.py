"""Masked frequency modelling's corruption: of each image's spectrum a centred disc is kept, or all but that disc.

The method is MFM (masked frequency modeling, ICLR 2023), one of those Frepa is compared with: the encoder sees the kept
part as an image, and the loss looks at the removed frequencies only. Its radius of 16 bins is for 224 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from frepa.corruption.inputs import check_images
from frepa.corruption.spectrum import apply_transfer, frequency_distance
from frepa.corruption.workers import for_each
from frepa.draws import Draws
from frepa.errors import InputError

# The published radius, and the image side it is for.
_RADIUS, _SIZE = 16, 224


class Circled(NamedTuple):
    """Images of which a part of the spectrum is left.

    image: float32 ``(B, C, *S)``, not clipped; where the disc is removed the mean of every channel is 0.
    removed: bool ``(B, 1, *half)`` on the half spectrum, True for the coefficients set to zero.
    is_low: bool ``(B,)`` on the images' device, True for the rows of which the disc, the low frequencies, is kept.
    """

    image: Tensor
    removed: Tensor
    is_low: Tensor


def circle_mask(
    x: Tensor, draws: Draws, *, radius: float | Literal["auto"] = "auto", low_probability: float = 0.5
) -> Circled:
    """Keep the coefficients nearer to the zero frequency than ``radius``, or the others, per image at random.

    Args:
        x: images ``(B, C, *S)`` in [0, 1], finite; 2D and 3D.
        draws: one row per image.
        radius: of the disc (the ball in 3D), in bins, above 0; "auto" by size (`circle_radius`).
        low_probability: chance of an image to keep its low frequencies.

    No gradient flows through it. Raises InputError for images that `check_images` refuses and for options out of range.
    """
    check_images(x)
    check_options(radius, low_probability)
    shape = tuple(x.shape[2:])
    inner = frequency_distance(shape, x.device) < circle_radius(shape, radius)
    low = torch.tensor([value < low_probability for value in draws.host_uniform("circle")])
    is_low = low.to(x.device, non_blocking=True)
    removed = inner[None, None] ^ is_low.view(-1, *[1] * (x.ndim - 1))
    image = torch.empty(x.shape, device=x.device)

    def work(rows: slice) -> None:
        image[rows] = apply_transfer(x[rows], (~removed[rows]).float())

    for_each(len(x), math.prod(x.shape[1:]), x.device, work)
    return Circled(image, removed, is_low)


def circle_radius(shape: Sequence[int], radius: float | Literal["auto"] = "auto") -> float:
    """Radius in bins for images of shape ``S``: a number as it is; "auto" is 16 bins of 224 of the shortest axis."""
    return _RADIUS * min(shape) / _SIZE if radius == "auto" else radius


def check_options(radius: float | Literal["auto"], low_probability: float) -> None:
    """Raise InputError for options of `circle_mask` that are out of range."""
    if radius != "auto" and (not isinstance(radius, int | float) or not 0 < radius < math.inf):
        raise InputError(f'radius={radius}: expected "auto" or a number of bins above 0.')
    if not 0 <= low_probability <= 1:
        raise InputError(f"low_probability={low_probability}: expected a number from 0 to 1.")
