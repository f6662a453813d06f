"""Masked image modelling with any encoder: SimMIM hides patches, MFM a part of the spectrum.

SimMIM: Xie et al., CVPR 2022. MFM: Xie et al., ICLR 2023. Written from the papers; the defaults are theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frepa.corruption import circle, patches
from frepa.corruption.circle import circle_mask
from frepa.corruption.patches import patch_mask
from frepa.encoders.contract import per_axis
from frepa.errors import InputError
from frepa.heads.decoder import ReconstructionDecoder
from frepa.pretraining.methods.contract import Batch, Pictures, Setting, StepResult
from frepa.pretraining.methods.reconstructing import Reconstructing, cropped
from frepa.pretraining.methods.registry import register_method

_CONV_TRANSPOSE: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@dataclass(frozen=True)
class SimMIM:
    """Patches hidden behind a learnt token, their pixels told by one linear layer.

    Args:
        augment: random flips, rotation, affine maps and histogram shifts.
        mask_ratio: share of the patches hidden, between 0 and 1.
        patch: side of a hidden patch in pixels; "auto" is the published 32 (16 in 3D), and a quarter of the side where
            the image has fewer than four such patches along it.
    """

    augment: bool = True
    mask_ratio: float = 0.6
    patch: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_mask_ratio(self.mask_ratio)
        patches.check_options(self.patch, self.mask_ratio, "mean")


def check_mask_ratio(ratio: float) -> None:
    """Raise InputError unless something is hidden and something is left to see."""
    if not 0 < ratio < 1:
        what = "nothing is left to see" if ratio >= 1 else "nothing is hidden"
        raise InputError(f"--method.mask-ratio {ratio}: {what}. Give a number between 0 and 1.")


@register_method("simmim", SimMIM)
class SimMIMMethod(Reconstructing):
    """Encoder, mask token and one linear layer from a position to its block of pixels.

    Hidden places are replaced by the token at the patch embedding; what an encoder without one (a convolutional trunk)
    sees there is the mean of the visible pixels.
    """

    shows = "with the same patches hidden each time, and reconstructed"

    def __init__(self, options: SimMIM, setting: Setting) -> None:
        super().__init__(setting, augment=options.augment)
        encoder = self.encoder
        self.options = options
        stride = per_axis(encoder.stride, encoder.dims)
        self.decoder = _CONV_TRANSPOSE[encoder.dims](encoder.channels, self.outputs, kernel_size=stride, stride=stride)
        embedding = encoder.patch_embedding
        self.token = None if embedding is None else nn.Parameter(torch.empty(embedding.channels).normal_(std=0.02))

    def forward(self, batch: Batch) -> StepResult:
        image, guide = self.clean(batch)
        with torch.no_grad():
            filled, mask = patch_mask(
                image, self.draws(batch), patch=self.options.patch, mask_ratio=self.options.mask_ratio
            )
            inputs = self.encoder.prepare_input(filled, guide)
        features = self.encoder(inputs) if self.token is None else self.encoder.masked(inputs, mask, self.token)
        prediction = cropped(self.decoder(features.dense), image.shape[2:])
        error = (prediction[:, : self.channels].float() - image).abs() * mask
        loss = error.sum() / (mask.sum().clamp_min(1) * self.channels)
        loss, terms = self.with_guide(loss, {"l1": loss.detach()}, prediction, guide)
        pictures = None
        if batch.shown:
            rows = list(range(min(batch.shown, len(image))))
            told = torch.where(mask, prediction[:, : self.channels].to(image.dtype), image)
            shown_guide = None if self.encoder.guide == "none" else guide[rows]
            pictures = Pictures(image[rows], filled[rows], told[rows], shown_guide, rows, ["masked"] * len(rows))
        return StepResult(loss, terms, pictures)

    def reconstruct(self, seen: Tensor, guide: Tensor, hidden: Tensor | None, image: Tensor) -> Tensor:
        """See `Reconstructing.reconstruct`; hidden places are the token, or the mean of what is visible."""
        if hidden is None:
            features = self.encoder(self.encoder.prepare_input(seen, guide))
        elif self.token is not None:
            features = self.encoder.masked(self.encoder.prepare_input(seen, guide), hidden, self.token)
        else:
            axes = tuple(range(2, seen.ndim))
            visible = (~hidden).sum(axes, keepdim=True).clamp_min(1)
            mean = (seen * ~hidden).sum(axes, keepdim=True) / visible
            features = self.encoder(self.encoder.prepare_input(torch.where(hidden, mean, seen), guide))
        told = cropped(self.decoder(features.dense), seen.shape[2:])[:, : self.channels].float()
        return told if hidden is None else torch.where(hidden, told, seen)


@dataclass(frozen=True)
class MFM:
    """Masked frequency modelling: the inside or outside of a circle of the spectrum is removed and told.

    Args:
        augment: random flips, rotation, affine maps and histogram shifts.
        radius: of the circle in bins; "auto" is the published 16 at 224 pixels and in proportion elsewhere.
        low_probability: chance of an image to keep its low frequencies.
        exponent: of the distance of a coefficient; the published one is 1.
    """

    augment: bool = True
    radius: float | Literal["auto"] = "auto"
    low_probability: float = 0.5
    exponent: float = 1.0

    def __post_init__(self) -> None:
        circle.check_options(self.radius, self.low_probability)
        if not 0 < self.exponent < math.inf:
            raise InputError(f"--method.exponent {self.exponent}: expected a number above 0.")


@register_method("mfm", MFM)
class MFMMethod(Reconstructing):
    """Encoder and light decoder trained on what was removed of the spectrum."""

    shows = "with a part of their spectrum removed, the same one each time, and reconstructed"

    def __init__(self, options: MFM, setting: Setting) -> None:
        super().__init__(setting, augment=options.augment)
        encoder = self.encoder
        self.options = options
        self.decoder = ReconstructionDecoder(encoder.channels, encoder.stride, self.outputs, encoder.dims)

    def forward(self, batch: Batch) -> StepResult:
        image, guide = self.clean(batch)
        with torch.no_grad():
            seen, removed, is_low = circle_mask(
                image,
                self.draws(batch),
                radius=self.options.radius,
                low_probability=self.options.low_probability,
            )
            inputs = self.encoder.prepare_input(seen, guide)
        prediction = self.decoder(self.encoder(inputs).dense, tuple(image.shape[2:]))
        told = prediction[:, : self.channels]
        loss = removed_distance(told, image, removed, self.options.exponent)
        loss, terms = self.with_guide(loss, {"frequency": loss.detach()}, prediction, guide)
        pictures = None
        if batch.shown:
            rows = list(range(min(batch.shown, len(image))))
            labels = ["low kept" if low else "high kept" for low in is_low[rows].tolist()]
            shown_guide = None if self.encoder.guide == "none" else guide[rows]
            pictures = Pictures(image[rows], seen[rows], told[rows], shown_guide, rows, labels)
        return StepResult(loss, terms, pictures)

    def positions_to_show(self, start: int, count: int) -> list[int]:
        """Positions at which the low and the high frequencies are kept by turns, where both can be."""
        if not 0 < self.options.low_probability < 1:
            return super().positions_to_show(start, count)
        chosen: list[int] = []
        for position in range(start, start + 64 * count):
            low = self.draws(_at(position)).host_uniform("circle")[0] < self.options.low_probability
            if low == (len(chosen) % 2 == 0):
                chosen.append(position)
                if len(chosen) == count:
                    return chosen
        return super().positions_to_show(start, count)


def _at(position: int) -> Batch:
    return Batch(torch.empty(1), torch.empty(1), [position])


def removed_distance(prediction: Tensor, target: Tensor, removed: Tensor, exponent: float = 1.0) -> Tensor:
    """Mean over the removed coefficients of ``|F(prediction) - F(target)|^exponent``, F orthonormal; 0-d float32.

    ``prediction``, ``target``: ``(B, C, *S)``. ``removed``: bool ``(B, 1, *half)`` on the half spectrum, whose columns
    stand for their mirror images too. Each image counts alike.
    """
    shape = tuple(target.shape[2:])
    with torch.autocast(target.device.type, enabled=False):
        residual = prediction.float() - target.float()
        spectrum = torch.fft.rfftn(residual, dim=tuple(range(2, residual.ndim)), norm="ortho")
        distance = spectrum.abs()
        if exponent != 1:
            distance = distance.clamp_min(1e-12).pow(exponent)
        weight = removed.to(distance.dtype)
        weight[..., 1 : (shape[-1] + 1) // 2] *= 2
        total = (distance * weight).flatten(1).sum(1)
        return (total / (weight.flatten(1).sum(1).clamp_min(1) * target.shape[1])).mean()
