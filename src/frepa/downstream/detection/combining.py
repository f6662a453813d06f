"""Boxes that several heads found, made one list: weighted boxes fusion (Solovyev et al., 2021), in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frepa.downstream.detection.metrics import iou
from frepa.images.boxes import Detections


def combined(found: Sequence[Detections], *, overlap: float, most: int) -> Detections:
    """One list of boxes, best first.

    Boxes of a class whose IoU with a group's mean is above ``overlap`` join the group, the highest score first. A
    group's box is the mean of its boxes weighted by their scores; its score is the sum of the best score of each head
    over the number of heads, so that a box which one of five heads found counts a fifth.

    Args:
        found: of each head, in one image; one head's boxes come back as they are.
        overlap: IoU, [0, 1]. most: boxes kept.
    """
    if len(found) == 1:
        return found[0]
    heads = np.concatenate([np.full(len(item.scores), place) for place, item in enumerate(found)])
    corners, classes, scores = (np.concatenate(parts) for parts in zip(*found))
    groups: list[list[int]] = []
    means = np.zeros((0, corners.shape[1]))
    kinds = np.zeros(0, np.int64)
    for box in np.argsort(-scores, kind="stable").tolist():
        own = iou(corners[box][None], means)[0] * (kinds == classes[box])
        if own.size and own.max() > overlap:
            group = int(own.argmax())
            groups[group].append(box)
            means[group] = np.average(corners[groups[group]], axis=0, weights=scores[groups[group]])
        else:
            groups.append([box])
            means = np.concatenate([means, corners[box][None]])
            kinds = np.append(kinds, classes[box])
    best = [
        sum(scores[[box for box in group if heads[box] == head]].max(initial=0.0) for head in range(len(found)))
        for group in groups
    ]
    ranked = np.array(best) / len(found)
    kept = np.argsort(-ranked, kind="stable")[:most]
    return Detections(means[kept], kinds[kept], ranked[kept])
