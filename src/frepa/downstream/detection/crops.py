"""Images with findings as a detector works on them, and random crops of both together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from frepa.downstream.crops import CropPlan, Place, cut, place_crops
from frepa.downstream.detection.loss import PADDING, Targets
from frepa.images.boxes import IGNORED, Boxes, centres, clipped, extents

# Of a finding cut by the border of a crop so much must be seen, as a share of its area or volume, to be asked for.
_SEEN = 0.5


class WorkingImage(NamedTuple):
    """An image at working size, on the device, with its findings on the host.

    planes: ``(C + 1, *S)`` float32: image channels in [0, 1], guide. boxes: in pixels of the working size. points: per
    class that occurs, the pixels at the centres of its findings, ``(n, axes)`` int64.
    """

    planes: Tensor
    boxes: Boxes
    points: list[np.ndarray]

    @classmethod
    def of_broken(cls, dims: int) -> WorkingImage:
        """Stands in for an image that cannot be read; it is never drawn from."""
        return cls(torch.zeros(0), Boxes.empty(dims), [])

    @property
    def broken(self) -> bool:
        """The image could not be read."""
        return not self.planes.numel()

    @property
    def nbytes(self) -> int:
        return self.planes.nbytes

    @property
    def image(self) -> Tensor:
        return self.planes[:-1]

    @property
    def guide(self) -> Tensor:
        return self.planes[-1:]


class FindingCrops(NamedTuple):
    """A batch: B images ``(C, *crop)`` in [0, 1], guide ``(B, 1, *crop)``, and the findings in the crops' pixels."""

    image: list[Tensor]
    guide: Tensor
    targets: Targets


def working_image(
    image: np.ndarray, boxes: Boxes, guide: Callable[[Tensor], Tensor], device: torch.device
) -> WorkingImage:
    """Move an image ``(C, *S)`` to the device and compute its guide there."""
    moved = torch.from_numpy(image).to(device)
    last = np.asarray(image.shape[1:]) - 1
    middle = np.clip(np.floor(centres(boxes.corners)).astype(np.int64), 0, last)
    kinds = [kind for kind in np.unique(boxes.classes) if kind != IGNORED]
    return WorkingImage(torch.cat([moved, guide(moved)]), boxes, [middle[boxes.classes == kind] for kind in kinds])


def draw_finding_crops(images: Sequence[WorkingImage], positions: Sequence[int], plan: CropPlan) -> FindingCrops:
    """One crop of each image; where the image is smaller than the crop, zeros follow it.

    A share ``plan.foreground`` of the crops holds the centre of a finding, which lies anywhere in the crop, so that
    nothing is learnt of where in an image findings lie.
    """
    sizes = [tuple(item.planes.shape[1:]) for item in images]
    places = place_crops(sizes, [item.points for item in images], positions, plan, anywhere=True)
    crops = [cut(item.planes, place, plan.size) for item, place in zip(images, places)]
    boxes = [crop_boxes(item.boxes, place, plan.size) for item, place in zip(images, places)]
    device = images[0].planes.device
    return FindingCrops(
        [crop[:-1] for crop in crops], torch.stack([crop[-1:] for crop in crops]), to_targets(boxes, device)
    )


def crop_boxes(boxes: Boxes, place: Place, size: tuple[int, ...]) -> Boxes:
    """Findings in the pixels of a crop, cut at its border.

    One of which less than half is seen counts neither way (``IGNORED``); one of which nothing is seen is left out.
    """
    dims = len(size)
    moved = boxes.corners - np.tile(np.asarray(place.starts, np.float64), 2)
    seen = clipped(moved, size)
    share = extents(seen).prod(1) / np.maximum(extents(moved).prod(1), np.finfo(float).tiny)
    kinds = np.where(share < _SEEN, IGNORED, boxes.classes)[share > 0]
    low, high = seen[share > 0, :dims], seen[share > 0, dims:]
    for axis in place.flips:
        low[:, axis], high[:, axis] = size[axis] - high[:, axis], size[axis] - low[:, axis]
    for _ in range(place.quarters):
        rows, columns = dims - 2, dims - 1
        # Turned from rows towards columns: what was the last column becomes the first row.
        low[:, [rows, columns]], high[:, [rows, columns]] = (
            np.stack([size[columns] - high[:, columns], low[:, rows]], 1),
            np.stack([size[columns] - low[:, columns], high[:, rows]], 1),
        )
    return Boxes(np.concatenate([low, high], 1), kinds)


def to_targets(boxes: Sequence[Boxes], device: torch.device) -> Targets:
    """Findings of several images as one batch; rows of class ``PADDING`` fill the shorter lists."""
    most = max(len(item.classes) for item in boxes)
    corners = np.zeros((len(boxes), most, boxes[0].corners.shape[1]), np.float32)
    kinds = np.full((len(boxes), most), PADDING, np.int64)
    for row, item in enumerate(boxes):
        corners[row, : len(item.classes)] = item.corners
        kinds[row, : len(item.classes)] = item.classes
    # The host goes on while these few numbers travel.
    return Targets(
        torch.from_numpy(corners).to(device, non_blocking=True), torch.from_numpy(kinds).to(device, non_blocking=True)
    )
