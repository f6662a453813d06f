"""What methods that reconstruct images have in common: clean images, and the guide as an input or as a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frepa.corruption.guide import hessian_guide
from frepa.draws import Draws, sample_keys
from frepa.pretraining.methods.augment import Augmentation
from frepa.pretraining.methods.contract import Batch, Method, Setting

# Which stream of draws is whose; changing a number changes every run.
AUGMENT, CORRUPT = 0, 1


class Reconstructing(Method):
    """Base: augmentation and guide of a batch, and the guide's term where it is a target.

    ``outputs``: channels that a decoder has to give, the image's and behind them the guide's where it is a target.
    ``decoder``: what tells the image from the encoder's dense map, unless the method tells it otherwise.
    """

    decoder: nn.Module

    def __init__(self, setting: Setting, *, augment: bool) -> None:
        super().__init__()
        self.encoder = setting.encoder
        self.seed = setting.seed
        self.channels = setting.channels
        self.guide_target = setting.guide_target
        self.outputs = setting.channels + (setting.guide_target != "none")
        self.augmentation = Augmentation() if augment else None

    @torch.no_grad()
    def clean(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images as they are to be reconstructed, ``(B, C, *S)``, and their guide ``(B, 1, *S)``."""
        image = batch.images
        if batch.augment and self.augmentation is not None:
            image = self.augmentation(image, self.augmenting(batch))
        kind = self.encoder.guide if self.guide_target == "none" else self.guide_target
        return image, hessian_guide(image, kind=kind)

    @classmethod
    def as_kept(cls, options: Any, state: Mapping[str, Tensor]) -> Any:
        """The options with which weights that were kept fit: where they are "auto", their rule may be another now."""
        return options

    def reconstruct(self, seen: Tensor, guide: Tensor, hidden: Tensor | None, image: Tensor) -> Tensor:
        """What the decoder tells of images that were not corrupted by the method itself: (B, C, *S) float32.

        What the method's own pictures show: of a method that tells hidden patches alone, the others as they were seen.

        Args:
            seen: the corrupted images (B, C, *S).
            guide: (B, 1, *S) for the encoder.
            hidden: bool (B, 1, *S), where patches were hidden; None where nothing was.
            image: the clean images, for a method that tells patches without their mean and spread.
        """
        features = self.encoder(self.encoder.prepare_input(seen, guide))
        return self.decoder(features.dense, tuple(seen.shape[2:]))[:, : self.channels].float()

    def augmenting(self, batch: Batch) -> Draws:
        """Random numbers of each image's augmentation."""
        return Draws(sample_keys(self.seed, batch.positions, AUGMENT), batch.images.device)

    def draws(self, batch: Batch, view: int = 0) -> Draws:
        """Random numbers of each image's corruption."""
        return Draws(sample_keys(self.seed, batch.positions, CORRUPT + view), batch.images.device)

    def with_guide(
        self, loss: Tensor, terms: dict[str, Tensor], prediction: Tensor, guide: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms with the guide's where it is a target: its mean absolute error over all pixels.

        ``prediction``: ``(V * B, outputs, *S)``. ``guide``: ``(B, 1, *S)``.
        """
        if self.guide_target == "none":
            return loss, terms
        told = prediction[:, self.channels :].float().unflatten(0, (-1, len(guide)))
        term = (told - guide).abs().mean()
        return loss + term, terms | {"guide": term.detach()}


def cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    """``(..., *S)`` without what was added at the end of its last axes to make ``S`` of ``size``."""
    for axis, length in enumerate(reversed(size), start=1):
        x = x.narrow(-axis, 0, length)
    return x
