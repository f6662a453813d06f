"""Which spatial frequencies can be told from an encoder's map (Frepa Fig. 7, Eq. 14 and 15)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from frepa.analysis.contract import Analysis, AnalysisPage, Found, Study, Subject
from frepa.analysis.decoding import train_decoder
from frepa.analysis.recovery import BANDS, Comparison, FeatureMap, Recovery, random_projection, recovery
from frepa.analysis.registry import register_analysis
from frepa.analysis.views import Views, open_views
from frepa.encoders.contract import per_axis
from frepa.errors import InputError
from frepa.report.page import MeanStd
from frepa.report.spectra import band_points, share_curves


@dataclass(frozen=True)
class FrequencyOptions:
    """Which spatial frequencies the map of an encoder keeps (Frepa Fig. 7).

    Args:
        bands: where the low band ends and the high one begins, in cycles per pixel: two numbers up to 0.5.
        steps: of the trained decoder, 8 images each; 0 leaves it out, and the closed form is all.
        lr: highest learning rate of the trained decoder.
    """

    bands: str = "0.1,0.3"
    steps: int = 400
    lr: float = 2e-3


@dataclass(frozen=True)
class _Map:
    """A map that is looked at: an encoder's, or the null of that size."""

    features: FeatureMap
    channels: int
    stride: tuple[int, ...]
    null: str | None
    subject: Subject | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """Numbers per position, and its pixels."""
        return self.channels, *self.stride


@register_analysis("frequencies", FrequencyOptions)
class Frequencies(Analysis):
    """What of each frequency a regression in closed form, and a trained decoder, tell from the frozen map."""

    options: FrequencyOptions
    title = "Frequencies"
    question = "Which spatial frequencies of an image can be told from an encoder's frozen map?"

    def check(self) -> None:
        """See `Analysis`."""
        self.bands = read_bands(self.options.bands)
        if self.options.steps < 0:
            raise InputError(f"--kind.steps {self.options.steps}: expected 0 or more.")
        if not 0 < self.options.lr < 1:
            raise InputError(f"--kind.lr {self.options.lr}: expected a number above 0 and below 1.")

    def analyse(self, study: Study, page: AnalysisPage) -> Found:
        """See `Analysis`."""
        views = open_views(study, least=2)
        views = Views(several(views.fit), views.test, views.names, views.size)
        maps = _maps(study)
        ridge: dict[str, Recovery] = {}
        decoder: dict[str, Recovery] = {}
        training: dict[str, dict[str, float]] = {}
        for name, own in maps.items():
            kept = study.part(
                partial(self._closed_form, name, own, views, study), "closed form", own.size, subject=own.subject
            )
            ridge[name] = Recovery(**kept)
            if self.options.steps:
                kept, training[name] = study.part(
                    partial(self._trained, name, own, views, study), "decoder", own.size, subject=own.subject
                )
                decoder[name] = Recovery(**kept)
        self._fill(page, study, maps, ridge, decoder, training)
        numbers = {
            "bands": {name: list(limits) for name, limits in self.bands.items()},
            "maps": {
                name: {
                    "channels": own.channels,
                    "stride": list(own.stride),
                    "null": own.null,
                    "closed_form": asdict(ridge[name]),
                    "beyond_null": beyond(ridge, maps, name),
                    **({"trained_decoder": asdict(decoder[name]) | training[name]} if decoder else {}),
                    **({"trained_beyond_null": beyond(decoder, maps, name)} if decoder else {}),
                }
                for name, own in maps.items()
            },
        }
        scores = {
            name: {f"r2_{band}": share for band, share in ridge[name].bands.items()}
            | {f"rho_{band}": rho for band, rho in (decoder or ridge)[name].similarity.items()}
            | {f"beyond_null_{band}": more for band, more in beyond(ridge, maps, name).items()}
            for name in maps
        }
        return Found(numbers, scores)

    def _closed_form(self, name: str, own: _Map, views: Views, study: Study) -> dict[str, Any]:
        test = study.each(views.test, f"{name}: closed form")
        return asdict(recovery(own.features, own.stride, views.fit, test, self.bands))

    def _trained(self, name: str, own: _Map, views: Views, study: Study) -> tuple[dict[str, Any], dict[str, float]]:
        trained = train_decoder(
            own.features, own.channels, own.stride, views.fit, study,
            steps=self.options.steps, lr=self.options.lr, desc=f"{name}: decoder",
        )  # fmt: skip
        seen = Comparison(self.bands)
        for images in views.test:
            seen.add(images, trained(images) - images, own.channels, own.stride)
        return asdict(seen.result(math.nan)), trained.course

    def _fill(
        self,
        page: AnalysisPage,
        study: Study,
        maps: Mapping[str, _Map],
        ridge: Mapping[str, Recovery],
        decoder: Mapping[str, Recovery],
        training: Mapping[str, Mapping[str, float]],
    ) -> None:
        nulls = [name for name, own in maps.items() if own.null is None]
        page.section("By closed form")
        page.text(
            "A ridge regression tells each position's block of pixels from the features of that position: no steps, no "
            "seed, no learning rate. It is fitted to one part of the images and looked at on another. R² is the share "
            "of the images' energy that is told: 1 is all of it, 0 what the mean would give. It does not depend on how "
            "little energy a band holds."
        )
        page.table(
            [
                {
                    "Map": name,
                    "Numbers per position": own.channels,
                    "Values it has to tell": ridge[name].outputs,
                    **{f"R² {band}": ridge[name].bands[band] for band in self.bands},
                    **{f"beyond null, {band}": beyond(ridge, maps, name).get(band) for band in self.bands},
                }
                for name, own in maps.items()
            ],
            caption=f"Share told of each band ({_limits(self.bands)} cycles per pixel), on images that the regression "
            "was not fitted to. The null is one fixed random projection of every block of pixels to as many numbers as "
            "the encoder gives: beyond it lies what an encoder keeps more than any map of its size.",
            best={f"R² {band}": "max" for band in self.bands},
            digits=3,
        )
        curves = {name: (one.frequency, one.share) for name, one in ridge.items()}
        caption = "Share told by frequency, closed form. Dashed: the null of equal size."
        page.show("closed-form", share_curves(curves, bands=self.bands, null=nulls), caption, wide=True)
        more = {name: (ridge[name].frequency, _less(ridge, own.null, name)) for name, own in maps.items() if own.null}
        every = [value for _, values in more.values() for value in values if math.isfinite(value)]
        span = min(-0.1, 1.1 * min(every, default=0.0) - 0.02), max(0.1, 1.1 * max(every, default=0.0) + 0.02)
        page.show(
            "beyond-null",
            share_curves(more, bands=self.bands, ylabel="R² less the null's", span=span),
            "The same less the null of equal size: above 0 the encoder keeps more of a frequency than chance would, "
            "below 0 it gives it up for something else.",
            wide=True,
        )
        page.section("Similarity by band (Frepa Fig. 7)")
        page.text(
            "ρ = 1 − RMSE between the filtered image and the filtered reconstruction (Frepa Eq. 15), intensities in "
            "[0, 1], mean and standard deviation over images. A band that holds little energy has a ρ near 1 whatever "
            "is told of it: differences count, not heights, and the R² above says what share they are of."
        )
        kinds = {"trained decoder": decoder, "closed form": ridge} if decoder else {"closed form": ridge}
        for kind, found in kinds.items():
            points = {
                band: {name: (one.similarity[band], one.spread[band]) for name, one in found.items()}
                for band in self.bands
            }
            page.show(
                f"similarity-{kind.replace(' ', '-')}",
                band_points(points, ylabel="ρ", null=nulls),
                f"ρ by band, {kind}; bars are standard deviations over images.",
                wide=True,
            )
        page.table(
            [
                {
                    "Map": name,
                    **{
                        f"{band}, {kind}": MeanStd(found[name].similarity[band], found[name].spread[band])
                        for kind, found in kinds.items()
                        for band in self.bands
                    },
                }
                for name in maps
            ],
            caption="ρ of each band, mean ± standard deviation over images.",
            digits=4,
        )
        if decoder:
            curves = {name: (one.frequency, one.share) for name, one in decoder.items()}
            page.show(
                "trained-decoder",
                share_curves(curves, bands=self.bands, null=nulls),
                "Share told by frequency, by the trained decoder (Frepa Eq. 14: frozen encoder, MSE).",
                wide=True,
            )
            page.table(
                [
                    {
                        "Map": name,
                        "Kept from step": course["best_step"],
                        "MSE of images held out": course["error"],
                        "of those it was trained on": course["error_fitted"],
                    }
                    for name, course in training.items()
                ],
                caption=f"Mean squared error of the trained decoders. Of {self.options.steps} steps the state is kept "
                "that told an eighth of the images, held out, best. Where that is the last one, more steps "
                "(`--kind.steps`) would tell more; where the two errors are far apart, more images (`--images`) would.",
                digits=6,
            )


