"""Frozen features with mean 0 and standard deviation 1 per channel, by the statistics of the training part.

Encoders differ by orders of magnitude in the scale of their features, and a pretrained one's may vary little around a
large common vector. A head that sees them raw, or after a norm over channels, judges the scale before the content.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Below this share of its mean, what a channel varies by is the rounding of float32.
_ROUNDING = 1e-6


class Moments:
    """Number, mean and variance per channel of any number of batches in one pass, exact to float64.

    Batches are merged by the update of Chan, Golub and LeVeque: no difference of large sums.

    Attributes:
        count: positions seen, or the sum of their weights.
        mean: (channels,) float64.
        squares: (channels,) float64, sum of squared deviations from the mean.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        self.count = 0.0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)

    def add(self, features: Tensor, weight: Tensor | None = None) -> None:
        """Take in (B, channels, *s), any axes or none; ``weight`` (B, *s) counts positions, 0 leaves one out."""
        rows = features.detach().movedim(1, -1).reshape(-1, features.shape[1]).to(self.mean)
        each = rows.new_ones(len(rows)) if weight is None else weight.reshape(-1).to(rows)
        count = float(each.sum())
        if not count:
            return
        mean = (each[:, None] * rows).sum(0) / count
        squares = (each[:, None] * (rows - mean).square()).sum(0)
        total = self.count + count
        apart = mean - self.mean
        self.squares += squares + apart.square() * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    @property
    def std(self) -> Tensor:
        """(channels,) float64, of the positions seen (no degree of freedom less); 0 for a channel without variance."""
        return usable_std(self.mean, self.squares / max(self.count, 1e-300))


def usable_std(mean: Tensor, variance: Tensor) -> Tensor:
    """Standard deviation; 0 where a channel varies by no more than the rounding of float32."""
    std = variance.clamp(min=0).sqrt()
    return torch.where(std > _ROUNDING * mean.abs() + 1e-30, std, torch.zeros_like(std))


class Standardise(nn.Module):
    """``(x - mean) / std`` per channel of (B, channels, *s), any number of axes; a constant channel gives zeros.

    Mean and deviation are buffers, so a head file keeps them. Before ``set`` it changes nothing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @torch.no_grad()
    def set(self, mean: Tensor, std: Tensor) -> None:
        """Take these statistics, (channels,) each; a deviation of 0 marks a channel without variance."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    @property
    def constant(self) -> int:
        """Channels without variance in the training part."""
        return int((self.std == 0).sum())

    def forward(self, features: Tensor) -> Tensor:
        """Standardised features in the dtype they come in; the arithmetic is float32."""
        shape = (1, -1, *(1,) * (features.ndim - 2))
        scale = torch.where(self.std > 0, 1 / self.std, 0.0).view(shape)
        return ((features.float() - self.mean.view(shape)) * scale).to(features.dtype)


def constant_channels(parts: list[Standardise]) -> list[str]:
    """A sentence where channels have no variance over the training part; they are left out of the head."""
    constant, channels = sum(part.constant for part in parts), sum(len(part.std) for part in parts)
    if not constant:
        return []
    if constant == channels:
        said = "The encoder gives the same features everywhere in the training part: nothing can be read from them."
        return [f"{said} Look at the images and at the encoder."]
    return [f"{constant} of {channels} feature channels do not vary over the training part and are left out."]
