"""Frepa: two corrupted views of each image, reconstructed with the guide beside them (Frepa Eq. 5, 6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from frepa.corruption.dual import Corrupted, Corruption
from frepa.corruption.guide import hessian_guide
from frepa.draws import Draws, sample_keys
from frepa.encoders.contract import Encoder
from frepa.heads.decoder import ReconstructionDecoder
from frepa.pretraining.methods.augment import Augmentation
from frepa.pretraining.methods.contract import Method, StepResult, register_method
from frepa.pretraining.methods.objective import Objective

# Which stream of draws is whose; changing a number changes every run.
_AUGMENT, _FIRST_VIEW = 0, 1


@register_method("frepa", "frequency dual-component and histogram-equalized masking with a Hessian guide")
class FrepaMethod(Method):
    """Encoder and light decoder trained to undo the dual corruption.

    Args:
        encoder: takes image and guide channels (``frepa.encoders.contract.Encoder``).
        channels: image channels of the source, 1 or 3; also the channels reconstructed.
        seed: of the run; together with a sample's position it decides all that the sample is subjected to.
        corruption, objective, augmentation: their options; augmentation may be None.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        channels: int,
        seed: int,
        corruption: Corruption,
        objective: Objective,
        augmentation: Augmentation | None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = ReconstructionDecoder(encoder.channels, encoder.stride, channels, encoder.dims)
        self.seed = seed
        self.corruption = corruption
        self.objective = objective
        self.augmentation = augmentation
        # The consistency term needs two views (Eq. 10); without it one view is the same objective at half the cost.
        self.views = 2 if objective.consistency > 0 else 1

    def forward(
        self,
        image: Tensor,
        grey: Tensor,
        positions: list[int],
        *,
        augment: bool = True,
        generator_loss: Callable[[Tensor], Tensor] | None = None,
    ) -> StepResult:
        with torch.no_grad():
            if augment and self.augmentation is not None:
                keys = sample_keys(self.seed, positions, _AUGMENT)
                image = self.augmentation(image, Draws(keys, image.device))
            guide = hessian_guide(image, kind=self.encoder.guide)
            views = [self._corrupt(image, grey, positions, view) for view in range(self.views)]
            corrupted, mask, is_frequency = (torch.cat(parts) for parts in zip(*views))
            inputs = self.encoder.prepare_input(corrupted, guide.repeat(self.views, *[1] * (guide.ndim - 1)))
        features = self.encoder(inputs)
        prediction = self.decoder(features.dense, tuple(image.shape[2:]))
        pair = (features.embedding[: len(image)], features.embedding[len(image) :]) if self.views == 2 else None
        loss, terms = self.objective(prediction, image, mask, pair, generator_loss)
        return StepResult(loss, terms, prediction, image, corrupted, guide, is_frequency)

    def positions_to_show(self, start: int, count: int) -> list[int]:
        """Positions at which the first view is corrupted in the spectrum and in the image by turns."""
        wanted = [row % 2 == 0 for row in range(count)]
        chosen: list[int] = []
        for position in range(start, start + 64 * count):
            in_frequency = self.corruption.in_frequency(Draws(sample_keys(self.seed, [position], _FIRST_VIEW)))[0]
            if in_frequency == wanted[len(chosen)]:
                chosen.append(position)
                if len(chosen) == count:
                    return chosen
        return super().positions_to_show(start, count)

    def _corrupt(self, image: Tensor, grey: Tensor, positions: list[int], view: int) -> Corrupted:
        """Corrupt every row; grey rows of a colour batch are corrupted once and replicated, as grey images are."""
        draws = Draws(sample_keys(self.seed, positions, _FIRST_VIEW + view), image.device)
        if image.shape[1] == 1 or not bool(grey.any()):  # grey lives on the CPU: no device sync
            return self.corruption(image, draws)
        result = Corrupted(
            torch.empty_like(image),
            image.new_empty(image.shape[0], 1, *image.shape[2:]),
            torch.empty(image.shape[0], dtype=torch.bool, device=image.device),
        )
        for is_grey in (True, False):
            rows = torch.nonzero(grey == is_grey).flatten().tolist()
            if rows:
                part = self.corruption(image[rows, :1] if is_grey else image[rows], draws.select(rows))
                for whole, piece in zip(result, part):
                    whole[rows] = piece
        return result
