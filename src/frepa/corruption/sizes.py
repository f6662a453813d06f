"""What the paper's numbers of bins and pixels become at other sizes, and which numbers an image has room for.

The paper gives a spectrum patch of 16 bins, image patches of 32 pixels (16 voxels in 3D) and a noise of 0.002 of the
spectrum's maximum for images of 512 x 512 and crops of 128^3. Taken literally they mean something else at every other
size: at 64 pixels a patch of 16 bins is a quarter of the spectrum, and the noise is an eighth as strong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from frepa.errors import InputError, nearest

# The sides at which the paper's numbers hold, by the number of image axes.
REFERENCE_SIZE = {2: 512, 3: 128}
# Side of an image patch, in pixels, at the reference size (Frepa Eq. 4, 13).
REFERENCE_PATCH = {2: 32, 3: 16}
# Spectrum patches per side of the spectrum: 16 bins of 512 (Frepa Eq. 2).
_SPECTRUM_PATCHES = 32
# No patch of a size chosen here is smaller.
_LEAST_SIDE = 2
# How images came to their size, and what that is where it is not said.
FITS = ("resize", "crop")
DEFAULT_FIT = {2: "resize", 3: "crop"}

Side = int | Literal["auto"]


def mean_side(shape: Sequence[int]) -> float:
    """Geometric mean of the sides of an image of shape ``S``, in pixels."""
    return math.prod(shape) ** (1 / len(shape))


def spectrum_side(shape: Sequence[int], side: Side = "auto") -> int:
    """Side, in bins, of a patch of the spectrum of images of shape ``S``.

    "auto" is a 32nd of the shortest axis, at least 2, in 2D and in 3D: the paper's 16 at 512 pixels, 4 at 128, 2 at 64.
    Like the cut-off distance it goes with the shortest axis, so the probabilities of Frepa Eq. 2 fall on the same
    relative frequencies at every size.
    """
    return max(_LEAST_SIDE, round(min(shape) / _SPECTRUM_PATCHES)) if side == "auto" else side


def image_side(shape: Sequence[int], side: Side | None = "auto", fit: str | None = None) -> int:
    """Side, in pixels, of an image patch of images of shape ``S``.

    Args:
        shape: ``S``; its geometric mean side N counts.
        side: a number, which is returned, or "auto" (None is the same).
        fit: how the images came to their size. ``"resize"``: structures became smaller with the image, so patches do:
            32 N / 512 in 2D, 16 N / 128 in 3D. ``"crop"``: structures have their own size, so patches keep the paper's
            32 (16), but take no more than N / 4. None is ``"resize"`` in 2D and ``"crop"`` in 3D. At least 2 always.
    """
    if side is not None and side != "auto":
        return side
    dims, size = len(shape), mean_side(shape)
    patch, reference = REFERENCE_PATCH[dims], REFERENCE_SIZE[dims]
    wanted = patch * size / reference if (fit or DEFAULT_FIT[dims]) == "resize" else min(patch, size / 4)
    return max(_LEAST_SIDE, round(wanted))


def noise_scale(shape: Sequence[int]) -> float:
    """What sigma of Frepa Eq. 3 is multiplied by, so that it changes an image of any size as much as at the reference.

    ``(N0 / N)^(n / 2)`` with N the geometric mean side, n the number of axes, and N0 512 in 2D and 128 in 3D: the
    number of perturbed coefficients grows as N^n, and all of them are measured against the largest one.
    """
    dims = len(shape)
    return (REFERENCE_SIZE[dims] / mean_side(shape)) ** (dims / 2)


def check_side(name: str, side: Side | None) -> None:
    """Raise InputError unless ``side`` is "auto", None or a whole number from 1 on; ``name`` ends in a blank or =."""
    if side is None or side == "auto":
        return
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise InputError(f'{name}{side}: expected "auto" or a whole number of at least 1.')


def check_fit(fit: str | None) -> None:
    """Raise InputError unless ``fit`` is known or None."""
    if fit is not None and fit not in FITS:
        raise InputError(f"fit={fit!r} is not known. {nearest(fit, FITS)}")


def check_spectrum_room(shape: Sequence[int], side: Side) -> None:
    """Raise InputError when an asked-for spectrum patch leaves none to mask: those at the zero frequency fill it all.

    Sizes chosen by "auto" are not refused: images below 6 pixels a side have nothing to mask, and stay unmasked.
    """
    if side != "auto" and all(side >= size // 2 for size in shape) and max(shape) > 1:
        room = max(max(shape) // 2 - 1, 0)
        raise InputError(
            f"spectrum patch of {side} bins: images of {_by(shape)} leave room for at most {room}, because the patches "
            'at the zero frequency are never masked. Use "auto", a smaller patch, or mask the centre as well.'
        )


def check_image_room(shape: Sequence[int], side: Side | None, name: str = "image patch") -> None:
    """Raise InputError when an asked-for image patch is larger than the whole image."""
    if side is not None and side != "auto" and side > max(shape):
        raise InputError(
            f'{name} of {side} pixels: the images are smaller, {_by(shape)}. Use "auto" or a patch of at most '
            f"{max(shape)}; a quarter of the side or less leaves a choice."
        )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)
