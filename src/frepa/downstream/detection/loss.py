"""Loss of a detection head: which cell answers for which finding, quality focal loss, and GIoU loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from frepa.heads.detector import DetectionHead
from frepa.images.boxes import IGNORED

#: Class of the rows that fill up a batch.
PADDING = -2
# Cells whose middle is within so many cells of a finding's centre answer for it, along every axis.
_RADIUS = 1.5
# Weights of the terms, and the focus (Li et al. 2020 for GIoU and focus). GIoU alone has hardly a gradient for a
# box far too small, and one that collapses early never returns; the difference of the answers always has one.
_GIOU_WEIGHT, _L1_WEIGHT, _FOCUS = 2.0, 0.5, 2.0


class Targets(NamedTuple):
    """Findings: corners (B, M, 2 dims) float32 in pixels; classes (B, M) int64, -1 ignored, -2 no finding."""

    corners: Tensor
    classes: Tensor


def assign(middles: Tensor, step: tuple[int, ...], targets: Targets) -> tuple[Tensor, Tensor]:
    """Which finding each cell answers for.

    The cell a finding's centre lies in answers for it, and the cells inside the finding whose middle is within 1.5
    cells of the centre along every axis. Of several findings a cell answers for the smallest.

    Args:
        middles: (P, dims) middle of every cell, in pixels.
        step: pixels per cell.
        targets: findings; M may be 0.

    Returns:
        Row of the finding (B, P) int64, 0 where none; and (B, P) int64: 1 answers for it, 0 background, -1 inside an
        ignored finding, so that nothing is asked of the cell.
    """
    corners, classes = targets
    batch, count = classes.shape
    if not count:
        empty = torch.zeros(batch, len(middles), dtype=torch.int64, device=middles.device)
        return empty, empty
    dims = middles.shape[1]
    extents = corners[..., dims:] - corners[..., :dims]
    inside, far = torch.ones((), dtype=torch.bool, device=middles.device), torch.zeros((), device=middles.device)
    for axis, cell in enumerate(step):  # one after another: (B, P, M) numbers at a time, not dims times as many
        low, high = corners[:, None, :, axis], corners[:, None, :, dims + axis]
        point = middles[None, :, None, axis]
        inside = inside & (point >= low) & (point < high)
        far = torch.maximum(far, (point - (low + high) / 2).abs() / cell)
    # A centre on the border of two cells belongs to both.
    answering = ((far <= 0.5) | (inside & (far < _RADIUS))) & (classes >= 0)[:, None]
    volume = extents.prod(-1)[:, None].expand_as(far).masked_fill(~answering, torch.inf)
    smallest, row = volume.min(-1)
    state = (inside & (classes == IGNORED)[:, None]).any(-1).to(torch.int64).neg()
    return row, torch.where(smallest.isfinite(), 1, state)


def detection_loss(head: DetectionHead, answers: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Quality focal loss of scores (Li et al. 2020), GIoU loss of boxes (Rezatofighi et al. 2019), and smooth L1 loss.

    The score of the right class is to be the IoU of the cell's own box with its finding, all other scores 0. The smooth
    L1 loss is that of shifts in cells and of logarithms of extents. All terms are divided by the number of cells that
    answer for a finding.

    Args:
        head: the head that answered.
        answers: (B, classes + 2 dims, *grid) as the head gives them.
        targets: findings in the pixels of the input.

    Returns:
        ``loss`` = class + 2 giou + 0.5 l1, and its terms ``class``, ``giou`` and ``l1``: scalars.
    """
    logits = answers[:, : head.classes].flatten(2).transpose(1, 2)  # (B, P, K)
    raw = answers[:, head.classes :]
    boxes = head.corners(raw)  # (B, P, 2 dims)
    middles = head.centres(answers.shape[2:], answers.device)
    row, state = assign(middles, head.step, targets)
    positive = state == 1
    count = positive.sum().clamp(min=1)
    quality = torch.zeros_like(logits)
    giou_loss = l1_loss = boxes.sum() * 0
    if targets.classes.shape[1]:
        wanted = targets.corners.gather(1, row[..., None].expand(-1, -1, boxes.shape[-1]))
        kinds = targets.classes.gather(1, row)
        # Cells without a finding compare with themselves: a number, and no gradient.
        wanted = torch.where(positive[..., None], wanted, boxes.detach())
        overlap, generalized = iou_and_giou(boxes, wanted)
        giou_loss = torch.where(positive, 1 - generalized, 0.0).sum() / count
        flat = raw.flatten(2).transpose(1, 2)
        asked = torch.where(positive[..., None], head.answers_for(wanted, middles), flat.detach())
        l1_loss = F.smooth_l1_loss(flat, asked, reduction="none").mean(-1).sum() / count
        found = torch.where(positive, overlap.detach(), 0.0)
        quality.scatter_(2, kinds.clamp(min=0)[..., None], found[..., None].to(quality.dtype))
    focus = (quality - logits.sigmoid()).abs() ** _FOCUS
    each = focus * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    class_loss = torch.where(state[..., None] == IGNORED, 0.0, each).sum() / count
    total = class_loss + _GIOU_WEIGHT * giou_loss + _L1_WEIGHT * l1_loss
    return {"loss": total, "class": class_loss, "giou": giou_loss, "l1": l1_loss}


def iou_and_giou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """IoU in [0, 1] and generalized IoU in [-1, 1] of pairs of boxes (..., 2 dims), any number of axes.

    Not MONAI's ``box_pair_giou``: that one waits for the device at every call to look for NaN.
    """
    dims = boxes.shape[-1] // 2
    low, high = boxes[..., :dims], boxes[..., dims:]
    other_low, other_high = others[..., :dims], others[..., dims:]
    tiny = torch.finfo(boxes.dtype).tiny
    both = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    union = (high - low).prod(-1) + (other_high - other_low).prod(-1) - both
    around = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(-1)
    overlap = both / union.clamp(min=tiny)
    return overlap, overlap - (around - union) / around.clamp(min=tiny)
