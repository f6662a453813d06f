"""What every reader does alike once it has pixels: refuse what cannot be used, and agree on (C, *S)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frepa.errors import InputError
from frepa.images.scan import UnreadableScan

#: Positions (pixels or voxels) above which a file is refused before memory is asked for: 16384 x 16384 in 2D,
#: 1024 slices of 1024 x 1024 in 3D. Raised or lowered with ``open_source(..., max_pixels=...)``.
MAX_PIXELS = {2: 2**28, 3: 2**30}
#: Shares of red, green and blue in luminance: Rec. 709, the primaries of sRGB, as in `skimage.color.rgb2gray`.
LUMINANCE = (0.2125, 0.7154, 0.0721)
_ROWS = 64


def check_extent(option: str, side: int | None, dims: int) -> None:
    """Raise InputError where an option asks for images with more positions than a file may have."""
    most = round(MAX_PIXELS[dims] ** (1 / dims))
    if side is not None and not 1 <= side <= most:
        raise InputError(f"--{option.replace('_', '-')} {side}: expected a number from 1 to {most}.")


def check_size(path: Path, size: Sequence[int], max_pixels: int) -> None:
    """Refuse an empty image, and one whose header claims more positions than ``max_pixels``."""
    shown = " x ".join(str(n) for n in size)
    if min(size) < 1:
        raise UnreadableScan(str(path), f"the header says {shown} pixels, so there is nothing to read", kind="empty")
    if math.prod(int(n) for n in size) > max_pixels:
        raise UnreadableScan(
            str(path),
            f"the header says {shown} pixels, more than the limit of {max_pixels:,}; "
            "raise max_pixels if the file is genuine",
            kind="too large",
        )


def checked(path: Path, array: np.ndarray) -> np.ndarray:
    """``array`` as it is, or as float32/uint8 where its type is unusual. Refuses NaN, infinity and complex values."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise UnreadableScan(str(path), f"holds values of type {array.dtype}, expected integers or real numbers")
    if array.dtype.kind == "f":
        # min and max propagate NaN: two passes without a temporary of the image's size
        low, high = array.min(), array.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            bad = int(array.size - np.isfinite(array).sum())
            raise UnreadableScan(str(path), f"{bad} of {array.size} values are NaN or infinite", kind="nan")
        if array.dtype != np.float32:
            if max(abs(float(low)), abs(float(high))) > float(np.finfo(np.float32).max):
                raise UnreadableScan(str(path), "holds values beyond the range of 32-bit floats")
            array = array.astype(np.float32)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def drop_alpha(array: np.ndarray) -> np.ndarray:
    """``(H, W, 2 | 4)`` with a last alpha channel to ``(H, W, 1 | 3)``, laid over black.

    Black is what padding is filled with, so a transparent border becomes a border of no signal. An opaque alpha
    channel, by far the usual case, changes nothing.
    """
    colour, alpha = array[..., :-1], array[..., -1:]
    full = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    if alpha.min() == full:
        return colour
    laid = np.empty(colour.shape, array.dtype)
    for first in range(0, len(array), _ROWS):  # the products in float32 need not all be there at once
        part = slice(first, first + _ROWS)
        product = colour[part] * (alpha[part].astype(np.float32) / np.float32(full))
        laid[part] = product if array.dtype.kind == "f" else np.rint(product)
    return laid


def channels_first(array: np.ndarray) -> np.ndarray:
    """``(*S, C)`` to contiguous ``(C, *S)``; three equal channels become one, since a grey image is stored once."""
    if array.shape[-1] == 3 and _is_grey(array):
        array = array[..., :1]
    if array.shape[-1] == 1:
        return np.ascontiguousarray(array[None, ..., 0])
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _is_grey(array: np.ndarray) -> bool:
    # A coarse grid of pixels settles nearly every colour image without a full pass
    for part in (array[(slice(None, None, 16),) * (array.ndim - 1)], array):
        if (part[..., 0] != part[..., 1]).any() or (part[..., 0] != part[..., 2]).any():
            return False
    return True


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF/TIFF orientation tag (1 to 8) to ``(H, W, ...)``; any other value leaves the array alone."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def luminance(array: np.ndarray) -> np.ndarray:
    """``(3, *S)`` to ``(1, *S)``, float32, by `LUMINANCE`; one channel is returned as it is."""
    if array.shape[0] == 1:
        return array
    return np.tensordot(np.array(LUMINANCE, np.float32), array.astype(np.float32), axes=1)[None]
