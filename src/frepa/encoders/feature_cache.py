"""Features of a frozen 2D encoder on disk: every epoch but the first skips the slow half of a slice transfer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from frepa.encoders.contract import Encoder
from frepa.errors import InputError, nearest
from frepa.files import clean_temporaries, write_tensors

_DAY = 86_400.0
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class FeatureCache:
    """``cache.features(volume)`` computes once what ``encoder.encode_frozen`` gives, and reads it afterwards.

    A file is named by the weights and options of its frozen part and by the content of the volume, so another encoder,
    another scaling or another guide never meets an old file. Names hold no patient's data, only digests. Several
    processes may share a folder: files are written under a temporary name and renamed.

    Args:
        folder: made when it is missing.
        encoder: one of which something trains with every head (a slice transfer), on the device it is on.
        dtype: "float32" keeps features exactly; "float16" and "bfloat16" need half the disk.
    """

    def __init__(self, folder: str | Path, encoder: Encoder, *, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} of a feature cache is not known. {nearest(dtype, DTYPES)}")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        clean_temporaries(self.folder, older_than=_DAY)  # of killed processes; others may be at work
        self.encoder = encoder
        self.dtype = dtype
        self._frozen = fingerprint(encoder.frozen_part)

    @property
    def _device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def path(self, volume: Tensor) -> Path:
        """Where the features of this volume are, or will be."""
        # Reduced precision changes what the encoder gives, so a run in bf16 must not feed one in fp32.
        kind = self._device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else ""
        key = f"{self._frozen} {self.dtype} {precision} {volume.dtype} {tuple(volume.shape)}"
        digest = hashlib.sha256(key.encode())
        digest.update(_raw_bytes(volume))
        return self.folder / f"{digest.hexdigest()[:40]}.safetensors"

    def features(self, volume: Tensor) -> Tensor:
        """(in_channels, D, H, W) as ``prepare_input`` gives it -> (encoder2d.channels, D, h, w) on the CPU."""
        path = self.path(volume)
        if path.is_file():
            try:
                return load_file(path)["features"]
            except (SafetensorError, KeyError, OSError):
                path.unlink(missing_ok=True)  # cut short by a full disk: made again below
        features = self.encoder.encode_frozen(volume[None].to(self._device)).dense[0]
        features = features.to("cpu", DTYPES[self.dtype]).contiguous()
        write_tensors(path, {"features": features}, {}, sync=False)
        return features


def fingerprint(encoder: Encoder) -> str:
    """SHA-256 of an encoder's options and weights: equal for an encoder and its copy loaded from a file."""
    digest = hashlib.sha256(json.dumps(encoder.config, sort_keys=True).encode())
    for key, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_raw_bytes(tensor))
    return digest.hexdigest()


def _raw_bytes(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy()
