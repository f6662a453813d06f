"""Dual corruption: each image of each view gets one of the two strategies at random (Frepa section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from frepa.corruption import frequency, histogram
from frepa.corruption.inputs import check_images
from frepa.corruption.workers import for_each
from frepa.draws import Draws
from frepa.errors import InputError

_Strategy = Callable[[Tensor, Draws], tuple[Tensor, Tensor]]


class Corrupted(NamedTuple):
    """Corrupted images of one view.

    image: float32 ``(B, C, *S)``, not clipped.
    mask: float32 ``(B, 1, *S)``, 1 where the RMSE counts (Frepa Eq. 7): the masked pixels of rows masked in the image,
        everywhere in rows corrupted in the frequency domain.
    is_frequency: bool ``(B,)`` on the images' device, True for the rows corrupted in the frequency domain.
    """

    image: Tensor
    mask: Tensor
    is_frequency: Tensor


@dataclass(frozen=True)
class Corruption:
    """Both strategies with their options; call it on a batch. Defaults are the paper's (Frepa Eq. 1-4, 12, 13).

    Args:
        frequency_probability: chance of an image to be corrupted in the frequency domain rather than in the image.
        frequency_patch: side of a spectrum tile in bins.
        cutoff: cut-off distance as a fraction of the shortest image axis.
        sigma: spectrum noise as a fraction of the spectrum's largest magnitude.
        high_mask: mask high-frequency tiles (False: the ablation without it).
        low_noise: perturb low frequencies (False: the ablation without it).
        patch: side of an image patch in pixels; 32 in 2D and 16 in 3D when not given.
        mask_ratio: probability of an image patch to be masked.
        exact: mask exactly that share of the patches of every image.
        noise: what fills a masked patch: ``"gaussian"``, ``"permute"`` or ``"zero"``.

    Raises InputError for options that are unknown or out of range.
    """

    frequency_probability: float = 0.5
    frequency_patch: int = 16
    cutoff: float = 0.2
    sigma: float = 0.002
    high_mask: bool = True
    low_noise: bool = True
    patch: int | None = None
    mask_ratio: float = 0.7
    exact: bool = False
    noise: str = "gaussian"

    def in_frequency(self, draws: Draws) -> list[bool]:
        """Which rows are corrupted in the frequency domain; the others are in the image."""
        return [value < self.frequency_probability for value in draws.host_uniform("strategy")]

    def __post_init__(self) -> None:
        frequency.check_options(self.frequency_patch, self.cutoff, self.sigma)
        histogram.check_options(self.patch, self.mask_ratio, self.noise)
        if not 0 <= self.frequency_probability <= 1:
            raise InputError(f"frequency_probability={self.frequency_probability}: expected a number from 0 to 1.")

    def __call__(self, x: Tensor, draws: Draws) -> Corrupted:
        """Corrupt images ``(B, C, *S)`` in [0, 1], finite; ``draws`` has one row per image.

        The choice is known on the host, so each strategy is computed for its own rows only and nothing waits for the
        device. No gradient flows through it.
        """
        check_images(x)
        in_frequency = [value < self.frequency_probability for value in draws.host_uniform("strategy")]
        image = torch.empty(x.shape, device=x.device)
        mask = torch.empty(len(x), 1, *x.shape[2:], device=x.device)
        for chosen, corrupt in ((True, self._in_frequency), (False, self._in_image)):
            rows = [row for row, value in enumerate(in_frequency) if value is chosen]
            index, own = _to_device(rows, torch.long, x.device), draws.select(rows)

            def work(piece: slice, index: Tensor = index, own: Draws = own, corrupt: _Strategy = corrupt) -> None:
                where = index[piece]
                result, counted = corrupt(x.index_select(0, where), own.select(range(piece.start, piece.stop)))
                image.index_copy_(0, where, result)
                mask.index_copy_(0, where, counted)

            for_each(len(rows), math.prod(x.shape[1:]), x.device, work)
        return Corrupted(image, mask, _to_device(in_frequency, torch.bool, x.device))

    def _in_frequency(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        image = frequency.corrupt_piece(
            x,
            draws,
            patch=self.frequency_patch,
            cutoff=self.cutoff,
            sigma=self.sigma,
            high_mask=self.high_mask,
            low_noise=self.low_noise,
        )
        return image, image.new_ones(len(x), 1, *x.shape[2:])

    def _in_image(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        return histogram.mask_piece(
            x, draws, patch=self.patch, mask_ratio=self.mask_ratio, exact=self.exact, noise=self.noise
        )


def _to_device(values: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small host list on the device, without waiting for the device."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
