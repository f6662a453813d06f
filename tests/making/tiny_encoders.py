"""Encoders of a few hundred parameters, registered as tiny_for_tests (2D) and tiny3d_for_tests."""

from __future__ import annotations

import torch

from frepa.encoders.contract import Encoder, Features
from frepa.encoders.registry import register


class TinyEncoder(Encoder):
    """Stride 2, with dropout and batch statistics, which a frozen encoder must not use or change."""

    def __init__(self, name: str, dims: int, image_channels: int, guide: str) -> None:
        super().__init__(
            name=name, dims=dims, image_channels=image_channels, guide=guide, channels=8, embedding_channels=8,
            stride=2, size_multiple=2, options={},
        )  # fmt: skip
        conv, norm = (torch.nn.Conv2d, torch.nn.BatchNorm2d) if dims == 2 else (torch.nn.Conv3d, torch.nn.BatchNorm3d)
        self.trunk = torch.nn.Sequential(
            conv(image_channels + 1, 8, 4, stride=2, padding=1), norm(8), torch.nn.ReLU(), torch.nn.Dropout(0.5)
        )

    def extract(self, x: torch.Tensor) -> Features:
        y = self.trunk(x)
        return Features(y, y)


@register("tiny_for_tests", dims=2)
def _tiny2(name: str, *, image_channels: int, guide: str) -> Encoder:
    return TinyEncoder(name, 2, image_channels, guide)


@register("tiny3d_for_tests", dims=3)
def _tiny3(name: str, *, image_channels: int, guide: str) -> Encoder:
    return TinyEncoder(name, 3, image_channels, guide)
