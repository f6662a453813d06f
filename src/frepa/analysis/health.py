"""Whether an encoder still keeps what it is shown: a few numbers from a few fixed images, cheap enough to be asked for
again and again while it trains.

What is lost first in pretraining does not show in the loss: features that vary less and less over positions, in fewer
and fewer directions, and hold less of the high frequencies than a random projection of the same size would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from frepa.analysis.recovery import cross_bands, random_projection
from frepa.encoders.contract import Encoder, per_axis
from frepa.heads.ridge import rows_of

# Positions of an image that are looked at: of a map at every pixel its middle part alone.
_MOST_POSITIONS = 2**14
# And of more positions than this for each feature every second, third, ... alone, for rank and variance.
_ROWS_PER_FEATURE = 40


class Health:
    """Looks at fixed images through an encoder: ``health(encoder) -> {name: number}``, all of them better when higher.

    ``rank``: effective rank of the features, the exponential of the entropy of their singular values, made to sum to 1
    (Roy and Vetterli 2007), over all positions of all images and about their mean; between 1 and the number of
    channels. ``variance``: of the features over all positions, mean over channels, in the features' own unit.
    ``low``, ``medium``, ``high``: of each band of `recovery.BANDS` the share of its energy that a ridge regression from
    the features recovers, less what it recovers from a random projection of every block of pixels to as many numbers.
    Below 0 the encoder keeps less of the band than chance would.

    Args:
        images: (N, C, *S) in [0, 1], S of any size; kept as they are. With fewer than two there are no bands, which are
            fitted to some images and looked at on others.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        #: In images that pass through the encoder: what a look costs.
        self.cost = float(len(images))
        self._null: dict[tuple[tuple[int, ...], int], Mapping[str, float]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What a look gives, but for bands that the images have nothing in."""
        spread = ("rank", "variance") if len(self.images) else ()
        return spread + (("low", "medium", "high") if len(self.images) > 1 else ())

    @torch.no_grad()
    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """What is left in the features of an encoder in evaluation mode."""
        if not len(self.images):
            return {}
        device = next(encoder.parameters()).device
        looked = [self._look(encoder, image[None].to(device)) for image in self.images]
        maps, seen = [own for own, _ in looked], [image for _, image in looked]
        with torch.autocast(
            device.type, enabled=False
        ):  # the encoder may compute in less, what is asked of it does not
            found = spread(torch.cat([rows_of(own) for own in maps]))
            if len(maps) > 1:
                bands, null = cross_bands(maps, seen, encoder.stride), self._of_chance(seen, encoder)
                found |= {name: bands[name] - null[name] for name in bands if math.isfinite(bands[name] - null[name])}
        return found

    def _look(self, encoder: Encoder, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map and image of whole positions, the middle of them where they are too many."""
        steps = per_axis(encoder.stride, encoder.dims)
        dense = encoder(encoder.prepare_input(image, encoder.make_guide(image))).dense.float()
        most = max(1, int(_MOST_POSITIONS ** (1 / encoder.dims)))
        for axis, step in enumerate(steps, start=2):
            whole = max(1, image.shape[axis] // step)
            kept = min(whole, most)
            first = (whole - kept) // 2
            dense = dense.narrow(axis, first, kept)
            image = _narrowed(image, axis, first * step, kept * step)
        return dense, image

    def _of_chance(self, seen: Sequence[Tensor], encoder: Encoder) -> Mapping[str, float]:
        """What a random projection to as many numbers recovers; of the same images always the same."""
        key = per_axis(encoder.stride, encoder.dims), encoder.channels
        if key not in self._null:
            project = random_projection(encoder.channels, encoder.stride)
            self._null[key] = cross_bands([project(image) for image in seen], seen, encoder.stride)
        return self._null[key]


def _narrowed(image: Tensor, axis: int, first: int, length: int) -> Tensor:
    """A part of an axis; zeros follow where the image is smaller than one position, as the encoder saw it."""
    missing = first + length - image.shape[axis]
    if missing > 0:
        shape = list(image.shape)
        shape[axis] = missing
        image = torch.cat([image, image.new_zeros(shape)], dim=axis)
    return image.narrow(axis, first, length)


def spread(rows: Tensor) -> dict[str, float]:
    """Effective rank and variance of features (N, K), as `Health` says."""
    step = max(1, len(rows) // (_ROWS_PER_FEATURE * rows.shape[1]))
    rows = rows[::step].double()
    rows = rows - rows.mean(0)
    covariance = rows.T @ rows / len(rows)
    singular = torch.linalg.eigvalsh(covariance).clamp(min=0).sqrt()
    total = float(singular.sum())
    if not total:
        return {"rank": 1.0, "variance": 0.0}
    share = singular / total
    entropy = -torch.special.xlogy(share, share).sum()
    return {"rank": float(entropy.exp()), "variance": float(covariance.diagonal().mean())}
