"""The image itself as an encoder: for networks that train end to end on it, in the place of a head.

``pixels:2d`` and ``pixels:3d`` have no weights. What stands beside frozen encoders in a table, trained on the same
cases and crops and tested alike, is then the same run with another head (``--head unet``, ``resnet``).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from frepa.encoders.contract import Encoder, Features
from frepa.encoders.registry import Scheme, build_encoder, register, register_scheme
from frepa.errors import InputError, nearest

_AXES = {"2d": 2, "3d": 3}


class Pixels(Encoder):
    """``dense`` and ``embedding`` are the input: the image's channels, and the guide where there is one."""

    def __init__(self, name: str, *, image_channels: int, guide: str) -> None:
        channels = image_channels + (guide != "none")
        super().__init__(
            name=name, dims=_AXES[name.removeprefix("pixels:")], image_channels=image_channels, guide=guide,
            channels=channels, embedding_channels=channels, stride=1, size_multiple=1, options={},
        )  # fmt: skip
        self.uses_guide = guide != "none"

    @property
    def untrained(self) -> str:
        """It is its own floor."""
        return f"{self.name},guide={self.guide}"

    def extract(self, x: Tensor) -> Features:
        """The input, without the guide's zeros where there is none."""
        x = self.without_unused(x)
        return Features(x, x)


def _load(name: str, options: dict[str, Any]) -> Encoder:
    """``pixels:2d`` or ``pixels:3d``, with ``guide=KIND`` to see the guide beside the image."""
    if name not in _AXES:
        raise InputError(f"pixels:{name}: expected pixels:2d for images or pixels:3d for volumes.")
    for option in options:
        if option != "guide":
            raise InputError(f"pixels:{name} has no option {option!r}. {nearest(option, ['guide'])}")
    return build_encoder(f"pixels:{name}", guide=str(options.get("guide", "none")))


for _name, _dims in _AXES.items():
    register(f"pixels:{_name}", dims=_dims)(Pixels)
register_scheme("pixels", Scheme(_load, origin=lambda rest: "none"))
