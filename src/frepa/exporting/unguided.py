"""An encoder whose guide channel is always zero, without the weights that would have read it."""

from __future__ import annotations

import torch

from frepa.encoders.contract import Encoder
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError


def without_guide(encoder: Encoder) -> Encoder:
    """The same function of the image, with an input for the image alone; itself where it has a guide to read.

    Zeros times any weight are zeros: leaving both out changes no output but for the order of sums.
    """
    if encoder.guide != "none" or not encoder.uses_guide:
        return encoder
    try:
        with torch.random.fork_rng(devices=[]):
            slim = build_encoder(**{**encoder.config, "uses_guide": False})
    except InputError:  # an encoder that always has the channel
        return encoder
    full, channels = encoder.state_dict(), encoder.image_channels
    own = slim.state_dict()
    slim.load_state_dict({k: full[k] if full[k].shape == v.shape else full[k][:, :channels] for k, v in own.items()})
    return slim.freeze()
