"""A frozen encoder with a classification head: what is trained, saved, and applied to whole images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frepa.downstream.frozen import HeadOnFrozen
from frepa.downstream.head_files import load_weights, open_head, save_head
from frepa.encoders.contract import Encoder
from frepa.encoders.feature_cache import FeatureCache
from frepa.encoders.framing import encoder_input, framed
from frepa.encoders.reference import EncoderReference
from frepa.encoders.slice_transfer import pad_stacks
from frepa.heads.classifier import ClassificationHead
from frepa.images.intensity import Window

TASK = "classification"


@dataclass(frozen=True)
class ClassificationSettings:
    """How an image is brought before the network; training and prediction use the same.

    Attributes:
        image_size: side in pixels of the square (cube) an image is resized into, aspect kept, zeros around it; of a
            slice transfer the side of each slice, while the number of slices stays.
        window: CT window (``frepa.images.intensity.to_unit``).
        head: "linear", logistic regression; "mlp", which adds a hidden layer to it; "resnet", which adds a network.
        hidden: width of that hidden layer.
        pooling: of the embedding's positions, "mean" or "attention".
    """

    image_size: int
    window: Window = None
    head: str = "linear"
    hidden: int = 256
    pooling: str = "mean"


class Classifier(HeadOnFrozen):
    """Encoder (frozen, always in evaluation mode) and head.

    Only ``trained_parameters()`` train: the head's, and of a slice transfer its blocks'. An image passes in three
    steps, so that the first two are done once where they stay the same: ``inputs`` (image to encoder input),
    ``encode`` (what the frozen part makes of it), ``forward`` (what trains).

    Attributes:
        classes: names, in the order of scores.
        several: classes do not exclude each other: a sigmoid per class instead of a softmax over them.
        cache: keeps what the 2D encoder of a slice transfer makes of each volume; None keeps nothing.
    """

    head: ClassificationHead

    def __init__(
        self,
        encoder: Encoder,
        settings: ClassificationSettings,
        classes: Sequence[str],
        *,
        several: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder.freeze()
        inner = encoder.frozen_part.channels if encoder.stacks else None
        linear = settings.head == "linear"
        self.head = ClassificationHead(
            inner if inner is not None and linear else encoder.embedding_channels,
            len(classes),
            hidden=settings.hidden if settings.head == "mlp" else 0,
            network=encoder.dims if settings.head == "resnet" else 0,
            pooling=settings.pooling,
            before=None if linear else inner,
        )
        self.settings = settings
        self.classes = tuple(classes)
        self.several = several
        self.autocast = autocast
        self.cache: FeatureCache | None = None
        self.eval()

    @property
    def trains_blocks(self) -> bool:
        """Whether blocks of the encoder train with the head.

        Under a linear head they do not: it reads the mean of what the frozen part makes of all slices.
        """
        return self.head.before is not None

    @property
    def encoded_by(self) -> tuple:
        """What of the head decides how an image is encoded."""
        own = self.settings
        network = self.head.network is not None
        return own.image_size, own.window, own.pooling, network, self.trains_blocks, str(self.autocast)

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Bring an image ``(C, *S)`` float32 in [0, 1] to the size the encoder is fed; same type and range."""
        return framed(self.encoder, image, self.settings.image_size)

    def inputs(self, framed: np.ndarray) -> Tensor:
        """(in_channels, *S) on the device: a framed image and the guide computed from it."""
        return encoder_input(self.encoder, framed, self.device)

    def encode(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """What the encoder makes of a batch; without gradients, unless some of it is tuned.

        Returns:
            The embedding (B, channels, *s), already pooled to (B, channels) where the head takes the mean, and None.
            Of a slice transfer the 2D features (B, channels, D, h, w), and (B, D), False at padding slices.
        """
        self.encoder.eval()
        with self.through_encoder(), self._autocast():
            if self.encoder.stacks:
                encoded = self.cache.features if self.cache is not None else self._slices
                stacks = [encoded(volume) for volume in inputs]
                if not self.trains_blocks:
                    return torch.stack([stack.flatten(1).mean(1) for stack in stacks]).float().to(self.device), None
                stack, mask = pad_stacks(stacks)
                return stack.to(self.device), mask.to(self.device)
            embedding = self.encoder(torch.stack(list(inputs))).embedding
        pooled = self.settings.pooling == "mean" and self.head.network is None
        with self.through_encoder():
            return (self.head.pool(embedding) if pooled else embedding).float(), None

    def _slices(self, volume: Tensor) -> Tensor:
        return self.encoder.encode_frozen(volume[None]).dense[0]

    def forward(self, encoded: Tensor, mask: Tensor | None = None) -> Tensor:
        """What ``encode`` gives, to logits (B, K)."""
        with self._autocast():
            if self.head.before is not None:
                encoded = self.encoder.transform(self.head.before(encoded), mask).embedding
            return self.head(encoded, mask)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) float64 in [0, 1], on the CPU; rows sum to 1 unless classes do not exclude each other."""
        # In float32 all answers within 3e-8 of 1 are one number, and an AUC that ranks them sees ties
        logits = logits.cpu().double()
        return logits.sigmoid() if self.several else logits.softmax(1)

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities ``(n, K)`` float64 of whole images ``(C, *S)`` float32 in [0, 1], C = 1 or 3, all at once."""
        self.eval()
        encoded, mask = self.encode([self.inputs(self.frame(image)) for image in images])
        found: np.ndarray = self.probabilities(self(encoded, mask)).numpy()
        return found

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def save(self, folder: Path, reference: EncoderReference, extra: dict[str, Any] | None = None) -> Path:
        """Write the head, and what of the encoder trained with it: ``head.safetensors`` and ``head.json``."""
        description = {
            "task": TASK,
            "classes": list(self.classes),
            "several": self.several,
            "settings": asdict(self.settings),
            "encoder": reference.as_dict(),
            "extra": extra or {},
        }
        return save_head(folder, self, description)


def load_classifier(
    run: str | Path, *, encoder: str | Encoder | None = None, device: str | torch.device = "cpu"
) -> Classifier:
    """The classifier of a finished run.

    Args:
        run: run folder (of a run in folds ``RUN/folds/1`` and so on), or its ``head.safetensors``.
        encoder: where the encoder is now, or the encoder itself; None: see `head_files.open_head`.
        device: where to put both.

    Raises:
        InputError: no classification head there, or the encoder is gone or another one.
    """
    path, description, frozen = open_head(run, TASK, encoder)
    settings = dict(description["settings"])
    if isinstance(settings["window"], list):
        settings["window"] = tuple(settings["window"])
    with torch.random.fork_rng(devices=[]):
        classifier = Classifier(
            frozen, ClassificationSettings(**settings), description["classes"], several=description["several"]
        )
    load_weights(path, frozen, classifier.head)
    return classifier.to(device).eval()
