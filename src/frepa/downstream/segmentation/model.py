"""A frozen encoder with a segmentation head: what is trained, saved, and applied to whole images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor

from frepa.datasets.labels import LabelMap
from frepa.datasets.reading import read_as_filed
from frepa.downstream.head_files import load_weights, read_head, save_head
from frepa.downstream.windowed import WindowedHead, WindowSettings, read_settings
from frepa.encoders.contract import Encoder
from frepa.encoders.reference import EncoderReference, reopen_encoder
from frepa.heads.segmenter import SegmentationHead
from frepa.images.geometry import resize
from frepa.images.intensity import to_unit
from frepa.images.orientation import axis_codes, reorient_array
from frepa.images.scan import Scan

TASK = "segmentation"


class Prediction(NamedTuple):
    """classes ``(*S)`` uint8, 0 = background; probabilities ``(K, *S)`` float32 in [0, 1], at the image's own size."""

    classes: np.ndarray
    probabilities: np.ndarray


class Segmenter(WindowedHead):
    """Encoder (frozen, always in evaluation mode) and segmentation head; ``labels`` says what a class is written as.

    ``segmenter(inputs)`` gives logits (B, K, *S).
    """

    head: SegmentationHead

    def __init__(
        self,
        encoder: Encoder,
        head: SegmentationHead,
        settings: WindowSettings,
        labels: LabelMap,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(encoder, head, settings, autocast=autocast)
        self.labels = labels

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
    settings = WindowSettings(**read_settings(description["settings"]))
    labels = LabelMap(tuple(description["labels"]["values"]), description["labels"]["threshold"])
    return Segmenter(frozen, head, settings, labels).to(device).eval()


def predict_case(segmenter: Segmenter, path: str | Path) -> tuple[Prediction, Scan]:
    """Segment one image file; the prediction lies in the file's own axes, as the scan does.

    Raises:
        InputError: the file is damaged or has another number of axes than the encoder.
    """
    scan, turned = read_as_filed(Path(path), segmenter.encoder.dims)
    found = segmenter.predict(to_unit(turned, window=segmenter.settings.window))
    probabilities = turn_back(found.probabilities, turned.affine, scan.affine)
    return Prediction(turn_back(found.classes[None], turned.affine, scan.affine)[0], probabilities), scan


def turn_back(array: np.ndarray, affine: np.ndarray | None, native: np.ndarray | None) -> np.ndarray:
    """``(C, *S)`` with ``affine``, in the axes of a file that has the affine ``native``."""
    if affine is None or native is None or array.ndim != 4:
        return array
    return np.ascontiguousarray(reorient_array(array, affine, axis_codes(native))[0])
