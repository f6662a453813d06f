"""A small transformer that tells every patch of an image from the vectors of some of them (MAE's decoder)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from frepa.encoders.slice_transfer import TransformerBlock


class TokenDecoder(nn.Module):
    """Vectors of visible patches in, all patches out.

    Visible vectors are brought to the decoder's width and put in their places, a learnt token into all others; fixed
    sinusoidal positions are added, and blocks relate them.

    Args:
        channels: of a visible vector.
        outputs: numbers of a patch.
        width, depth: of the decoder; ``width`` a multiple of 64 (heads are 32 wide).
    """

    def __init__(self, channels: int, outputs: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(channels, width)
        self.token = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.token, std=0.02)
        self.blocks = nn.ModuleList(TransformerBlock(width, max(1, width // 32)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs)

    def forward(self, visible: Tensor, keep: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, K, channels) and their places ``keep`` (B, K) in ``grid`` to (B, prod(grid), outputs)."""
        entered = self.enter(visible)
        batch, count = len(visible), math.prod(grid)
        tokens = self.token.to(entered.dtype).expand(batch, count, -1)
        tokens = tokens.scatter(1, keep[..., None].expand(-1, -1, self.width), entered)
        tokens = tokens + grid_positions(grid, self.width, tokens.device).to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        return self.leave(self.norm(tokens))


def grid_positions(grid: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """Fixed sinusoidal positions (prod(grid), width), row-major: an equal share per axis, then zeros."""
    share = width // (2 * len(grid))
    waves = torch.exp(torch.arange(share, device=device) * (-math.log(10_000) / max(share, 1)))
    parts = []
    for axis, length in enumerate(grid):
        angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * waves
        own = torch.cat((angle.sin(), angle.cos()), dim=1)
        shape = [length if other == axis else 1 for other in range(len(grid))]
        parts.append(own.view(*shape, -1).expand(*grid, -1).reshape(math.prod(grid), -1))
    table = torch.cat(parts, dim=1)
    return torch.cat((table, table.new_zeros(len(table), width - table.shape[1])), dim=1)
