"""A frozen encoder with a segmentation head: what is trained, saved, and applied to whole images."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from frepa.corruption.guide import hessian_guide
from frepa.downstream.case_reading import read_scan
from frepa.downstream.encoder_reference import EncoderReference, reopen_encoder
from frepa.downstream.labels import LabelMap
from frepa.encoders.contract import Encoder
from frepa.errors import InputError
from frepa.heads.segmenter import SegmentationHead
from frepa.images.geometry import placement, resize
from frepa.images.intensity import Window, to_unit
from frepa.images.orientation import axis_codes, reorient, reorient_array
from frepa.images.scan import Scan

WEIGHTS = "head.safetensors"
DESCRIPTION = "head.json"
FORMAT = 1


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


class Segmenter(nn.Module):
    """Encoder (frozen, always in evaluation mode) and head.

    Only ``head.parameters()`` train. ``labels`` says what a class is written as.
    """

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
        self.encoder = encoder.requires_grad_(False)
        self.head = head
        self.settings = settings
        self.labels = labels
        self.autocast = autocast
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    def train(self, mode: bool = True) -> Segmenter:
        """Training mode of the head; the encoder stays in evaluation mode (no dropout, frozen statistics)."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, in_channels, *S) as ``encoder.prepare_input`` makes them -> logits (B, K, *S)."""
        with torch.autocast(inputs.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            with torch.no_grad():
                dense = self.encoder(inputs).dense
            return self.head(dense, tuple(inputs.shape[2:]))

    def working_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Extent an image of ``size`` is worked on at."""
        if self.settings.image_size is None:
            return tuple(size)
        return placement(size, (self.settings.image_size,) * len(size)).inner

    def guide(self, image: Tensor) -> Tensor:
        """Guide channel (1, *S) of a whole clean image (C, *S) in [0, 1], by the encoder's own kind."""
        return hessian_guide(image[None].float(), kind=self.encoder.guide)[0]

    @torch.no_grad()
    def window_probabilities(self, image: Tensor, guide: Tensor) -> Tensor:
        """Class probabilities (K, *S) float32 of a whole image by overlapping windows with Gaussian weights.

        image (C, *S) in [0, 1] and guide (1, *S) on the device, at working size.
        """
        self.eval()
        inputs = self.encoder.prepare_input(image[None], guide[None])
        probabilities = sliding_window_inference(
            inputs,
            self.settings.crop,
            self.settings.batch_size,
            lambda windows: self(windows).float().softmax(1),
            overlap=self.settings.overlap,
            mode="gaussian",
        )
        assert isinstance(probabilities, Tensor)
        return probabilities[0]

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
            "format": FORMAT,
            "task": "segmentation",
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
        text = json.dumps(description, indent=2) + "\n"
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        partial = folder / f".{WEIGHTS}.{os.getpid()}"
        try:
            # Not save_file: it makes files that only their owner can read, whatever the umask says.
            partial.write_bytes(save(weights, metadata={"frepa": text}))
            os.replace(partial, folder / WEIGHTS)
        finally:
            partial.unlink(missing_ok=True)
        (folder / DESCRIPTION).write_text(text, encoding="utf-8")
        return folder / WEIGHTS


def load_segmenter(run: str | Path, *, encoder: str | None = None, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter of a finished run.

    Args:
        run: run folder or its ``head.safetensors``.
        encoder: where the encoder is now; None: where it was during training. Its weights must be the same.
        device: where to put both.

    Raises:
        InputError: no segmentation head there, or the encoder is gone or another one.
    """
    path = Path(run) / WEIGHTS if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise InputError(f"{run}: no {WEIGHTS} here. Give the folder of a finished segmentation run.")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("frepa", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable head file ({error}).") from None
    if description.get("task") != "segmentation":
        raise InputError(f"{path}: holds no segmentation head of this program.")
    if description["format"] > FORMAT:
        raise InputError(f"{path}: written by a newer frepa (format {description['format']}). Install that one.")
    frozen = reopen_encoder(EncoderReference(**description["encoder"]), encoder)
    stride = description["head"]["stride"]
    shape = description["head"] | {"stride": tuple(stride) if isinstance(stride, list) else stride}
    with torch.random.fork_rng(devices=[]):
        head = SegmentationHead(**shape)
    head.load_state_dict(load_file(path))
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
    scan = read_scan(Path(path), segmenter.encoder.dims, canonical=False)
    turned = reorient(scan)
    found = segmenter.predict(to_unit(turned, window=segmenter.settings.window))
    probabilities = turn_back(found.probabilities, turned.affine, scan.affine)
    return Prediction(turn_back(found.classes[None], turned.affine, scan.affine)[0], probabilities), scan


def turn_back(array: np.ndarray, affine: np.ndarray | None, native: np.ndarray | None) -> np.ndarray:
    """``(C, *S)`` with ``affine``, in the axes of a file that has the affine ``native``."""
    if affine is None or native is None or array.ndim != 4:
        return array
    return np.ascontiguousarray(reorient_array(array, affine, axis_codes(native))[0])
