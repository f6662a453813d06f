"""Dual corruption: each image of each view gets one of the two strategies at random (Frepa section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from frepa.corruption import frequency, histogram, sizes
from frepa.corruption.inputs import check_fov, check_images
from frepa.corruption.sizes import Side
from frepa.corruption.workers import for_each
from frepa.draws import Draws
from frepa.errors import InputError

_Strategy = Callable[[Tensor, Draws, Tensor | None], tuple[Tensor, Tensor]]


class Corrupted(NamedTuple):
    """Corrupted images of one view.

    image: float32 ``(B, C, *S)``, not clipped.
    mask: float32 ``(B, 1, *S)``, 1 where the RMSE counts (Frepa Eq. 7): the masked pixels of rows masked in the image,
        everywhere in rows corrupted in the frequency domain. 0 outside a field of view that was given.
    is_frequency: bool ``(B,)`` on the images' device, True for the rows corrupted in the frequency domain.
    """

    image: Tensor
    mask: Tensor
    is_frequency: Tensor


@dataclass(frozen=True)
class Corruption:
    """Both strategies with their options; call it on a batch. Defaults are the paper's (Frepa Eq. 1-4, 12, 13).

    What the paper gives for one size holds at every size with the defaults: patches are "auto", and the noise is scaled
    (see `frepa.corruption.sizes`).

    Args:
        frequency_probability: chance, 0 to 1, of an image to be corrupted in the frequency domain rather than in the
            image. The paper: equal chances (section 3.2).
        frequency_patch: side of a spectrum patch in bins, 1 or more. "auto" is a 32nd of the shortest side, at least 2:
            the paper's 16 at 512 pixels (Eq. 2).
        cutoff: cut-off distance of masking and perturbation, above 0, as a fraction of the shortest image side. The
            paper: 0.2 (Eq. 2).
        sigma: spectrum noise, 0 or more, as a fraction of the spectrum's largest magnitude. The paper: 0.002 (Eq. 3).
        scale_sigma: scale the noise with the image's size and number of axes, so that it changes every image as much as
            it does at 512 x 512 or 128^3. False takes ``sigma`` as it is, as the paper does.
        high_mask: mask high-frequency patches (False: Table 9 without it).
        low_noise: perturb low frequencies (False: Table 9 without it).
        mask_centre: the spectrum patches that touch the zero frequency can be masked as well, and with them the image's
            mean. False keeps the mean; Eq. 2 taken literally is True.
        perturbation: ``"real"`` noise on the spectrum (Eq. 3), which makes the perturbation point-symmetric in the
            image, or ``"complex"`` noise of the same variance, which does not.
        adaptive: multiply each spectrum patch's probability by the rank, in (0, 1], of its energy among the patches at
            its distance in the image at hand. Not in the paper.
        patch: side of an image patch in pixels, 1 or more. "auto" goes by size and ``fit``: the paper's 32 at 512
            pixels in 2D, 16 at 128 in 3D (Eq. 4, 13).
        fit: how the images came to their size, ``"resize"`` or ``"crop"``, which decides what "auto" makes of
            ``patch``: image patches of resized images shrink with them; those of crops at native resolution do so only
            below a quarter of the side. None is ``"resize"`` in 2D and ``"crop"`` in 3D.
        mask_ratio: probability, 0 to 1, of an image patch to be masked. The paper: 0.7 (Eq. 4).
        exact: mask exactly that share of the image patches of every image.
        noise: what fills a masked image patch: ``"gaussian"`` of its mean and variance (the paper's, Eq. 4),
            ``"permute"``, its own pixels shuffled, or ``"zero"`` (Table 9 without histogram-equalized masking).

    Raises InputError for options that are unknown or out of range.
    """

    frequency_probability: float = 0.5
    frequency_patch: Side = "auto"
    cutoff: float = 0.2
    sigma: float = 0.002
    scale_sigma: bool = True
    high_mask: bool = True
    low_noise: bool = True
    mask_centre: bool = False
    perturbation: Literal["real", "complex"] = "real"
    adaptive: bool = False
    patch: Side | None = "auto"
    fit: Literal["resize", "crop"] | None = None
    mask_ratio: float = 0.7
    exact: bool = False
    noise: Literal["gaussian", "permute", "zero"] = "gaussian"

    def __post_init__(self) -> None:
        sizes.check_side("frequency_patch=", self.frequency_patch)
        frequency.check_options(self.frequency_patch, self.cutoff, self.sigma, self.perturbation)
        histogram.check_options(self.patch, self.mask_ratio, self.noise, self.fit)
        if not 0 <= self.frequency_probability <= 1:
            raise InputError(f"frequency_probability={self.frequency_probability}: expected a number from 0 to 1.")

    def in_frequency(self, draws: Draws) -> list[bool]:
        """Which rows are corrupted in the frequency domain; the others are in the image."""
        return [value < self.frequency_probability for value in draws.host_uniform("strategy")]

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise InputError when a patch that was asked for does not fit images of shape ``S``."""
        if self.frequency_probability > 0 and self.high_mask and not self.mask_centre:
            sizes.check_spectrum_room(shape, self.frequency_patch)
        if self.frequency_probability < 1:
            sizes.check_image_room(shape, self.patch)

    def __call__(self, x: Tensor, draws: Draws, fov: Tensor | None = None) -> Corrupted:
        """Corrupt images ``(B, C, *S)`` in [0, 1], finite; ``draws`` has one row per image.

        ``fov`` is the images' field of view where it is known, bool ``(B, 1, *S)``, True inside: outside it images
        stay as they are and the mask is 0, and its edge does not enter the histogram of a patch.

        The choice is known on the host, so each strategy is computed for its own rows only and nothing waits for the
        device. No gradient flows through it.
        """
        check_images(x)
        check_fov(fov, x)
        self.check_size(x.shape[2:])
        in_frequency = self.in_frequency(draws)
        image = torch.empty(x.shape, device=x.device)
        mask = torch.empty(len(x), 1, *x.shape[2:], device=x.device)
        for chosen, corrupt in ((True, self._in_frequency), (False, self._in_image)):
            rows = [row for row, value in enumerate(in_frequency) if value is chosen]
            index, own = _to_device(rows, torch.long, x.device), draws.select(rows)

            def work(piece: slice, index: Tensor = index, own: Draws = own, corrupt: _Strategy = corrupt) -> None:
                where = index[piece]
                seen = None if fov is None else fov.index_select(0, where)
                result, counted = corrupt(x.index_select(0, where), own.select(range(piece.start, piece.stop)), seen)
                image.index_copy_(0, where, result)
                mask.index_copy_(0, where, counted)

            for_each(len(rows), math.prod(x.shape[1:]), x.device, work)
        return Corrupted(image, mask, _to_device(in_frequency, torch.bool, x.device))

    def _in_frequency(self, x: Tensor, draws: Draws, fov: Tensor | None) -> tuple[Tensor, Tensor]:
        image = frequency.corrupt_piece(
            x,
            draws,
            patch=self.frequency_patch,
            cutoff=self.cutoff,
            sigma=self.sigma,
            scale_sigma=self.scale_sigma,
            high_mask=self.high_mask,
            low_noise=self.low_noise,
            mask_centre=self.mask_centre,
            perturbation=self.perturbation,
            adaptive=self.adaptive,
        )
        if fov is None:
            return image, image.new_ones(len(x), 1, *x.shape[2:])
        mask = fov.float()
        return torch.lerp(x.float(), image, mask), mask

    def _in_image(self, x: Tensor, draws: Draws, fov: Tensor | None) -> tuple[Tensor, Tensor]:
        side = sizes.image_side(x.shape[2:], self.patch, self.fit)
        return histogram.mask_piece(
            x, draws, patch=side, mask_ratio=self.mask_ratio, exact=self.exact, noise=self.noise, fov=fov
        )


def _to_device(values: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small host list on the device, without waiting for the device."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
