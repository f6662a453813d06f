"""A frozen encoder with a segmentation head: what is trained, saved, and applied to whole images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor

from frepa.downstream.case_reading import read_header, read_scan, refuse_stack
from frepa.downstream.encoder_reference import EncoderReference, reopen_encoder
from frepa.downstream.frozen import HeadOnFrozen
from frepa.downstream.head_files import load_weights, read_head, save_head
from frepa.downstream.labels import LabelMap
from frepa.encoders.contract import Encoder
from frepa.encoders.feature_cache import FeatureCache
from frepa.heads.segmenter import SegmentationHead
from frepa.images.geometry import placement, resize
from frepa.images.intensity import Window, to_unit
from frepa.images.orientation import axis_codes, reorient, reorient_array
from frepa.images.scan import Scan

TASK = "segmentation"


@dataclass(frozen=True)
class SegmentationSettings:
    """How an image is brought before the network; training and prediction use the same.

    Attributes:
        crop: window per axis, in pixels.
        image_size: longer side the image is resized to (aspect kept); None keeps its own resolution.
        window: CT window (``frepa.images.intensity.to_unit``).
        overlap: share of a window that its neighbour covers too, [0, 1).
        batch_size: windows per forward pass.
    """

    crop: tuple[int, ...]
    image_size: int | None = None
    window: Window = None
    overlap: float = 0.5
    batch_size: int = 8


class Prediction(NamedTuple):
    """classes ``(*S)`` uint8, 0 = background; probabilities ``(K, *S)`` float32 in [0, 1], at the image's own size."""

    classes: np.ndarray
    probabilities: np.ndarray


class Segmenter(HeadOnFrozen):
    """Encoder (frozen, always in evaluation mode) and head.

    Only ``trained_parameters()`` train: the head's, and of a slice transfer its blocks'. ``labels`` says what a class
    is written as. ``cache`` keeps what the 2D encoder of a slice transfer makes of each window; None keeps nothing.
    """

    head: SegmentationHead

    def __init__(
        self,
        encoder: Encoder,
        head: SegmentationHead,
        settings: SegmentationSettings,
        labels: LabelMap,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder.freeze()
        self.head = head
        self.settings = settings
        self.labels = labels
        self.autocast = autocast
        self.cache: FeatureCache | None = None
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, in_channels, *S) as ``encoder.prepare_input`` makes them -> logits (B, K, *S)."""
        with torch.autocast(inputs.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.head(self.dense(inputs), tuple(inputs.shape[2:]))

    def dense(self, inputs: Tensor) -> Tensor:
        """The encoder's map of a batch of inputs, with gradients only for what of the encoder trains."""
        if self.cache is not None:
            transfer = self.cache.transfer
            features = torch.stack([self.cache.features(window) for window in inputs]).to(inputs.device)
            return transfer.transform(features).dense
        # The frozen part of a slice transfer sees to itself.
        trains = any(parameter.requires_grad for parameter in self.encoder.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            return self.encoder(inputs).dense

    def working_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Extent an image of ``size`` is worked on at."""
        if self.settings.image_size is None:
            return tuple(size)
        return placement(size, (self.settings.image_size,) * len(size)).inner

    def guide(self, image: Tensor) -> Tensor:
        """Guide channel (1, *S) of a whole clean image (C, *S) in [0, 1], by the encoder's own kind."""
        return self.encoder.make_guide(image[None].float())[0]

    @torch.no_grad()
    def window_probabilities(self, image: Tensor, guide: Tensor) -> Tensor:
        """Class probabilities (K, *S) float32 of a whole image by overlapping windows with Gaussian weights.

        image (C, *S) in [0, 1] and guide (1, *S) on the device, at working size.
        """
        self.eval()
        inputs = self.encoder.prepare_input(image[None], guide[None])
        size = tuple(inputs.shape[2:])
        # Where the image is smaller than a window, zeros follow it as they do in training: encoders know positions.
        missing = [max(0, to - n) for n, to in zip(size, self.settings.crop)]
        probabilities = sliding_window_inference(
            F.pad(inputs, [n for after in reversed(missing) for n in (0, after)]),
            self.settings.crop,
            self.settings.batch_size,
            lambda windows: self(windows).float().softmax(1),
            overlap=self.settings.overlap,
            mode="gaussian",
        )
        assert isinstance(probabilities, Tensor)
        return probabilities[0][(slice(None), *(slice(0, n) for n in size))]

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
            "head": {
                "channels": self.encoder.channels,
                "stride": self.encoder.stride,
                "classes": self.head.classes,
                "dims": self.encoder.dims,
            },
            "labels": asdict(self.labels),
            "settings": asdict(self.settings),
            "encoder": reference.as_dict(),
            "extra": extra or {},
        }
        return save_head(folder, self.encoder, self.head, description)


def load_segmenter(run: str | Path, *, encoder: str | None = None, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter of a finished run.

    Args:
        run: run folder or its ``head.safetensors``.
        encoder: where the encoder is now; None: where it was during training. Its weights must be the same.
        device: where to put both.

    Raises:
        InputError: no segmentation head there, or the encoder is gone or another one.
    """
    path, description = read_head(run, TASK)
    frozen = reopen_encoder(EncoderReference(**description["encoder"]), encoder)
    stride = description["head"]["stride"]
    shape = description["head"] | {"stride": tuple(stride) if isinstance(stride, list) else stride}
    with torch.random.fork_rng(devices=[]):
        head = SegmentationHead(**shape)
    load_weights(path, frozen, head)
    settings = dict(description["settings"])
    settings["crop"] = tuple(settings["crop"])
    if isinstance(settings["window"], list):
        settings["window"] = tuple(settings["window"])
    labels = LabelMap(tuple(description["labels"]["values"]), description["labels"]["threshold"])
    return Segmenter(frozen, head, SegmentationSettings(**settings), labels).to(device).eval()


def predict_case(segmenter: Segmenter, path: str | Path) -> tuple[Prediction, Scan]:
    """Segment one image file; the prediction lies in the file's own axes, as the scan does.

    Raises:
        InputError: the file is damaged or has another number of axes than the encoder.
    """
    dims = segmenter.encoder.dims
    refuse_stack(Path(path), read_header(Path(path), dims, canonical=False).count, dims)
    scan = read_scan(Path(path), dims, canonical=False)
    turned = reorient(scan)
    found = segmenter.predict(to_unit(turned, window=segmenter.settings.window))
    probabilities = turn_back(found.probabilities, turned.affine, scan.affine)
    return Prediction(turn_back(found.classes[None], turned.affine, scan.affine)[0], probabilities), scan


def turn_back(array: np.ndarray, affine: np.ndarray | None, native: np.ndarray | None) -> np.ndarray:
    """``(C, *S)`` with ``affine``, in the axes of a file that has the affine ``native``."""
    if affine is None or native is None or array.ndim != 4:
        return array
    return np.ascontiguousarray(reorient_array(array, affine, axis_codes(native))[0])
