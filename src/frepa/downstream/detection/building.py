"""A fresh detector for a set, and the plan by which it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from frepa.downstream.crops import CropPlan, CropStream
from frepa.downstream.detection.data import DetectionData
from frepa.downstream.detection.model import DetectionSettings, Detector, whole_cells
from frepa.downstream.detection.training import DetectorPlan
from frepa.downstream.fitting import planned_steps
from frepa.downstream.windowed import fitted_crop
from frepa.encoders.contract import Encoder
from frepa.encoders.slice_transfer import SliceTransfer
from frepa.heads.detector import DetectionHead, grid_step
from frepa.images.boxes import extents
from frepa.images.geometry import placement
from frepa.machine import autocast_dtype

_DEFAULT_CROP = {2: 512, 3: 96}
_DEFAULT_NMS = {2: 0.5, 3: 0.2}
# Cells are made for the smaller findings: a tenth of them is smaller still.
_SMALL = 10


def build_detector(encoder: Encoder, data: DetectionData, options: Mapping[str, Any], device: torch.device) -> Detector:
    """Encoder and a fresh head on ``device``; its grid and typical box are those of the training part's findings."""
    dims = encoder.dims
    side = options["image_size"]
    sizes = [size if side is None else placement(size, (side,) * dims).inner for size in data.shapes]
    found = _extents(data, data.rows("train").tolist(), sizes)
    small = np.percentile(found, _SMALL, axis=0)
    if options["augment"]:  # quarter turns exchange the last two axes
        small[-2:] = small[-2:].min()
    step = grid_step(encoder.stride, small.tolist(), dims)
    asked = options["crop_size"] or _DEFAULT_CROP[dims]
    crop = fitted_crop(asked, sizes, encoder.size_multiple, dims)
    settings = DetectionSettings(
        crop=whole_cells(crop, step, encoder.size_multiple),
        image_size=side,
        window=options["window"],
        overlap=options["overlap"],
        batch_size=options["batch_size"],
        nms_iou=options["nms_iou"] if options["nms_iou"] is not None else _DEFAULT_NMS[dims],
        max_boxes=options["max_boxes"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options["seed"])  # the head's initial weights depend on the seed alone
        head = DetectionHead(
            encoder.channels,
            encoder.stride,
            len(data.classes),
            dims,
            step=step,
            extent=np.exp(np.log(np.maximum(found, 1e-3)).mean(0)).tolist(),
            before=encoder.encoder2d.channels if isinstance(encoder, SliceTransfer) else None,
        )
    autocast = autocast_dtype(options["precision"], device)
    return Detector(encoder, head, settings, data.classes, autocast=autocast).to(device)


def cut_findings(detector: Detector, data: DetectionData) -> Iterable[str]:
    """A sentence where findings are larger than a window: of these the detector never sees a whole one."""
    found = _extents(data, range(len(data.records)), [detector.working_size(shape) for shape in data.shapes])
    larger = np.any(found > detector.settings.crop, axis=1)
    if larger.any():
        crop = " x ".join(map(str, detector.settings.crop))
        largest = " x ".join(f"{n:.0f}" for n in found.max(0))
        yield (
            f"{larger.sum():,} of {len(found):,} findings are larger than a window of {crop} px (largest: {largest})"
            ", so that no window shows them whole. Give a larger --crop-size, or a smaller --image-size."
        )


def _extents(data: DetectionData, rows: Iterable[int], sizes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Extents ``(n, dims)`` of the findings of these rows, in pixels of working sizes."""
    own = []
    for row in rows:
        boxes = data.boxes[row]
        own.append(extents(boxes.corners[boxes.classes >= 0]) * np.divide(sizes[row], data.shapes[row]))
    return np.concatenate(own)


def plan_training(
    detector: Detector, data: DetectionData, options: Mapping[str, Any]
) -> tuple[CropStream, DetectorPlan]:
    """Which crops in which order, and the learning rates. An epoch is as many crops as cover the images once."""
    crop = detector.settings.crop
    sizes = [detector.working_size(data.shapes[row]) for row in data.rows("train").tolist()]
    stream = CropStream(sizes, crop, options["seed"])
    rates, _ = planned_steps(options, stream.length, options["batch_size"])
    crops = CropPlan(crop, options["seed"], options["foreground"], options["augment"])
    return stream, DetectorPlan(rates, options["batch_size"], options["val_every"], crops)
