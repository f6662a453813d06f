"""How alike the representations of encoders are, and of one encoder's with parts of the spectrum alone: linear CKA.

Kornblith et al., Similarity of neural network representations revisited, ICML 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from frepa.analysis.contract import Analysis, AnalysisPage, Found, Study, Subject
from frepa.analysis.frequencies import read_bands
from frepa.analysis.recovery import radial_frequency
from frepa.analysis.registry import register_analysis
from frepa.analysis.views import Views, open_views
from frepa.corruption.spectrum import apply_transfer
from frepa.encoders.contract import per_axis
from frepa.errors import InputError
from frepa.heads.ridge import rows_of
from frepa.heads.standardise import usable_std
from frepa.report.matrix import heatmap

# Rows whose products are taken at once, and rows that are looked at in all: every second, third, ... of more.
_ROWS, _MOST_ROWS = 8192, 2**15
_MEAN = "mean alone"
_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class CkaOptions:
    """How alike the features of encoders are, and of each to those of band-split images: linear CKA.

    Args:
        bands: where the low band ends and the high one begins, in cycles per pixel: two numbers up to 0.5.
        standardise: give every channel variance 1, as heads see it; otherwise a few channels of large variance decide.
    """

    bands: str = "0.1,0.3"
    standardise: bool = True


@register_analysis("cka", CkaOptions)
class Cka(Analysis):
    """Linear CKA over positions and over images, between encoders and between an image and its bands."""

    options: CkaOptions
    title = "CKA"
    question = "How alike are the features of encoders, and which part of the spectrum makes them?"

    def check(self) -> None:
        """See `Analysis`."""
        self.bands = read_bands(self.options.bands)

    def analyse(self, study: Study, page: AnalysisPage) -> Found:
        """See `Analysis`."""
        views = open_views(study, fit=0, test=100)
        if sum(map(len, views.test)) < 2:
            raise InputError(f"{study.source}: one image (or part of one), and at least two are needed to compare by.")
        common = self._common_stride(study)
        whole: dict[str, Tensor] = {}
        pooled: dict[str, Tensor] = {}
        split: dict[str, dict[str, float]] = {}
        for subject in study.subjects:
            measure = partial(self._measured, study, subject, views, common)
            rows, means, split[subject.name] = study.part(measure, common, subject=subject)
            whole[subject.name], pooled[subject.name] = (self._scaled(own.to(study.device)) for own in (rows, means))
        names = list(whole)
        positions = [[linear_cka(whole[a], whole[b]) for b in names] for a in names]
        images_ = [[debiased_cka(pooled[a], pooled[b]) for b in names] for a in names]
        self._fill(page, names, positions, images_, split, len(next(iter(whole.values()))), sum(map(len, views.test)))
        numbers = {
            "bands": {name: list(limits) for name, limits in self.bands.items()},
            "encoders": names,
            "rows": len(next(iter(whole.values()))),
            "common_stride": list(common),
            "positions": positions,
            "images_debiased": images_,
            "with_band_split_images": split,
        }
        scores = {
            name: {f"cka_{part.replace(' ', '_')}": value for part, value in own.items()} for name, own in split.items()
        }
        return Found(numbers, scores)

    def _measured(
        self, study: Study, subject: Subject, views: Views, common: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Rows of positions and of images, not scaled, and CKA with the features of band-split images."""
        stride = per_axis(subject.encoder.stride, study.dims)
        versions: dict[str, list[Tensor]] = {name: [] for name in ("whole", _MEAN, *self.bands, "no high", "no low")}
        means: list[Tensor] = []
        for images in study.each(views.test, subject.name):
            for name, own in self._versions(images).items():
                dense = subject.dense(own)
                versions.setdefault(name, []).append(_on_grid(dense, stride, common))
                if name == "whole":
                    means.append(dense.flatten(2).mean(2))
        rows = {name: _rows(torch.cat(maps)) for name, maps in versions.items()}
        whole = self._scaled(rows["whole"])
        split = {n: linear_cka(whole, self._scaled(own)) for n, own in rows.items() if n != "whole"}
        return rows["whole"], torch.cat(means), split

    def _scaled(self, rows: Tensor) -> Tensor:
        if not self.options.standardise:
            return rows
        std = usable_std(rows.mean(0), rows.double().var(0, correction=0))
        return (rows - rows.mean(0)) * torch.where(std > 0, 1 / std, 0.0)

    def _versions(self, images: Tensor) -> dict[str, Tensor]:
        """The images, and what of them each part of the spectrum holds; their mean stays in all."""
        radius = radial_frequency(tuple(images.shape[2:])).to(images.device)
        kept = {name: (radius >= low) & (radius < high) for name, (low, high) in self.bands.items()}
        kept = {_MEAN: torch.zeros_like(kept["low"]), **kept, "no high": ~kept["high"], "no low": ~kept["low"]}
        parts = {name: apply_transfer(images, (inside | (radius == 0)).float()) for name, inside in kept.items()}
        return {"whole": images} | parts

    def _common_stride(self, study: Study) -> tuple[int, ...]:
        strides = [per_axis(subject.encoder.stride, study.dims) for subject in study.subjects]
        return tuple(math.lcm(*steps) for steps in zip(*strides))

    def _fill(
        self,
        page: AnalysisPage,
        names: list[str],
        positions: list[list[float]],
        images: list[list[float]],
        split: Mapping[str, Mapping[str, float]],
        rows: int,
        count: int,
    ) -> None:
        page.text(
            "Linear CKA is 1 where one representation is the other turned and scaled, and near 0 where they have "
            "nothing in common. It does not see which of two is better. What is the same in every image at a place of "
            "the map is taken away first: the border of a part, and where in it a position lies, would make all "
            "encoders alike, untrained ones above all."
            + (" Every channel has variance 1, as heads see it." if self.options.standardise else "")
        )
        if len(names) > 1:
            page.section("Between encoders")
            page.show(
                "between-positions",
                heatmap(positions, names, names),
                f"By position: {rows:,} positions of {count:,} images, maps averaged over the positions that the "
                "coarsest of them has.",
            )
            page.show(
                "between-images",
                heatmap(images, names, names),
                f"By image: maps averaged over each of {count:,} images; by the unbiased estimate of HSIC, since "
                "images are few and channels many. It may be a little below 0.",
            )
        page.section("With parts of the spectrum alone")
        page.text(
            "The same encoder sees the whole image, and what is left of it when parts of its spectrum are taken away. "
            "The mean stays, and alone it is the first column: what a band adds begins there. Near 1: the features are "
            "made of that part alone, or do not notice what is missing."
        )
        parts = list(next(iter(split.values())))
        limits = ", ".join(f"{name} {low:g} to {min(high, 0.71):g}" for name, (low, high) in self.bands.items())
        page.show(
            "bands",
            heatmap([[split[name][part] for part in parts] for name in names], names, parts),
            f"CKA between features of whole images and of images with that part of their spectrum only ({limits} "
            "cycles per pixel).",
            wide=True,
        )
        page.table([{"Encoder": name, **split[name]} for name in names], digits=3)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of features x (N, P) and y (N, Q) of the same N samples, in [0, 1] (Kornblith et al. 2019, Eq. 3).

    ``|Y'X|^2 / (|X'X| |Y'Y|)`` of centred features, Frobenius norms, in float64; equal to HSIC of the two Gram matrices
    over the root of each one's own. NaN where one of them is constant.
    """
    x, y = (value - value.mean(0) for value in (x.double(), y.double()))
    cross, own, other = (_product(a, b).square().sum() for a, b in ((x, y), (x, x), (y, y)))
    norm = float((own * other).sqrt())
    return float(cross) / norm if norm > 0 else math.nan


def debiased_cka(x: Tensor, y: Tensor) -> float:
    """CKA by the unbiased estimate of HSIC (Song et al., JMLR 2012, Eq. 5) of few samples: x (N, P), y (N, Q), N >= 4.

    About 0 for independent features, where `linear_cka` of many channels and few samples is not. NaN with fewer
    samples.
    """
    if len(x) < 4:
        return math.nan
    first, second = (_gram(value.double()) for value in (x, y))
    norm = _unbiased_hsic(first, first) * _unbiased_hsic(second, second)
    return _unbiased_hsic(first, second) / math.sqrt(norm) if norm > 0 else math.nan


def _gram(x: Tensor) -> Tensor:
    gram = (x - x.mean(0)) @ (x - x.mean(0)).T
    return gram - torch.diag(gram.diagonal())


def _unbiased_hsic(k: Tensor, m: Tensor) -> float:
    n = len(k)
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) * m.sum(0)).sum()
    return float(total) / (n * (n - 3))


def _product(x: Tensor, y: Tensor) -> Tensor:
    """``x.T @ y``, some rows at a time."""
    total = x.new_zeros(x.shape[1], y.shape[1])
    for start in range(0, len(x), _ROWS):
        total += x[start : start + _ROWS].T @ y[start : start + _ROWS]
    return total


def _on_grid(dense: Tensor, stride: tuple[int, ...], common: tuple[int, ...]) -> Tensor:
    """A map averaged over blocks, so that a position covers as many pixels as the coarsest map's."""
    factor = tuple(to // own for own, to in zip(stride, common))
    return dense if max(factor) == 1 else _POOL[dense.ndim - 2](dense, factor)


def _rows(maps: Tensor) -> Tensor:
    """A row per position of maps (N, K, *s), without what is the same in every image at that place; of many some."""
    rows = rows_of(maps - maps.mean(0))
    return rows[:: -(-len(rows) // _MOST_ROWS)]
