"""Loss of a segmentation head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SMOOTH = 1e-5


def dice_loss(logits: Tensor, classes: Tensor, valid: Tensor) -> Tensor:
    """One minus the soft Dice of the foreground classes, each taken over the whole batch; 0-d float32 in [0, 1].

    Over the batch and not per crop, because most crops of a volume lack most classes, and a class that is absent gives
    no gradient worth having.

    Args:
        logits: ``(B, K, *S)``, class 0 the background.
        classes: ``(B, *S)`` integers.
        valid: ``(B, *S)`` bool; other pixels (padding) do not count.
    """
    count = logits.shape[1]
    with torch.autocast(logits.device.type, enabled=False):
        probabilities = logits.float().softmax(1)[:, 1:]
        wanted = F.one_hot(classes.long(), count).movedim(-1, 1)[:, 1:].float()
        weight = valid[:, None].float()
        axes = (0, *range(2, logits.ndim))
        both = (probabilities * wanted * weight).sum(axes)
        sizes = ((probabilities + wanted) * weight).sum(axes)
        return 1 - ((2 * both + _SMOOTH) / (sizes + _SMOOTH)).mean()


def cross_entropy(logits: Tensor, classes: Tensor, valid: Tensor) -> Tensor:
    """Mean cross entropy over the valid pixels; 0-d float32. Arguments as in :func:`dice_loss`."""
    with torch.autocast(logits.device.type, enabled=False):
        each = F.cross_entropy(logits.float(), classes.long(), reduction="none")
        weight = valid.float()
        return (each * weight).sum() / weight.sum().clamp(min=1)


LOSSES = {
    "dice": dice_loss,
    "dice_ce": lambda logits, classes, valid: dice_loss(logits, classes, valid) + cross_entropy(logits, classes, valid),
}
