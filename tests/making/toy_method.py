"""A pretraining method from outside the package: one file, named on the command line, as CONTRIBUTING.md says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from frepa.pretraining.methods.contract import Batch, Method, Setting, StepResult
from frepa.pretraining.methods.registry import register_method


@dataclass(frozen=True)
class Toy:
    """Tells the mean of an image from its features.

    Args:
        weight: of the only term.
    """

    weight: float = 1.0


@register_method("toy", Toy)
class ToyMethod(Method):
    def __init__(self, options: Toy, setting: Setting) -> None:
        super().__init__()
        self.encoder = setting.encoder
        self.head = nn.Linear(setting.encoder.channels, 1)
        self.weight = options.weight

    def forward(self, batch: Batch) -> StepResult:
        features = self.encoder(self.encoder.prepare_input(batch.images, self.encoder.make_guide(batch.images)))
        told = self.head(features.dense.flatten(2).mean(2))[:, 0]
        term = (told - batch.images.flatten(1).mean(1)).abs().mean()
        labelled = batch.images.new_tensor(-1.0 if batch.labels is None else float((batch.labels >= 0).sum()))
        return StepResult(self.weight * term, {"mean_error": term.detach(), "labelled": labelled})

    def after_step(self, step: int, lr: float) -> dict[str, torch.Tensor]:
        return {"step_seen": torch.tensor(float(step))}
