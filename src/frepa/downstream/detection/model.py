"""A frozen encoder with a detection head: what is trained, saved, and applied to whole images."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frepa.downstream.head_files import load_weights, open_head, save_head
from frepa.downstream.windowed import WindowedHead, WindowSettings, read_settings
from frepa.encoders.contract import Encoder, per_axis
from frepa.encoders.reference import EncoderReference
from frepa.heads.detector import DetectionHead
from frepa.images.boxes import Detections, clipped, extents
from frepa.images.geometry import resize
from frepa.optimizers import muon_group

TASK = "detection"
# Boxes that are looked at before those that overlap a better one are dropped, and scores that are not.
_CANDIDATES, _LOWEST_SCORE = 1000, 0.01


@dataclass(frozen=True)
class DetectionSettings(WindowSettings):
    """How an image is brought before the network, and which boxes are kept.

    Attributes:
        nms_iou: of two boxes of a class whose IoU is above it only the better one stays.
        max_boxes: the most boxes kept per image.
        thresholds: per class, the score from which on a box counts as found, NaN where none does; () until known.
    """

    nms_iou: float = 0.5
    max_boxes: int = 100
    thresholds: tuple[float, ...] = ()


class Detector(WindowedHead):
    """Encoder (frozen, always in evaluation mode) and detection head; ``classes`` are the names of the classes.

    ``detector(inputs)`` gives (B, classes + 2 dims, *grid), see the head.
    """

    head: DetectionHead
    settings: DetectionSettings

    def __init__(
        self,
        encoder: Encoder,
        head: DetectionHead,
        settings: DetectionSettings,
        classes: tuple[str, ...],
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(encoder, head, settings, autocast=autocast)
        self.classes = classes

    def head_groups(self) -> list[dict[str, Any]]:
        """The convolutions are Muon's."""
        return [muon_group(self.head.kernels())]

    @torch.no_grad()
    def detect_working(self, image: Tensor, guide: Tensor) -> Detections:
        """Findings of a whole image at working size, best first, in its pixels.

        Overlapping windows are averaged cell by cell, with Gaussian weights, before boxes are made of them.

        Args:
            image: (C, *S) in [0, 1] on the device; guide: (1, *S).
        """
        self.eval()
        inputs = self.encoder.prepare_input(image[None], guide[None])
        size = tuple(inputs.shape[2:])
        # Zeros up to whole cells, and to a whole window, as in training: encoders know positions.
        cells = [-(-max(n, to) // step) * step for n, to, step in zip(size, self.settings.crop, self.head.step)]
        padding = [n for to, had in reversed(list(zip(cells, size))) for n in (0, to - had)]
        kinds = self.head.classes

        def answer(windows: Tensor) -> Tensor:
            answers = self(windows)
            return torch.cat([answers[:, :kinds].sigmoid(), answers[:, kinds:]], 1)

        answers = self.by_windows(F.pad(inputs, padding), answer, self._overlaps())
        corners = self.head.corners(answers[:, kinds:])[0]
        return self._best(answers[0, :kinds].flatten(1), corners, size)

    def _overlaps(self) -> tuple[float, ...]:
        """Overlap per axis, such that windows are whole cells apart."""
        overlaps = []
        for window, step in zip(self.settings.crop, self.head.step):
            apart = max(step, int(window * (1 - self.settings.overlap)) // step * step)
            overlaps.append(max(0.0, 1 - (apart + 0.5) / window))  # MONAI rounds down what it computes from it
        return tuple(overlaps)

    def _best(self, scores: Tensor, corners: Tensor, size: tuple[int, ...]) -> Detections:
        """Boxes that stay, best first, from scores (K, P) and corners (P, 2 dims); cut at the image's border."""
        from monai.data.box_utils import non_max_suppression  # here, as in `WindowedHead.by_windows`

        top, where = scores.flatten().topk(min(_CANDIDATES, scores.numel()))
        kind, cell = where // scores.shape[1], where % scores.shape[1]
        found = corners[cell].double().cpu().numpy()
        found = clipped(found, size)
        ranked, kinds = top.double().cpu().numpy(), kind.cpu().numpy()
        good = (ranked > _LOWEST_SCORE) & (extents(found) > 0).all(1)
        found, ranked, kinds = found[good], ranked[good], kinds[good]
        # Boxes of different classes do not compete: they are moved far apart.
        apart = found + (kinds * 2.0 * max(size))[:, None]
        kept = np.asarray(non_max_suppression(apart, ranked, self.settings.nms_iou, self.settings.max_boxes), np.int64)
        return Detections(found[kept], kinds[kept], ranked[kept])

    @torch.no_grad()
    def predict(self, image: np.ndarray) -> Detections:
        """Findings of a whole image ``(C, *S)`` float32 in [0, 1], C = 1 or 3, best first, in its own pixels."""
        size = tuple(image.shape[1:])
        inner = self.working_size(size)
        working = torch.from_numpy(resize(image, inner)).to(self.device)
        found = self.detect_working(working, self.guide(working))
        return found._replace(corners=found.corners * np.tile(np.divide(size, inner), 2))

    def save(self, folder: Path, reference: EncoderReference, extra: dict[str, Any] | None = None) -> Path:
        """Write the head alone: ``head.safetensors`` (which explains itself) and ``head.json`` (the same, to read)."""
        description = {
            "task": TASK,
            "head": {
                "channels": self.encoder.channels,
                "stride": self.encoder.stride,
                "classes": self.head.classes,
                "dims": self.encoder.dims,
                "step": self.head.step,
                "extent": self.head.extent.tolist(),
                "before": None if self.head.before is None else len(self.head.before.mean),
            },
            "classes": self.classes,
            # JSON knows no NaN
            "settings": asdict(self.settings)
            | {"thresholds": [None if math.isnan(score) else score for score in self.settings.thresholds]},
            "encoder": reference.as_dict(),
            "extra": extra or {},
        }
        return save_head(folder, self, description)


def whole_cells(crop: tuple[int, ...], step: tuple[int, ...], multiple: int | tuple[int, ...]) -> tuple[int, ...]:
    """A window's extent rounded up to whole cells of the grid and whole positions of the encoder's map."""
    units = [math.lcm(cell, own) for cell, own in zip(step, per_axis(multiple, len(step)))]
    return tuple(-(-n // unit) * unit for n, unit in zip(crop, units))


def load_detector(
    run: str | Path, *, encoder: str | Encoder | None = None, device: str | torch.device = "cpu"
) -> Detector:
    """The detector of a finished run.

    Args:
        run: run folder (of a fold, where there are folds) or its ``head.safetensors``.
        encoder: where the encoder is now, or the encoder itself; None: see `head_files.open_head`.
        device: where to put both.

    Raises:
        InputError: no detection head there, or the encoder is gone or another one.
    """
    path, description, frozen = open_head(run, TASK, encoder)
    shape = dict(description["head"])
    if isinstance(shape["stride"], list):
        shape["stride"] = tuple(shape["stride"])
    with torch.random.fork_rng(devices=[]):
        head = DetectionHead(**shape)
    load_weights(path, frozen, head)
    settings = read_settings(description["settings"])
    settings["thresholds"] = tuple(math.nan if score is None else score for score in settings["thresholds"])
    classes = tuple(description["classes"])
    return Detector(frozen, head, DetectionSettings(**settings), classes).to(device).eval()
