"""What any trunk trained elsewhere needs: the input it knows, from ours, and its weights out of a checkpoint."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from frepa.errors import InputError
from frepa.names import shown

# Names under which training programs keep the network inside a checkpoint, and what they put before its keys.
_NESTS = ("state_dict", "model", "model_state", "model_ema", "teacher", "network_weights")


class TrunkInput(nn.Module):
    """Our input (B, image_channels + 1, *S), image in [0, 1] and guide, to what a trunk takes.

    Args:
        name: of the encoder, for messages.
        image_channels: channels of the image. dims: 2 or 3.
        uses_guide: False for a trunk that has no input for the guide: the channel is dropped.
        mean, std: per image channel, applied to images in [0, 1]; both or neither. Kept in the encoder's description,
            not among its weights.
        size: the only extent per axis that the trunk takes, or None for any.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        name: str,
        image_channels: int,
        dims: int,
        *,
        uses_guide: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise InputError("mean and std of an encoder's input belong together: give both, or neither.")
        self.name, self.image_channels, self.uses_guide, self.size = name, image_channels, uses_guide, size
        # The options that differ from the plain ones, as JSON values.
        self.options: dict[str, Any] = {}
        if mean is not None and std is not None:
            self.options.update(mean=list(mean), std=list(std))
        for key, values in (("mean", mean), ("std", std)):
            buffer = None if values is None else torch.tensor(values, dtype=torch.float32).view(1, -1, *[1] * dims)
            self.register_buffer(key, buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, image_channels + 1, *S) to (B, channels of the trunk, *S). Raises InputError on a size it cannot take."""
        if self.size is not None and any(length != self.size for length in x.shape[2:]):
            wanted, found = (" x ".join(map(str, shape)) for shape in ((self.size,) * (x.ndim - 2), x.shape[2:]))
            raise InputError(f"encoder {self.name} takes images of {wanted} only (its image_size), found {found}.")
        return self.scaled(x if self.uses_guide else x[:, : self.image_channels])

    def scaled(self, x: Tensor) -> Tensor:
        """What the trunk takes, (B, C, *S), from an image in [0, 1] and, where the trunk has it, the guide after it."""
        if self.mean is None or self.std is None:
            return x
        image, guide = x[:, : self.image_channels], x[:, self.image_channels :]
        image = (image - self.mean) / self.std
        return torch.cat([image, guide], dim=1) if guide.shape[1] else image


def read_state_dict(path: Path, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, Tensor]:
    """Tensors of a local .safetensors file or torch checkpoint, taken out of what training programs wrap them in.

    Those alone whose names are ``wanted``; of a .safetensors file the others are not read.
    """
    if not os.path.isfile(path):
        here = "is a folder: name the file in it" if path.is_dir() else "was not found"
        raise InputError(f"checkpoint {shown(path)} {here}.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                return {key: file.get_tensor(key) for key in names if wanted(key)}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"checkpoint {path} holds Python objects beside its tensors, and running them is not safe. Where you trust "
            "it, load it in Python and write its state dict with safetensors.torch.save_file."
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # the formats before zip files fail in as many ways as there are bytes
        raise InputError(f"checkpoint {path} cannot be read: {shown(str(error)[:200])}") from None
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {key: value for key, value in named if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"checkpoint {path} holds no state dict (a dictionary of named tensors).")
    return {key: value for key, value in tensors.items() if wanted(key)}
