"""A frozen encoder with a segmentation head: what is trained, saved, and applied to whole images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frepa.datasets.labels import LabelMap
from frepa.downstream.head_files import load_weights, open_head, save_head
from frepa.downstream.windowed import WindowedHead, WindowSettings, read_settings
from frepa.encoders.contract import Encoder
from frepa.encoders.reference import EncoderReference
from frepa.errors import InputError
from frepa.heads.reading import map_shapes, read_maps
from frepa.heads.segmenter import DIRECT_SHARE, SegmentationHead
from frepa.images.geometry import resize
from frepa.optimizers import muon_group

TASK = "segmentation"


class Prediction(NamedTuple):
    """classes ``(*S)`` uint8, 0 = background; probabilities ``(K, *S)`` float32 in [0, 1], at the image's own size."""

    classes: np.ndarray
    probabilities: np.ndarray


class Segmenter(WindowedHead):
    """Encoder (frozen, always in evaluation mode) and segmentation head; ``labels`` says what a class is written as.

    ``segmenter(inputs)`` gives logits (B, K, *S), in two steps: ``read``, what the frozen part makes of the inputs,
    which is the same whenever they are, and ``answer``, what trains. ``features`` are the maps read, of
    ``heads.reading.FEATURES``.
    """

    head: SegmentationHead

    def __init__(
        self,
        encoder: Encoder,
        head: SegmentationHead,
        settings: WindowSettings,
        labels: LabelMap,
        *,
        features: str = "last",
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(encoder, head, settings, autocast=autocast)
        self.labels = labels
        self.features = features

    def read(self, inputs: Tensor) -> list[Tensor]:
        """The encoder's maps of a batch (B, in_channels, *S), see ``heads.reading.read_maps``."""
        return self.recalled((self.features,), [inputs], lambda: self._read(inputs))

    def _read(self, inputs: Tensor) -> list[Tensor]:
        self.encoder.eval()
        with self.through_encoder(), self._autocast(inputs.device):
            if self.cache is not None:
                return [torch.stack([self.cache.features(window) for window in inputs]).to(inputs.device)]
            return read_maps(self.encoder, inputs, self.features)

    def answer(self, maps: list[Tensor], size: tuple[int, ...]) -> Tensor:
        """Logits (B, K, *size) of what ``read`` gives."""
        with self._autocast(maps[-1].device):
            if self.head.before is not None:
                maps = [self.encoder.transform(self.head.before(maps[0])).dense]
            return self.head(maps, size)

    def head_groups(self) -> list[dict[str, Any]]:
        """The convolutions are Muon's, and a linear part that is overruled moves slowly."""
        groups: list[dict[str, Any]] = []
        if kernels := self.head.kernels():
            groups.append(muon_group(kernels))
        if self.head.overruled:
            groups.append({"params": list(self.head.direct.parameters()), "share": DIRECT_SHARE})
        return groups

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, K, *S) of a batch of inputs."""
        return self.answer(self.read(inputs), tuple(inputs.shape[2:]))

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def window_probabilities(self, image: Tensor, guide: Tensor) -> Tensor:
        """Class probabilities (K, *S) float32 of a whole image (C, *S) in [0, 1] and its guide (1, *S) at working size.

        Of overlapping windows the logits are averaged with Gaussian weights.
        """
        return self.over_windows(image, guide, self).softmax(0)

    @torch.no_grad()
    def over_windows(
        self, image: Tensor, guide: Tensor, answer: Callable[[Tensor], Tensor], *, overlap: float | None = None
    ) -> Tensor:
        """``answer(windows (B, in_channels, *crop)) -> (B, K, *crop)`` averaged over a whole image, (K, *S) float32.

        ``overlap`` None is that of the settings.
        """
        self.eval()
        inputs = self.encoder.prepare_input(image[None], guide[None])
        size = tuple(inputs.shape[2:])
        # Where the image is smaller than a window, zeros follow it as they do in training: encoders know positions.
        missing = [max(0, to - n) for n, to in zip(size, self.settings.crop)]
        found = self.by_windows(
            F.pad(inputs, [n for after in reversed(missing) for n in (0, after)]),
            lambda windows: answer(windows).float(),
            self.settings.overlap if overlap is None else overlap,
        )
        return found[0][(slice(None), *(slice(0, n) for n in size))]

    @torch.no_grad()
    def predict(self, image: np.ndarray) -> Prediction:
        """Segment a whole image ``(C, *S)`` float32 in [0, 1], C = 1 or 3."""
        size = tuple(image.shape[1:])
        working = torch.from_numpy(resize(image, self.working_size(size))).to(self.device)
        probabilities = self.window_probabilities(working, self.guide(working)).cpu().numpy()
        probabilities = resize(probabilities, size, "bilinear")
        return Prediction(probabilities.argmax(0).astype(np.uint8), probabilities)

    def save(self, folder: Path, reference: EncoderReference, extra: dict[str, Any] | None = None) -> Path:
        """Write the head alone: ``head.safetensors`` (which explains itself) and ``head.json`` (the same, to read)."""
        description = {
            "task": TASK,
            "head": self.head.config,
            "features": self.features,
            "labels": asdict(self.labels),
            "settings": asdict(self.settings),
            "encoder": reference.as_dict(),
            "extra": extra or {},
        }
        return save_head(folder, self, description)


def build_head(encoder: Encoder, classes: int, *, kind: str, features: str, reach: int = 1) -> SegmentationHead:
    """A fresh head for an encoder; of a slice transfer a linear one reads the 2D encoder's maps, slice by slice.

    Raises:
        InputError: a slice transfer shows one map only.
    """
    if not encoder.stacks:
        return SegmentationHead(map_shapes(encoder, features), classes, kind=kind, reach=reach)
    if features != "last":
        raise InputError(f"--features {features}: a slice transfer shows its last map only. Leave the option out.")
    last, inner = encoder.stage_shapes[-1], encoder.frozen_part.channels
    if kind == "linear":
        return SegmentationHead([last._replace(channels=inner)], classes, kind=kind, reach=reach)
    return SegmentationHead([last], classes, kind=kind, before=inner)


def load_segmenter(
    run: str | Path, *, encoder: str | Encoder | None = None, device: str | torch.device = "cpu"
) -> Segmenter:
    """The segmenter of a finished run.

    Args:
        run: run folder or its ``head.safetensors``.
        encoder: where the encoder is now, or the encoder itself; None: see `head_files.open_head`.
        device: where to put both.

    Raises:
        InputError: no segmentation head there, or the encoder is gone or another one.
    """
    path, description, frozen = open_head(run, TASK, encoder)
    if description["head"]["kind"] == "conv" and "planes" not in description["head"]:
        raise InputError(
            f"{path}: made by an older frepa, whose convolutions learnt far more slowly and are no part of this one. "
            "Train it again with the same command (its config.yaml is beside it), or install the frepa that made it."
        )
    with torch.random.fork_rng(devices=[]):
        # A head without this word is of a version that grew all maps to multiples of 16, and answers best so.
        head = SegmentationHead(**{"multiple": 16, **description["head"]})
    load_weights(path, frozen, head)
    settings = WindowSettings(**read_settings(description["settings"]))
    known = description["labels"]
    labels = LabelMap(tuple(known["values"]), known["threshold"], tuple(known.get("names", ())))
    return Segmenter(frozen, head, settings, labels, features=description["features"]).to(device).eval()
