"""The half spectrum of real images and the exponential filters on it, for any number of image axes.

`rfftn` keeps the non-negative frequencies of the last axis, half of the plane; the other half is its mirror image.
Everything runs in float32 with autocast switched off: half-precision transforms exist for few sizes only.
Call these functions outside compiled regions, which cannot hold complex numbers.

The cut-off distance is written as a fraction of the shortest image axis everywhere: ``d_c = cutoff * min(S)`` bins.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def half_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the half spectrum of images of shape ``S``: ``(*S[:-1], S[-1] // 2 + 1)``."""
    return (*shape[:-1], shape[-1] // 2 + 1)


def signed_frequencies(size: int) -> Tensor:
    """Signed frequency of each bin along an axis of ``size``, in transform order: 0, 1, ..., -2, -1 (int64, CPU)."""
    index = torch.arange(size)
    return torch.where(index < (size + 1) // 2, index, index - size)


def to_spectrum(x: Tensor) -> Tensor:
    """Half spectrum, complex64 ``(B, C, *half)``, of images ``(B, C, *S)`` of any floating dtype. Differentiable."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.fft.rfftn(x.float(), dim=tuple(range(2, x.ndim)))


def to_image(spectrum: Tensor, shape: Sequence[int]) -> Tensor:
    """Images, float32 ``(B, C, *S)``, of a half spectrum; ``shape`` is ``S``. Differentiable.

    The zero and highest frequencies of the last axis must be Hermitian, as the spectrum of a real image is.
    """
    with torch.autocast(spectrum.device.type, enabled=False):
        return torch.fft.irfftn(spectrum, s=tuple(shape), dim=tuple(range(2, spectrum.ndim)))


def apply_transfer(x: Tensor, transfer: Tensor) -> Tensor:
    """Filter images in the frequency domain.

    Args:
        x: images ``(B, C, *S)``, any floating dtype.
        transfer: real factors ``(*half)`` (or any shape that broadcasts against ``(B, C, *half)``), symmetric as those
            of `low_pass` and `high_pass` are.

    Returns:
        float32 ``(B, C, *S)``. Differentiable in ``x``.
    """
    return to_image(to_spectrum(x) * transfer, x.shape[2:])


def frequency_distance(shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Euclidean distance of each coefficient from the zero-frequency bin, in bins: float32 ``(*half)``. Frepa Eq. 1."""
    return _distance(tuple(shape), torch.device(device or "cpu"))


def low_pass(shape: Sequence[int], cutoff: float, device: torch.device | str | None = None) -> Tensor:
    """Exponential low-pass ``exp(-d^2 / d_c^2)``, ``d_c = cutoff * min(S)``: float32 ``(*half)`` in [0, 1]."""
    return _low_pass(tuple(shape), float(cutoff), torch.device(device or "cpu"))


def high_pass(shape: Sequence[int], cutoff: float, device: torch.device | str | None = None) -> Tensor:
    """Exponential high-pass ``1 - exp(-d^2 / d_c^2)``: float32 ``(*half)`` in [0, 1], 0 at d = 0. Frepa Eq. 9."""
    return _high_pass(tuple(shape), float(cutoff), torch.device(device or "cpu"))


# The caches hand out shared tensors: never change one in place. They are made outside inference mode, because a tensor
# made inside it could not enter a later backward pass.


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _distance(shape: tuple[int, ...], device: torch.device) -> Tensor:
    square = torch.zeros((), dtype=torch.float64)
    for axis, size in enumerate(shape):
        frequency = signed_frequencies(size)[: size // 2 + 1 if axis == len(shape) - 1 else size].double()
        square = square[..., None] + frequency**2
    return square.sqrt().float().to(device)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _low_pass(shape: tuple[int, ...], cutoff: float, device: torch.device) -> Tensor:
    return torch.exp(-(_distance(shape, device).double() ** 2) / (cutoff * min(shape)) ** 2).float()


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _high_pass(shape: tuple[int, ...], cutoff: float, device: torch.device) -> Tensor:
    return -torch.expm1(-(_distance(shape, device).double() ** 2) / (cutoff * min(shape)) ** 2).float()
