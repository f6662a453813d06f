"""What corruptions do to the histogram of an image (Frepa Fig. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from frepa.analysis.contract import Analysis, AnalysisPage, Found, Study
from frepa.analysis.corruptions import CORRUPTIONS, corrupted
from frepa.analysis.registry import register_analysis
from frepa.analysis.views import Views, open_views
from frepa.downstream.scores import summarise
from frepa.errors import InputError, nearest
from frepa.report.page import MeanStd
from frepa.report.strips import histogram_panels, picture_strip

# Values of an image that its distance is taken of, at most: a sample of more says the same.
_MOST_VALUES = 2**16


@dataclass(frozen=True)
class HistogramOptions:
    """Histograms before and after each corruption, with their distance (Frepa Fig. 3).

    Args:
        corruptions: which of them, separated by commas; by default all.
        bins: of the histograms that are drawn.
    """

    corruptions: str | None = None
    bins: int = 64


@register_analysis("histograms", HistogramOptions)
class Histograms(Analysis):
    """The 1-Wasserstein distance between the intensities of an image before and after."""

    options: HistogramOptions
    title = "Histograms"
    question = "What does each corruption do to the histogram of an image?"
    least = 0

    def check(self) -> None:
        """See `Analysis`."""
        asked = self.options.corruptions
        self.names = list(CORRUPTIONS) if asked is None else [name.strip() for name in asked.split(",")]
        for name in self.names:
            if name not in CORRUPTIONS:
                raise InputError(f"--kind.corruptions {name}: not known. {nearest(name, CORRUPTIONS)}")
        if not 2 <= self.options.bins <= 4096:
            raise InputError(f"--kind.bins {self.options.bins}: expected 2 to 4096.")

    def analyse(self, study: Study, page: AnalysisPage) -> Found:
        """See `Analysis`."""
        views = open_views(study, fit=0, test=50, crop=256 if study.dims == 2 else 64)
        distances: dict[str, list[float]] = {}
        beyond: dict[str, list[float]] = {}
        counts: dict[str, np.ndarray] = {}
        pictures: dict[str, np.ndarray] = {}
        edges = np.linspace(-0.25, 1.25, self.options.bins + 1)
        for name in ("original", *self.names):
            kept = study.part(partial(_measured, name, views, study, edges), name)
            counts[name], pictures[name] = np.asarray(kept["counts"]), kept["picture"].numpy()
            if name != "original":
                distances[name], beyond[name] = kept["distances"], kept["outside"]
        first = views.counts[1]
        found = {name: summarise(values) for name, values in distances.items()}
        outside = {name: summarise(values) for name, values in beyond.items()}
        page.text(
            "The 1-Wasserstein distance is how far intensities, in [0, 1], have to be moved on average to turn one "
            "histogram into the other: 0 for equal histograms, whatever became of the image. It is taken for each "
            "image, over all its pixels and channels."
        )
        page.table(
            [
                {
                    "Corruption": name,
                    "Wasserstein distance": MeanStd(found[name].mean, found[name].std),
                    "outside [0, 1], %": 100 * outside[name].mean,
                }
                for name in self.names
            ],
            caption=f"Mean and standard deviation over {first} images (or parts of images) of "
            f"{' x '.join(map(str, views.size))}, in the order of Frepa's Fig. 3 and the rival methods.",
            best={"Wasserstein distance": "min"},
            digits=4,
        )
        density = {name: own / own.sum() / (edges[1] - edges[0]) for name, own in counts.items()}
        page.show(
            "histograms",
            histogram_panels(density, edges, reference="original",
                             notes={name: f"W = {found[name].mean:.3f}" for name in self.names}),
            "Densities over all images: the original in grey, the corrupted images in colour. What lies beyond the "
            "axes is not drawn.",
            wide=True,
        )  # fmt: skip
        page.show("images", picture_strip(pictures), "One of the images.", wide=True)
        numbers = {
            name: {"wasserstein": found[name]._asdict(), "outside": outside[name].mean, "each": distances[name]}
            for name in self.names
        }
        histograms = {name: own.tolist() for name, own in density.items()}
        scores = {name: {"wasserstein": found[name].mean, "outside": outside[name].mean} for name in self.names}
        return Found({"corruptions": numbers, "edges": edges.tolist(), "densities": histograms}, scores)


def _measured(name: str, views: Views, study: Study, edges: np.ndarray) -> dict[str, Any]:
    """Histogram, one picture, and by image the distance and the share outside [0, 1], of one corruption."""
    counts, first = np.zeros(len(edges) - 1), 0
    distances: list[float] = []
    outside: list[float] = []
    picture: Tensor | None = None
    for images in study.each(views.test, name):
        own = images if name == "original" else corrupted(name, images, study.seed, first)
        counts += np.histogram(own.cpu().numpy(), edges)[0]
        picture = own[len(own) // 2].cpu() if picture is None else picture
        if name != "original":
            distances += [distance(before, after) for before, after in zip(images, own)]
            outside += [float(((after < 0) | (after > 1)).float().mean()) for after in own]
        first += len(images)
    return {"counts": counts.tolist(), "picture": picture, "distances": distances, "outside": outside}


def distance(before: torch.Tensor, after: torch.Tensor) -> float:
    """1-Wasserstein distance between the values of two tensors of one shape, in their own unit."""
    first, second = (value.flatten().double().cpu().numpy() for value in (before, after))
    step = -(-len(first) // _MOST_VALUES)
    return float(wasserstein_distance(first[::step], second[::step]))
