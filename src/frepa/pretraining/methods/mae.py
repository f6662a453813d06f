"""MAE: the encoder sees some patches, a small transformer tells the others; the same code with two and three axes.

He et al., CVPR 2022, and its 3D form with cubes. Written from the paper; the defaults are its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from frepa.encoders.contract import per_axis
from frepa.errors import InputError
from frepa.heads.ridge import blocks_of, unblocked
from frepa.heads.token_decoder import TokenDecoder
from frepa.pretraining.methods.contract import Batch, Pictures, Setting, StepResult
from frepa.pretraining.methods.masked import check_mask_ratio
from frepa.pretraining.methods.reconstructing import Reconstructing, cropped
from frepa.pretraining.methods.registry import register_method

# Of a patch's variance where it is normalised, so that empty patches do not blow up.
_LEAST_VARIANCE = 1e-6
# Of the encoder's weights that the decoder may have: 8 blocks of 512 are as many of ViT-B's. Beside a small encoder
# augmentation, guide and optimizer, which dropping patches does not shrink, are a larger part of a step.
_DECODER_SHARE, _SMALL_SHARE, _PUBLISHED_WIDTH = 0.3, 0.2, 512


@dataclass(frozen=True)
class MAE:
    """Masked autoencoder: three quarters of the patches are dropped, and told from the rest.

    Args:
        augment: random flips, rotation, affine maps and histogram shifts.
        mask_ratio: share of the patches dropped, between 0 and 1.
        normalise_target: tell each patch less its mean and over its standard deviation, as published.
        decoder_width: channels of the decoder; "auto" is two thirds of the encoder's, the published 512 for ViT-B.
        decoder_depth: blocks of the decoder; "auto" is the published 8, and no more than three tenths of the encoder's
            weights, as published with ViT-B; where its width is below 512, 4 and no more than a fifth.
    """

    augment: bool = True
    mask_ratio: float = 0.75
    normalise_target: bool = True
    decoder_width: int | Literal["auto"] = "auto"
    decoder_depth: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_mask_ratio(self.mask_ratio)
        for name in ("decoder_width", "decoder_depth"):
            value = getattr(self, name)
            if value != "auto" and (isinstance(value, str) or value < 1):
                raise InputError(f'--method.{name.replace("_", "-")} {value}: expected "auto" or 1 or more.')
        if self.decoder_width != "auto" and self.decoder_width % 32:
            raise InputError(f"--method.decoder-width {self.decoder_width}: expected a multiple of 32.")

    def decoder_shape(self, channels: int, parameters: int) -> tuple[int, int]:
        """Width and depth of the decoder of an encoder with so many channels and parameters."""
        width = max(32, round(channels * 2 / 3 / 32) * 32) if self.decoder_width == "auto" else self.decoder_width
        if self.decoder_depth != "auto":
            return width, self.decoder_depth
        published = width >= _PUBLISHED_WIDTH
        blocks = (_DECODER_SHARE if published else _SMALL_SHARE) * parameters / (12 * width**2)
        return width, min(8 if published else 4, max(1, int(blocks)))


@register_method("mae", MAE)
class MAEMethod(Reconstructing):
    """Plain vision transformer that sees the visible patches alone, and a transformer decoder."""

    shows = "with the same patches dropped each time, and told (with the true mean and spread of each patch)"

    def __init__(self, options: MAE, setting: Setting) -> None:
        super().__init__(setting, augment=options.augment)
        encoder = self.encoder
        if not encoder.takes_tokens:
            raise InputError(
                f"--method mae leaves patches out, and encoder {encoder.name} cannot: it takes plain vision "
                "transformers (vit_tiny, vit_base, vit3d_base, ...). frepa, simmim and mfm take any encoder."
            )
        self.options = options
        self.stride = per_axis(encoder.stride, encoder.dims)
        width, depth = options.decoder_shape(encoder.channels, sum(p.numel() for p in encoder.parameters()))
        self.decoder = TokenDecoder(encoder.channels, self.outputs * math.prod(self.stride), width=width, depth=depth)

    def forward(self, batch: Batch) -> StepResult:
        image, guide = self.clean(batch)
        with torch.no_grad():
            inputs = self.encoder.prepare_input(image, guide)
            padded = self.encoder.padded(image)
            grid = tuple(length // step for length, step in zip(padded.shape[2:], self.stride))
            keep, mask = self._choose(batch, math.prod(grid))
            patches = blocks_of(padded, self.stride).unflatten(0, (len(image), -1))
            mean, spread = _statistics(patches)
            target = (patches - mean) / spread if self.options.normalise_target else patches
        told = self.decoder(self.encoder.tokens(inputs, keep), keep, grid).float()
        own = told[..., : patches.shape[-1]]
        square = (own - target).square().mean(-1)
        loss = (square * mask).sum() / (mask.numel() - keep.numel())
        terms = {"mse": loss.detach()}
        if self.guide_target != "none":
            whole = unblocked(told.flatten(0, 1), (len(image), self.outputs, *padded.shape[2:]), self.stride)
            loss, terms = self.with_guide(loss, terms, cropped(whole, image.shape[2:]), guide)
        pictures = None
        if batch.shown:
            pixels = own * spread + mean if self.options.normalise_target else own
            pictures = self._pictures(batch.shown, image, guide, patches, pixels, mask, tuple(padded.shape))
        return StepResult(loss, terms, pictures)

    @classmethod
    def as_kept(cls, options: MAE, state: Mapping[str, Tensor]) -> MAE:
        """Width and depth of the decoder as the weights have them."""
        blocks = {name.split(".")[2] for name in state if name.startswith("decoder.blocks.")}
        token = state.get("decoder.token")
        return options if token is None else replace(options, decoder_width=len(token), decoder_depth=len(blocks))

    def reconstruct(self, seen: Tensor, guide: Tensor, hidden: Tensor | None, image: Tensor) -> Tensor:
        """See `Reconstructing.reconstruct`; every patch that is hidden in part is left out, but for one at least.

        Where patches are told without mean and spread, hidden ones have those of the clean image put back, as in the
        method's own pictures, and others those of what was seen.
        """
        dropped = self.encoder.padded(torch.zeros_like(seen[:, :1]) if hidden is None else hidden.float())
        return torch.cat([self._reconstruct_one(*one, whole=hidden is None)
                          for one in zip(seen.split(1), guide.split(1), dropped.split(1), image.split(1))])  # fmt: skip

    def _reconstruct_one(self, seen: Tensor, guide: Tensor, hidden: Tensor, image: Tensor, *, whole: bool) -> Tensor:
        padded = self.encoder.padded(seen)
        grid = tuple(length // step for length, step in zip(padded.shape[2:], self.stride))
        patches = blocks_of(padded, self.stride)[None]
        dropped = blocks_of(hidden, self.stride).amax(1) > 0
        dropped[0] &= not bool(dropped.all())  # something has to be seen
        keep = (~dropped).nonzero().flatten()[None]
        told = self.decoder(self.encoder.tokens(self.encoder.prepare_input(seen, guide), keep), keep, grid).float()
        told = told[..., : patches.shape[-1]]
        if self.options.normalise_target:
            clean = blocks_of(self.encoder.padded(image), self.stride)[None]
            mean, spread = _statistics(torch.where(dropped[:, None], clean, patches))
            told = told * spread + mean
        if not whole:
            told = torch.where(dropped[:, None], told, patches)
        return cropped(unblocked(told[0], tuple(padded.shape), self.stride), seen.shape[2:])

    def _choose(self, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
        """Places of the visible patches (B, K), and a map of the dropped ones (B, N), 1 where dropped."""
        kept = min(max(count - round(self.options.mask_ratio * count), 1), count - 1)
        if count < 2:
            raise InputError(f"--image-size: an image of one patch of {self.stride} pixels has none to leave out.")
        keep = self.draws(batch).uniform((count,), "mae").argsort(1)[:, :kept]
        mask = torch.ones(len(keep), count, device=keep.device).scatter_(1, keep, 0.0)
        return keep, mask

    def _pictures(
        self,
        shown: int,
        image: Tensor,
        guide: Tensor,
        patches: Tensor,
        told: Tensor,
        mask: Tensor,
        shape: tuple[int, ...],
    ) -> Pictures:
        rows = list(range(min(shown, len(image))))
        dropped = mask[rows, :, None] > 0

        def whole(parts: Tensor) -> Tensor:
            return cropped(unblocked(parts.flatten(0, 1), (len(rows), *shape[1:]), self.stride), image.shape[2:])

        seen = whole(torch.where(dropped, 0.0, patches[rows]))
        filled = whole(torch.where(dropped, told[rows].to(patches.dtype), patches[rows]))
        shown_guide = None if self.encoder.guide == "none" else guide[rows]
        return Pictures(image[rows], seen, filled, shown_guide, rows, ["masked"] * len(rows))


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, N, 1) of each patch (B, N, values)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
    return mean, (variance + _LEAST_VARIANCE).sqrt()
