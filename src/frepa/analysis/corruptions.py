"""The corruptions of all methods by name, for analyses that show them side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from frepa.corruption.circle import circle_mask
from frepa.corruption.frequency import frequency_corrupt
from frepa.corruption.histogram import histogram_mask
from frepa.corruption.patches import patch_mask
from frepa.draws import Draws, sample_keys

#: Images (B, C, *S) in [0, 1] and their draws to corrupted images of the same shape, not clipped.
Corrupt = Callable[[Tensor, Draws], Tensor]


def masked(noise: str, ratio: float = 0.7) -> Corrupt:
    """Patches of an image replaced by ``"zero"``, ``"gaussian"`` noise or their own shuffled pixels, ``"permute"``."""
    return lambda x, draws: histogram_mask(x, draws, noise=noise, mask_ratio=ratio, fit="crop")[0]


def masked_places(images: Tensor, seed: int, first: int, noise: str, ratio: float) -> Tensor:
    """Where `masked` hides patches of images that come ``first``, ... in an analysis: bool (B, 1, *S)."""
    draws = Draws(sample_keys(seed, range(first, first + len(images)), 0), images.device)
    return histogram_mask(images[:, :1], draws, noise=noise, mask_ratio=ratio, fit="crop")[1]


#: Frepa Fig. 3 and what other methods do: name to corruption, in the order of pages.
CORRUPTIONS: dict[str, Corrupt] = {
    "zero patches": masked("zero"),
    "patches of the mean (SimMIM)": lambda x, draws: patch_mask(x, draws)[0],
    "patches of noise (Frepa)": masked("gaussian"),
    "patches shuffled": masked("permute"),
    "high-frequency masking": lambda x, draws: frequency_corrupt(x, draws, low_noise=False),
    "low-frequency perturbation": lambda x, draws: frequency_corrupt(x, draws, high_mask=False),
    "both in the spectrum (Frepa)": lambda x, draws: frequency_corrupt(x, draws),
    "low-pass (MFM)": lambda x, draws: circle_mask(x, draws, low_probability=1.0).image,
    "high-pass (MFM)": lambda x, draws: circle_mask(x, draws, low_probability=0.0).image,
}


def corrupted(corruption: str | Corrupt, images: Tensor, seed: int, first: int) -> Tensor:
    """Corrupted images (B, C, *S), which come ``first``, ``first + 1``, ... in an analysis and draw by that.

    A grey image that is stored as a colour one is corrupted once for its channels, as in pretraining.
    """
    corrupt = CORRUPTIONS[corruption] if isinstance(corruption, str) else corruption
    draws = Draws(sample_keys(seed, range(first, first + len(images)), 0), images.device)
    grey = (images == images[:, :1]).flatten(1).all(1)
    if images.shape[1] == 1 or not bool(grey.any()):
        return corrupt(images, draws)
    found = torch.empty_like(images)
    for kind in (True, False):
        rows = (grey == kind).nonzero().flatten()
        if len(rows):
            own = images[rows, :1] if kind else images[rows]
            found[rows] = corrupt(own, draws.select(rows.tolist())).expand_as(images[rows])
    return found
