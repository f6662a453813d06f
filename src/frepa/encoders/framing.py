"""A whole image brought before an encoder: to one size, with its guide."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frepa.encoders.contract import Encoder
from frepa.images.geometry import placement, resize, resize_pad


def framed(encoder: Encoder, image: np.ndarray, side: int) -> np.ndarray:
    """An image ``(C, *S)`` float32 in [0, 1] at the size the encoder is fed, aspect kept, zeros around.

    Type and range stay. ``side`` is that of the square (cube); of stacks that of each slice, while their number stays.
    """
    if not encoder.stacks:
        return resize_pad(image, (side,) * encoder.dims)
    place = placement(image.shape[2:], (side, side))
    frame = np.zeros((*image.shape[:2], side, side), np.float32)
    rows, columns = place.slices
    frame[:, :, rows, columns] = resize(image, (image.shape[1], *place.inner))
    return frame


@torch.no_grad()
def encoder_input(encoder: Encoder, frame: np.ndarray, device: torch.device) -> Tensor:
    """(in_channels, *S) on the device: a framed image and the guide computed from it."""
    image = torch.from_numpy(frame)[None].to(device)
    return encoder.prepare_input(image, encoder.make_guide(image))[0]
