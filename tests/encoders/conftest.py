"""Encoders that cost nothing, for tests that only count and measure shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from frepa.encoders.contract import Encoder
from frepa.encoders.registry import build_encoder


@pytest.fixture(scope="session")
def build_light() -> Callable[..., Encoder]:
    """``build_light(name, **options)``: on the meta device where the network can be built there, else on the CPU."""

    def build(name: str, **options: object) -> Encoder:
        try:
            with torch.device("meta"):
                return build_encoder(name, **options)
        except RuntimeError as error:
            # MONAI's SwinUNETR, and timm before 1.0.20, read a number back from a tensor while they are built.
            if "meta tensor" not in str(error):
                raise
            return build_encoder(name, **options)

    return build