def read_bands(text: str) -> dict[str, tuple[float, float]]:
    """``"0.1,0.3"`` as the limits of low, medium and high, in cycles per pixel; the high one includes the corners.

    Raises:
        InputError: not two rising numbers between 0 and 0.5.
    """
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        first, second = math.nan, math.nan
    if not 0 < first < second < 0.5:
        raise InputError(
            f"--kind.bands {text}: expected two numbers that rise, in cycles per pixel and below 0.5, such as 0.1,0.3."
        )
    return dict(zip(BANDS, ((0.0, first), (first, second), (second, math.inf))))


def beyond(found: Mapping[str, Recovery], maps: Mapping[str, _Map], name: str) -> dict[str, float]:
    """R² of each band less that of the map's null; nothing for a null."""
    null = maps[name].null
    return {} if null is None else {b: share - found[null].bands[b] for b, share in found[name].bands.items()}


def _less(found: Mapping[str, Recovery], null: str, name: str) -> list[float]:
    return [own - chance for own, chance in zip(found[name].share, found[null].share)]


def _maps(study: Study) -> dict[str, _Map]:
    """Every encoder's map, and after them the nulls of their sizes."""
    sizes = [(s.encoder.channels, per_axis(s.encoder.stride, study.dims)) for s in study.subjects]
    names = {size: _null_name(size, len(set(sizes))) for size in sizes}
    found = {
        subject.name: _Map(subject.dense, *size, names[size], subject) for subject, size in zip(study.subjects, sizes)
    }  # fmt: skip
    return found | {name: _Map(random_projection(*size), *size, None) for size, name in names.items()}


def _null_name(size: tuple[int, tuple[int, ...]], several: int) -> str:
    channels, stride = size
    steps = str(stride[0]) if len(set(stride)) == 1 else " x ".join(map(str, stride))
    return "null" if several == 1 else f"null, {channels} numbers at stride {steps}"


def several(batches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """At least four batches where there are images enough, so that the penalty can be chosen by leaving some out."""
    images = torch.cat(batches)
    return batches if len(batches) >= 4 else images.split(max(1, -(-len(images) // 4)))


def _limits(bands: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} {low:g} to {high:g}" if math.isfinite(high) else f"{name} above {low:g}"
                     for name, (low, high) in bands.items())  # fmt: skip
