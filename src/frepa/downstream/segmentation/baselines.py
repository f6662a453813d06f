"""Scores that need no encoder: what a segmentation has to beat before it has shown anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from frepa.corruption.guide import hessian_guide
from frepa.datasets.reading import LabelledImage
from frepa.downstream.crops import CaseCache
from frepa.downstream.segmentation.metrics import case_mean, count, dice
from frepa.downstream.segmentation.probe import best_offsets
from frepa.images.geometry import resize

#: Baselines by key, as results and report call them.
NAMES = {
    "all_foreground": "every pixel foreground",
    "atlas": "mean of the training masks, blind to the image",
    "guide": "guide channel thresholded, no network",
}
_ATLAS_SIDE = {2: 64, 3: 32}
_KIND = "frangi"  # the guide of the floor, where the encoder is given none
# Masks and mean overlap of two below which nothing is said of how things lie: chance would say it.
_FEWEST_MASKS, _LEAST_OVERLAP = 8, 0.1
# Training pixels the guide's threshold is chosen on.
_PIXELS = 2e7


@dataclass(frozen=True)
class Baselines:
    """What the training masks alone tell.

    Attributes:
        classes: number of classes, background included.
        commonest: the foreground class with the most training pixels.
        atlas: ``(classes, *grid)`` float32, share of training masks of each class at each place, best offsets added;
            None where it is not known.
        guide: kind of guide that is thresholded, and the threshold; None where there are several foreground classes.
        turned: how much of the overlap of two training masks is left where one of them is flipped or turned: 1 where
            nothing lies in a certain way, near 0 where everything does; NaN of few masks, or of
            such that hardly overlap.
    """

    classes: int
    commonest: int
    atlas: np.ndarray | None
    guide: tuple[str, float] | None
    turned: float = math.nan

    def scores(self, labelled: LabelledImage, working: tuple[int, ...]) -> dict[str, float]:
        """DSC of each baseline on one case at its own resolution; guides are made at ``working`` size."""
        truth = labelled.classes
        found = {
            "all_foreground": np.full(truth.shape, self.commonest, np.uint8),
        }
        if self.atlas is not None:
            found["atlas"] = resize(self.atlas, truth.shape, "bilinear").argmax(0).astype(np.uint8)
        if self.guide is not None:
            kind, threshold = self.guide
            guide = hessian_guide(torch.from_numpy(resize(labelled.image, working))[None], kind=kind)[0].numpy()
            found["guide"] = (resize(guide, truth.shape, "bilinear")[0] > threshold).astype(np.uint8)
        scores = {}
        for name, prediction in found.items():
            counts = count(truth, prediction, self.classes)
            scores[name] = case_mean(dice(counts), counts)
        return scores

    def kept(self) -> dict[str, Any]:
        """What a head file keeps of it, as plain values: all but the atlas, which is blind to another set's images."""
        return {"commonest": self.commonest, "guide": self.guide}


def kept_baselines(kept: Sequence[Mapping[str, Any]], classes: int) -> Baselines | None:
    """From what the head files of a run kept, thresholds averaged.

    Of heads that kept nothing every pixel as the one foreground class there is; None where there are several.
    """
    if not kept:
        return Baselines(classes, 1, None, None) if classes == 2 else None
    guides = [item["guide"] for item in kept]
    guide = None
    if all(guides) and len({kind for kind, _ in guides}) == 1:
        guide = (str(guides[0][0]), float(np.mean([threshold for _, threshold in guides])))
    return Baselines(classes, int(kept[0]["commonest"]), None, guide)


def fit_baselines(cache: CaseCache, train: Sequence[int], classes: int, guide: str) -> Baselines:
    """Baselines from the training cases; ``guide`` is the encoder's kind of guide, or "none"."""
    axes = cache[train[0]].classes.ndim
    grid = (_ATLAS_SIDE[axes],) * axes
    total, pixels = np.zeros((classes, *grid)), np.zeros(classes)
    truths, guides, looked, overlap = [], [], 0, Overlap(axes)
    kind = _KIND if guide == "none" else guide
    for number, index in enumerate(train):
        cache.ahead(train[number : number + 2])
        case = cache[index]
        truth = case.classes.long().cpu().numpy()
        pixels += np.bincount(truth.ravel(), minlength=classes)
        each = np.stack([(truth == k).astype(np.float32) for k in range(classes)])
        small = resize(each, grid, "bilinear")
        total += small
        overlap.add(small[1:])
        truths.append(small.argmax(0))
        if classes == 2 and looked + truth.size <= max(_PIXELS, truth.size):
            shown = case.guide if guide != "none" else hessian_guide(case.image[None].float(), kind=kind)[0]
            guides.append((shown.float().cpu().numpy(), truth))
            looked += truth.size
    mean = (total / len(train)).astype(np.float32)
    offsets, _ = best_offsets([mean[1:]] * len(truths), truths)
    threshold = None
    if guides:
        shift, _ = best_offsets([shown for shown, _ in guides], [truth for _, truth in guides])
        threshold = (kind, float(1 - shift[1]) / 2)
    atlas = mean + offsets.astype(np.float32).reshape(-1, *(1,) * axes)
    return Baselines(classes, 1 + int(pixels[1:].argmax()), atlas, threshold, overlap.left())


class Overlap:
    """Overlap of pairs of masks on one grid: their cosine, as they are and with one flipped or turned.

    Of n masks the n (n - 1) pairs follow from two sums, so that masks are seen once and not kept.

    Args:
        axes: of an image. Flips are of every axis, and turns exchange the last two.
    """

    def __init__(self, axes: int) -> None:
        self._axes = range(1, axes + 1)
        self._total: np.ndarray | float = 0.0
        self._own, self._count = 0.0, 0

    def add(self, mask: np.ndarray) -> None:
        """A mask ``(classes, *grid)``, shares of foreground classes; one without foreground counts for nothing."""
        norm = float(np.linalg.norm(mask))
        if not norm:
            return
        mask = mask.astype(np.float64) / norm
        self._total = self._total + mask
        self._own += float((mask * self._views(mask)).sum())
        self._count += 1

    def left(self) -> float:
        """Mean overlap of a mask with all views of another over that with the other as it is; NaN of chance."""
        if self._count < _FEWEST_MASKS:
            return math.nan
        assert isinstance(self._total, np.ndarray)
        pairs = self._count * (self._count - 1)
        plain = float((self._total**2).sum()) - self._count
        viewed = float((self._total * self._views(self._total)).sum()) - self._own
        return viewed / plain if plain > _LEAST_OVERLAP * pairs else math.nan

    def _views(self, mask: np.ndarray) -> np.ndarray:
        """Mean of a mask's flips and turns, itself included: one symmetry after the other."""
        mask = (mask + np.swapaxes(mask, -1, -2)) / 2
        for axis in self._axes:
            mask = (mask + np.flip(mask, axis)) / 2
        return mask


def constant_answer(predictions: Sequence[int | None]) -> str | None:
    """A sentence where every case was answered by one and the same class everywhere; else None.

    ``predictions``: per case the one class of all its pixels, or None where there are several.
    """
    kinds = set(predictions)
    if len(kinds) != 1 or None in kinds:
        return None
    only = kinds.pop()
    what = "background: nothing was marked in any case" if only == 0 else f"class {only}: every pixel was marked"
    return f"The output is constant, all {what}. A score of it says nothing about the encoder."
