"""A trained segmenter on new scans: masks on the grid of their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from frepa.datasets.labels import LabelMap
from frepa.downstream.segmentation.model import TASK, Prediction, Segmenter, load_segmenter
from frepa.downstream.segmentation.testing import write_labels
from frepa.downstream.trained import Answer, TrainedHead
from frepa.encoders.contract import Encoder
from frepa.images.filed import Filed, on_file
from frepa.report.overlays import prediction_overlay


@dataclass(frozen=True, repr=False)
class SegmentedScan(Answer):
    """A mask.

    Attributes:
        mask: label values ``(*grid.size)``, those of the masks the head was trained on.
        probabilities: ``(K, *grid.size)`` float32 in [0, 1], background first.
        seen: classes ``(*S)`` uint8 in the axes of ``image``.
        labels: which value a class is written as.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    seen: np.ndarray
    labels: LabelMap

    @property
    def row(self) -> dict[str, Any]:
        """Pixels of every class, and in mm² or ml where the file says how large they are."""
        counts = np.bincount(self.seen.ravel(), minlength=self.labels.classes)
        row: dict[str, Any] = {}
        for value, count in zip(self.labels.values[1:], counts[1:].tolist()):
            row[f"pixels_{value}"] = count
        if self.grid.spacing is not None:
            spacing = self.grid.spacing[-self.seen.ndim :]
            unit, size = ("mm2", float(np.prod(spacing))) if self.seen.ndim == 2 else ("ml", np.prod(spacing) / 1000)
            for value, count in zip(self.labels.values[1:], counts[1:].tolist()):
                row[f"{unit}_{value}"] = float(count * size)
        return row

    def save(self, target: str | Path) -> Path:
        """Write the mask as ``target`` + ``.png`` (images) or ``.nii.gz`` (volumes, and slices that lie in a patient).

        Returns:
            The file written.
        """
        return write_labels(Path(target), self.mask, self.grid)

    def picture(self) -> Figure:
        """The image, and beside it what was found; of a volume the slice with most of it."""
        names = self.labels.names[1:] or [f"mask value {value}" for value in self.labels.values[1:]]
        return prediction_overlay(self.image, self.seen, names=names, voxels=self.voxels)


class TrainedSegmenter(TrainedHead[Segmenter]):
    """The segmenters of a run; their class probabilities are averaged."""

    task = TASK
    evaluation = "frepa.downstream.segmentation.evaluation:SegmentationEvaluation"

    @classmethod
    def load(cls, file: Path, encoder: str | Encoder | None, device: torch.device) -> Segmenter:
        """See `load_segmenter`."""
        return load_segmenter(file, encoder=encoder, device=device)

    def segment(self, image: np.ndarray) -> Prediction:
        """Classes and probabilities of an image ``(C, *S)`` float32 in [0, 1], C = 1 or 3."""
        first = self.models[0].predict(image)
        if len(self.models) == 1:
            return first
        total = first.probabilities
        for model in self.models[1:]:
            total = total + model.predict(image).probabilities
        return Prediction(total.argmax(0).astype(np.uint8), total / len(self.models))

    def _answer(self, image: np.ndarray, affine: np.ndarray | None, grid: Filed) -> SegmentedScan:
        found, labels = self.segment(image), self.models[0].labels
        mask = on_file(labels.to_values(found.classes)[None], affine, grid)[0]
        return SegmentedScan(grid, image, mask, on_file(found.probabilities, affine, grid), found.classes, labels)
