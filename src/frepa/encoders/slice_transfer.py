"""A frozen 2D encoder on volumes (Frepa section 3.3.2): every slice is encoded alone, then transformer blocks relate
positions within a slice and the same position across slices.

How we read the paper: channels of the 2D map are the features of a token, projected to ``width``; each position is
added once, before the first block of its kind; every round has its own weights; blocks normalise first (pre-norm).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepa.encoders.contract import Encoder, Features, per_axis
from frepa.encoders.files import absolute, load_encoder, method_of
from frepa.encoders.options import join_options
from frepa.encoders.registry import Scheme, build_encoder, find_scheme, register, register_scheme
from frepa.errors import InputError, nearest


class SliceTransfer(Encoder):
    """2D encoder, frozen, and blocks that train: ``transfer(x (B, in_channels, D, H, W), mask) -> Features``.

    Any number of slices D, any slice size. ``dense`` and ``embedding`` are one map (B, width, D, h, w) of stride
    (1, s, s). The 2D encoder is always in evaluation mode and never gets a gradient; its features can be kept between
    epochs (see ``feature_cache.py``), because ``encode_slices`` and ``transform`` are apart.

    Args:
        encoder2d: any 2D encoder; this one is used, not a copy.
        image_channels: channels of the volume: 1 (repeated to what the 2D encoder takes), or as many as it takes.
        rounds: pairs of an intra-slice and an inter-slice block.
        width: channels of a token, a multiple of 4 and of ``heads``.
        heads: attention heads.
        chunk: slices that go through the 2D encoder at once.
    """

    stacks = True

    def __init__(
        self,
        encoder2d: Encoder,
        *,
        image_channels: int = 1,
        rounds: int = 3,
        width: int = 256,
        heads: int = 8,
        chunk: int = 16,
    ) -> None:
        if encoder2d.dims != 2:
            raise InputError(f"a slice transfer needs a 2D encoder, and {encoder2d.name} has {encoder2d.dims} axes.")
        if width % heads or width % 4:
            raise InputError(f"width {width} of a slice transfer must be a multiple of 4 and of its {heads} heads.")
        if min(rounds, chunk) < 1:
            raise InputError(f"rounds and chunk of a slice transfer must be at least 1, found {rounds} and {chunk}.")
        super().__init__(
            name="slice_transfer",
            dims=3,
            image_channels=image_channels,
            guide=encoder2d.guide,
            channels=width,
            embedding_channels=width,
            stride=(1, *per_axis(encoder2d.stride, 2)),
            size_multiple=(1, *per_axis(encoder2d.size_multiple, 2)),
            options={"trunk": encoder2d.config, "rounds": rounds, "width": width, "heads": heads, "chunk": chunk},
        )
        self.chunk = chunk
        self.encoder2d = encoder2d.eval().requires_grad_(False)
        self.project = nn.Linear(encoder2d.channels, width)
        self.intra = nn.ModuleList(TransformerBlock(width, heads) for _ in range(rounds))
        self.inter = nn.ModuleList(TransformerBlock(width, heads) for _ in range(rounds))
        self.norm = nn.LayerNorm(width)

    @property
    def frozen_part(self) -> Encoder:
        """The 2D encoder."""
        return self.encoder2d

    @property
    def title(self) -> str:
        """Its name and the 2D encoder's."""
        return f"{self.name} of {self.encoder2d.title}"

    @property
    def untrained(self) -> str:
        """The same blocks over the untrained 2D encoder."""
        own = {name: value for name, value in self.options.items() if name != "trunk"}
        return join_options(f"slices:{self.encoder2d.untrained}", own)

    def train(self, mode: bool = True) -> SliceTransfer:
        """Training mode of the blocks; the 2D encoder stays in evaluation mode (no dropout, fixed statistics)."""
        super().train(mode)
        self.encoder2d.eval()
        return self

    def freeze(self) -> Encoder:
        """No gradient for the 2D encoder; the blocks keep theirs, because they train with the head."""
        self.encoder2d.requires_grad_(False)
        return self

    def make_guide(self, image: Tensor) -> Tensor:
        """The guide (B, 1, D, H, W) of a volume (B, C, D, H, W) in [0, 1], filtered in 2D, slice by slice."""
        guide = self.encoder2d.make_guide(_to_slices(image))
        return guide.unflatten(0, (image.shape[0], image.shape[2])).transpose(1, 2)

    @torch.no_grad()
    def encode_slices(self, volume: Tensor) -> Tensor:
        """What the frozen encoder sees in every slice.

        Args:
            volume: (B, in_channels, D, H, W): image in [0, 1], then guide, as ``prepare_input`` gives it.

        Returns:
            (B, encoder2d.channels, D, h, w), without gradient.
        """
        slices = _to_slices(volume)
        maps = []
        for part in slices.split(self.chunk) if self.chunk else [slices]:
            x = self.encoder2d.prepare_input(part[:, :-1], part[:, -1:])
            maps.append(self.encoder2d(x).dense)
        return torch.cat(maps).unflatten(0, (volume.shape[0], volume.shape[2])).transpose(1, 2)

    def encode_frozen(self, x: Tensor) -> Features:
        """``encode_slices``, as dense map and embedding."""
        maps = self.encode_slices(x)
        return Features(maps, maps)

    def transform(self, features: Tensor, mask: Tensor | None = None) -> Features:
        """Relate the slices of each volume.

        Args:
            features: (B, encoder2d.channels, D, h, w) from ``encode_slices``.
            mask: (B, D) bool, True where a slice is real and False where it pads a shorter volume; None: all are real.
                Every volume has at least one real slice.

        Returns:
            (B, width, D, h, w), zero at padding slices. What fills a padding slice changes nothing elsewhere.
        """
        batch, _, depth, height, wide = features.shape
        tokens = self.project(features.permute(0, 2, 3, 4, 1)).flatten(2, 3)  # (B, D, h * w, width)
        keys = None
        if mask is not None:
            keys = mask.view(batch, 1, 1, 1, depth).expand(-1, height * wide, -1, -1, -1).flatten(0, 1)
        within, along = _positions((height, wide), tokens), _positions((depth,), tokens)
        for index, (intra, inter) in enumerate(zip(self.intra, self.inter)):
            if index == 0:
                tokens = tokens + within
            tokens = self.run(intra, tokens.flatten(0, 1)).unflatten(0, (batch, depth))
            if index == 0:
                tokens = tokens + along[:, None]
            columns = tokens.transpose(1, 2).flatten(0, 1)  # (B * h * w, D, width)
            columns = self.run(inter, columns) if keys is None else self.run(inter, columns, keys)
            tokens = columns.unflatten(0, (batch, height * wide)).transpose(1, 2)
        dense = self.norm(tokens).unflatten(2, (height, wide)).permute(0, 4, 1, 2, 3)
        if mask is not None:
            dense = dense * mask.view(batch, 1, depth, 1, 1)
        return Features(dense, dense)

    def extract(self, x: Tensor) -> Features:
        """Features of (B, in_channels, D, H, W) without padding slices."""
        return self.transform(self.encode_slices(x))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Features of (B, in_channels, D, H, W); ``mask`` (B, D) is False at slices that pad a shorter volume."""
        self.check_input(x)
        return self.transform(self.encode_slices(x), mask)


class TransformerBlock(nn.Module):
    """Multi-head self-attention and feed-forward, each with a norm before and a residual around.

    ``block(x (N, L, width), keys)``: ``keys`` (N, 1, 1, L) bool is False at tokens that nobody attends to.
    """

    def __init__(self, width: int, heads: int, ratio: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """(N, L, width) to the same shape."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))


