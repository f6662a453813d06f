"""Mixed precision that leaves the images alone: what the encoder computes may be rounded, what it is judged by not."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning_fabric.plugins.precision import MixedPrecision, Precision

_MIXED: dict[str, Literal["16-mixed", "bf16-mixed"]] = {"bf16": "bf16-mixed", "fp16": "16-mixed"}


class FullPrecisionInput(MixedPrecision):
    """As Fabric's own, but a batch keeps its float32.

    Fabric rounds every input to the type of the products, bfloat16 to 8 significant bits. The images are the target of
    the loss and what guide, augmentation and spectra are made of; autocast rounds them where a product asks for it.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def precision_plugin(precision: str, device: torch.device) -> Precision:
    """What Fabric is given for fp32, bf16 or fp16 on a kind of device."""
    if precision == "fp32":
        return Precision()
    return FullPrecisionInput(_MIXED[precision], device.type)
