"""Classification head: pooled embedding, then a multilayer perceptron (Frepa section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frepa.errors import InputError, nearest

POOLINGS = ("mean", "attention")


class ClassificationHead(nn.Module):
    """Embedding map to class scores, for any number of axes.

    Args:
        channels: channels of the embedding.
        classes: number of scores.
        hidden: width of the one hidden layer; 0 gives a linear probe.
        pooling: "mean" over positions, or "attention": a weighted mean whose weights one learned query gives.
        dropout: probability before the last layer while training.
    """

    def __init__(
        self, channels: int, classes: int, *, hidden: int = 256, pooling: str = "mean", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"pooling {pooling!r} is not known. {nearest(pooling, POOLINGS)}")
        self.score = nn.Linear(channels, 1) if pooling == "attention" else None
        # Encoders differ by orders of magnitude in the scale of their features; the same head must serve all.
        self.norm = nn.LayerNorm(channels)
        if hidden:
            self.mlp = nn.Sequential(
                nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
            )
        else:
            self.mlp = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, classes))

    def pool(self, embedding: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, channels, *s) to (B, channels); a (B, channels) input is returned as it is.

        ``mask`` (B, *s), or only its first axes such as (B, slices), is False at positions that are left out.
        """
        if embedding.ndim == 2:
            return embedding
        positions = embedding.flatten(2).transpose(1, 2)
        score = positions.new_zeros(*positions.shape[:2], 1) if self.score is None else self.score(self.norm(positions))
        if mask is not None:
            shape = (embedding.shape[0], *embedding.shape[2:])
            keep = mask.view(*mask.shape, *(1,) * (len(shape) - mask.ndim)).expand(shape).reshape(*score.shape)
            score = score.masked_fill(~keep, float("-inf"))
        # Equal scores give the mean.
        return (torch.softmax(score, dim=1) * positions).sum(1)

    def forward(self, embedding: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, channels, *s), or embeddings (B, channels) that are pooled already, to logits (B, classes)."""
        return self.mlp(self.norm(self.pool(embedding, mask)))
