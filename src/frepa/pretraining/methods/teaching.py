"""A clean teacher: an average of the encoder sees the image as it is, and the student is to agree with it.

A variant of this project's, off by default, in place of the agreement of two corrupted views (Frepa Eq. 10). The way of
BYOL (Grill et al. 2020): a predictor on the student's side alone, and no gradient to the teacher.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from frepa.encoders.contract import Encoder
from frepa.errors import InputError

_HIDDEN = 2


class Predictor(nn.Module):
    """From a student's vector to the teacher's, each position for itself: (B, C, *s) to (B, C, *s)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = _HIDDEN * channels
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.movedim(1, -1)).movedim(-1, 1)


class Teacher:
    """An exponential moving average of an encoder, in evaluation mode and without gradients.

    Not a module: its weights take no part in the method's, and are a state of their own.

    Args:
        encoder: whose average it is; it begins as a copy.
        decay: of the average, at each step; from 0 to below 1.
    """

    def __init__(self, encoder: Encoder, decay: float) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"--method.teacher-decay {decay}: expected a number from 0 to below 1.")
        self.average = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Embedding (B, C, *s) of inputs as the encoder takes them."""
        return self.average(inputs).embedding

    def follow(self, encoder: Encoder) -> None:
        """Take a step towards the encoder's present weights; buffers become the encoder's own."""
        self.average.update_parameters(encoder)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        """The same teacher: an average of the whole method's weights has no other to agree with."""
        return self

    def states(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"teacher": self.average}


def disagreement(told: Tensor, seen: Tensor) -> Tensor:
    """1 less the cosine of vectors (B, C, *s), mean over positions: 0-d float32 in [0, 2]; no gradient to ``seen``."""
    return (1 - F.cosine_similarity(told.float(), seen.detach().float(), dim=1)).mean()
