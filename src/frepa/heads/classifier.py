"""Classification heads: pooled embedding, standardised, then logistic regression, or a multilayer perceptron from it.

The paper's head is the perceptron (Frepa section 4.1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from frepa.errors import InputError, nearest
from frepa.heads.logistic import Logistic
from frepa.heads.networks import resnet
from frepa.heads.standardise import Standardise

POOLINGS = ("mean", "attention")
#: ``linear`` is logistic regression solved to convergence; ``mlp`` adds a trained hidden layer to it, and ``resnet`` a
#: whole network on the embedding's positions.
HEADS = ("linear", "mlp", "resnet")


class ClassificationHead(nn.Module):
    """Embedding map to class scores, for any number of axes.

    Embeddings are standardised by the training part's statistics. ``direct`` reads them linearly; ``mlp`` adds to it a
    hidden layer that starts at zero, so that the head starts as the linear one.

    Args:
        channels: channels of the embedding.
        classes: number of scores.
        hidden: width of the one hidden layer; 0 is the linear head alone.
        pooling: "mean" over positions, or "attention": a weighted mean whose weights one learned query gives.
        dropout: probability before the last layer while training.
        before: channels of what is standardised before blocks that train with the head make the embedding.
        network: axes of a ResNet on the embedding's positions, which is added to the linear part; 0 for none.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        hidden: int = 256,
        pooling: str = "mean",
        dropout: float = 0.0,
        before: int | None = None,
        network: int = 0,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"pooling {pooling!r} is not known. {nearest(pooling, POOLINGS)}")
        self.before = None if before is None else Standardise(before)
        self.standardise = Standardise(channels)
        self.score = nn.Linear(channels, 1) if pooling == "attention" else None
        self.direct = nn.Linear(channels, classes)
        nn.init.zeros_(self.direct.weight)
        nn.init.zeros_(self.direct.bias)
        self.mlp: nn.Sequential | None = None
        if hidden:
            last = nn.Linear(hidden, classes)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(dropout), last)
        self.network = resnet(channels, classes, network) if network else None

    def pool(self, embedding: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, channels, *s) to (B, channels); a (B, channels) input is returned as it is.

        ``mask`` (B, *s), or only its first axes such as (B, slices), is False at positions that are left out.
        """
        if embedding.ndim == 2:
            return embedding
        positions = embedding.flatten(2).transpose(1, 2)
        score = positions.new_zeros(*positions.shape[:2], 1) if self.score is None else self.score(positions)
        if mask is not None:
            shape = (embedding.shape[0], *embedding.shape[2:])
            keep = mask.view(*mask.shape, *(1,) * (len(shape) - mask.ndim)).expand(shape).reshape(*score.shape)
            score = score.masked_fill(~keep, float("-inf"))
        # Equal scores give the mean.
        return (torch.softmax(score, dim=1) * positions).sum(1)

    def forward(self, embedding: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, channels, *s), or embeddings (B, channels) that are pooled already, to logits (B, classes)."""
        standardised = self.standardise(embedding)
        pooled = self.pool(standardised, mask)
        scores = self.direct(pooled)
        if self.network is not None:
            scores = scores + self.network(standardised)
        return scores if self.mlp is None else scores + self.mlp(pooled)

    @torch.no_grad()
    def start_from(self, logistic: Logistic) -> None:
        """Let the linear part answer what a logistic regression on standardised embeddings does."""
        self.direct.weight.copy_(torch.from_numpy(np.ascontiguousarray(logistic.weight.T)))
        self.direct.bias.copy_(torch.from_numpy(logistic.bias))