def pad_stacks(stacks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Volumes or features (C, D_i, h, w) of several depths as a batch (B, C, max D, h, w) and its mask (B, D)."""
    depths = torch.tensor([stack.shape[1] for stack in stacks])
    depth = int(depths.max())
    batch = torch.stack([F.pad(stack, (0, 0, 0, 0, 0, depth - stack.shape[1])) for stack in stacks])
    return batch, (torch.arange(depth) < depths[:, None]).to(batch.device)


def _to_slices(volume: Tensor) -> Tensor:
    """(B, C, D, H, W) to (B * D, C, H, W)."""
    return volume.transpose(1, 2).flatten(0, 1)


def _positions(lengths: tuple[int, ...], like: Tensor) -> Tensor:
    """Fixed sinusoidal positions (prod(lengths), width): an equal share of width for each axis, sine then cosine."""
    width = like.shape[-1]
    share = width // len(lengths)
    axes = []
    for length in lengths:
        place = torch.arange(length, device=like.device, dtype=torch.float32)
        waves = torch.exp(torch.arange(share // 2, device=like.device) * (-2 * math.log(10_000) / share))
        angle = place[:, None] * waves
        axes.append(torch.cat((angle.sin(), angle.cos()), dim=1))
    table = axes[0]
    for axis in axes[1:]:
        rows, columns = table.shape[0], axis.shape[0]  # which, unlike len, stay symbols where this is traced
        every = table[:, None].expand(-1, columns, -1), axis[None].expand(rows, -1, -1)
        table = torch.cat(every, dim=2).flatten(0, 1)
    return table.to(like.dtype)


@register("slice_transfer", dims=3)
def build_slice_transfer(
    name: str,
    *,
    image_channels: int = 1,
    guide: str = "frangi",
    trunk: str | dict[str, Any] = "vit_base",
    rounds: int = 3,
    width: int = 256,
    heads: int = 8,
    chunk: int = 16,
) -> SliceTransfer:
    """A slice transfer with random weights; ``trunk`` is a 2D encoder's name or its ``config``."""
    encoder2d = build_encoder(trunk, dims=2, guide=guide) if isinstance(trunk, str) else build_encoder(**trunk)
    return SliceTransfer(encoder2d, image_channels=image_channels, rounds=rounds, width=width, heads=heads, chunk=chunk)


def _load_slices(rest: str, options: dict[str, Any]) -> Encoder:
    """``slices:ENCODER2D``: volumes slice by slice through a frozen 2D encoder.

    ENCODER2D is a run folder, an encoder file or a specification; options that are not the transfer's go to it.
    """
    own = {key: options.pop(key) for key in ("rounds", "width", "heads", "chunk") if key in options}
    seed = options.get("seed", 0)
    if find_scheme(rest)[0] is not None:
        rest = join_options(rest, options)
    else:
        unknown = next((key for key in options if key != "seed"), None)
        if unknown is not None:
            known = ("rounds", "width", "heads", "chunk", "seed")
            raise InputError(f"slices:{rest} has no option {unknown!r}. {nearest(unknown, known)}")
    encoder2d = load_encoder(rest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SliceTransfer(encoder2d, **own)


register_scheme("slices", Scheme(_load_slices, absolute, method_of))
