"""The patch embedding of a trunk with places put out of sight: what masked image modelling hides from an encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

_POOL: dict[int, Any] = {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


class PatchEmbedding(NamedTuple):
    """The layer of a trunk that turns patches into vectors.

    module: gives (B, channels, *grid), or (B, *grid, channels) where ``channels_last``. channels: of a vector.
    """

    module: nn.Module
    channels: int
    channels_last: bool


@contextmanager
def hidden(embedding: PatchEmbedding, mask: Tensor, token: Tensor) -> Iterator[None]:
    """Inside, every vector whose patch is masked anywhere is ``token``.

    Args:
        mask: (B, 1, *S) bool or 0/1 over the padded input, True where hidden.
        token: (channels,), learnt.
    """

    def replace(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        grid = output.shape[1:-1] if embedding.channels_last else output.shape[2:]
        where = _POOL[len(grid)](mask.to(output.dtype), tuple(grid))
        own = token.to(output.dtype)
        if embedding.channels_last:
            where = where.movedim(1, -1)
        else:
            own = own.view(1, -1, *[1] * len(grid))
        return output * (1 - where) + own * where

    handle = embedding.module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def pick(tokens: Tensor, keep: Tensor) -> Tensor:
    """Of (B, N, C) the rows ``keep`` (B, K): (B, K, C)."""
    return tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))


def embedded(convolution: Any, x: Tensor, keep: Tensor) -> Tensor:
    """Vectors (B, K, channels) of the patches ``keep`` (B, K) of (B, C, *S), the others not looked at.

    ``convolution``: a patch embedding whose kernel is its stride, which divides S.
    """
    weight, axes = convolution.weight, x.ndim - 2
    for axis, step in enumerate(weight.shape[2:]):
        x = x.unflatten(2 + 2 * axis, (-1, step))
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    patches = x.permute(order).flatten(1 + axes).flatten(1, axes)
    return F.linear(pick(patches, keep), weight.flatten(1), convolution.bias)
