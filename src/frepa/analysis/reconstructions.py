"""What can be told of an image from an encoder's map of it when it was masked, or its detail removed (Frepa Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from frepa.analysis.contract import Analysis, AnalysisPage, Found, Study, Subject
from frepa.analysis.corruptions import Corrupt, corrupted, masked, masked_places
from frepa.analysis.decoding import train_decoder
from frepa.analysis.frequencies import several
from frepa.analysis.own_decoders import NoDecoder, OwnDecoder, own_decoder
from frepa.analysis.recovery import Comparison, FeatureMap, Recovery, fitted, random_projection, told
from frepa.analysis.registry import register_analysis
from frepa.analysis.views import open_views
from frepa.corruption.spectrum import apply_transfer, low_pass
from frepa.downstream.scores import Summary, summarise
from frepa.encoders.contract import per_axis
from frepa.errors import InputError
from frepa.heads.ridge import rows_of
from frepa.report.figures import relative_error, root_mean_square_error
from frepa.report.page import MeanStd
from frepa.report.spectra import share_curves
from frepa.report.strips import reconstruction_table

_NULL = "random projection"


@dataclass(frozen=True)
class ReconstructionOptions:
    """Reconstructions from masked and from low-passed images, with spectra and errors (Frepa Fig. 5).

    Args:
        mask_ratio: share of the patches that are masked.
        noise: what fills them: zero, gaussian or permute.
        cutoff: of the low-pass exp(-d^2 / d_c^2), in cycles per pixel.
        guide: of which image the guide channel is: corrupted, what there is, or clean, as in pretraining, which tells
            of what was taken away.
        own_decoder: tell by the decoder that an encoder was pretrained with (frepa, mae, simmim, mfm), where its run
            still holds it, as the paper does; by a fitted one where there is none.
        steps: of a trained decoder, 8 images each, instead of the closed form; 0 is the closed form.
        shown: images on the page.
    """

    mask_ratio: float = 0.7
    noise: str = "gaussian"
    cutoff: float = 0.05
    guide: str = "corrupted"
    own_decoder: bool = False
    steps: int = 0
    shown: int = 3


@register_analysis("reconstructions", ReconstructionOptions)
class Reconstructions(Analysis):
    """The clean image told from the map of the corrupted one, by a decoder fitted to other images."""

    options: ReconstructionOptions
    title = "Reconstructions"
    question = "What can be told of an image from an encoder's map of a part of it?"

    def check(self) -> None:
        """See `Analysis`."""
        given = self.options
        if given.noise not in ("zero", "gaussian", "permute"):
            raise InputError(f"--kind.noise {given.noise}: expected zero, gaussian or permute.")
        if given.guide not in ("corrupted", "clean"):
            raise InputError(f"--kind.guide {given.guide}: expected corrupted or clean.")
        if not 0 < given.mask_ratio <= 1:
            raise InputError(f"--kind.mask-ratio {given.mask_ratio}: expected a share above 0, and 1 at most.")
        if not 0 < given.cutoff < 1:
            raise InputError(f"--kind.cutoff {given.cutoff}: expected cycles per pixel above 0 and below 1.")
        if given.steps < 0 or not 1 <= given.shown <= 20:
            raise InputError("--kind.steps is 0 or more, and --kind.shown from 1 to 20.")
        cutoff = given.cutoff
        self.corruptions: dict[str, Corrupt] = {
            "masked": masked(given.noise, given.mask_ratio),
            "low-passed": lambda x, draws: apply_transfer(x, low_pass(tuple(x.shape[2:]), cutoff, x.device)),
        }

    def analyse(self, study: Study, page: AnalysisPage) -> Found:
        """See `Analysis`."""
        views = open_views(study, least=4)
        fit, channels = several(views.fit), views.fit[0].shape[1]
        numbers: dict[str, dict[str, object]] = {}
        scores: dict[str, dict[str, float]] = {}
        own = _own_decoders(study) if self.options.own_decoder else {}
        if own:
            page.text(
                f"{_listed(list(own))}: told by the decoder that the run was pretrained with, which was not fitted to "
                "these corruptions nor to these images. As in the methods' own pictures MAE and SimMIM tell the hidden "
                "patches alone and the others are as they were seen; where nothing is hidden they tell the whole "
                "image, for which they were not trained. MAE tells patches without their mean and spread where it was "
                "trained so, and those of the clean image are put back, which no other is given. MFM was trained on "
                "what was removed of the spectrum alone."
            )
        fitted_ = "a ridge regression from each position to its own block of pixels, in closed form"
        if self.options.steps:
            fitted_ = f"the light decoder of pretraining, {self.options.steps} steps"
        page.text(
            ("The others are told by a decoder that" if own else "The decoder")
            + " is fitted for each encoder and each kind of corruption, from its frozen map of corrupted "
            f"images to the clean ones, to other images than those shown: {fitted_}. "
            "What it cannot know from the position itself, the encoder must have brought there from around it. The "
            f"guide channel is that of the {self.options.guide} image. The random projection is of the corrupted "
            "block of pixels, to as many numbers as the first encoder gives: it brings nothing from anywhere."
        )
        for kind, corrupt in self.corruptions.items():
            first = sum(map(len, fit))
            pairs = _pairs(corrupt, fit, study.seed, 0)
            tests = _pairs(corrupt, views.test, study.seed, first)
            hidden = self._hidden(kind, views.test, study.seed, first)
            pictures = {"original": views.test, "corrupted": tuple(pair[:, channels:] for pair in tests)}
            found: dict[str, Recovery] = {}
            for name, (features, width, stride, subject) in self._maps(study, channels).items():
                tell = partial(self._told, study, f"{name}, {kind}", features, width, stride, pairs, tests, channels)
                by: tuple = ()
                if subject is not None and name in own:
                    tell = partial(self._told_by_own, own[name], subject, tests, hidden, channels)
                    by = own[name].content
                told_ = [o.to(study.device) for o in study.part(tell, kind, width, *stride, by, subject=subject)]
                seen = Comparison()
                for clean, found_ in zip(views.test, told_):
                    seen.add(clean, found_ - clean, width, stride)
                found[name] = seen.result(math.nan)
                pictures[name] = tuple(told_)
            arrays = {name: torch.cat(list(them)).cpu().numpy() for name, them in pictures.items()}
            errors = {name: _errors(arrays["original"], them) for name, them in arrays.items() if name != "original"}
            told_by = {name: own[name].words if name in own else self._fitted for name in found}
            self._show(page, kind, arrays, errors, found, told_by)
            numbers[kind] = {
                name: {"rmse": error["rmse"]._asdict(), "rmae": error["rmae"]._asdict()}
                | ({"told_by": told_by[name]} if name in told_by else {})
                | ({"spectrum": asdict(found[name])} if name in found else {})
                for name, error in errors.items()
            }
            for name, error in errors.items():
                scores.setdefault(name, {})[f"rmse_{kind}"] = error["rmse"].mean
        return Found(numbers, scores)

    def _maps(self, study: Study, channels: int) -> dict[str, tuple[FeatureMap, int, tuple[int, ...], Subject | None]]:
        """Maps of pairs, (B, clean and corrupted channels, *S), with their channels and stride; the null last."""
        found: dict[str, tuple[FeatureMap, int, tuple[int, ...], Subject | None]] = {}
        clean = self.options.guide == "clean"
        for subject in study.subjects:
            stride = per_axis(subject.encoder.stride, study.dims)

            def features(pair: Tensor, subject: Subject = subject) -> Tensor:
                guide = pair[:, :channels] if clean else None
                return subject.dense(pair[:, channels:], guide)

            found[subject.name] = features, subject.encoder.channels, stride, subject
        _, width, stride, _ = next(iter(found.values()))
        project = random_projection(width, stride)
        return found | {_NULL: (lambda pair: project(pair[:, channels:]), width, stride, None)}

    @property
    def _fitted(self) -> str:
        return f"a decoder trained for {self.options.steps} steps" if self.options.steps else "ridge regression"

    def _hidden(self, kind: str, images: tuple[Tensor, ...], seed: int, first: int) -> list[Tensor | None]:
        """Where patches of the test images are hidden; None for images that are not masked."""
        if kind != "masked":
            return [None] * len(images)
        found: list[Tensor | None] = []
        for batch in images:
            found.append(masked_places(batch, seed, first, self.options.noise, self.options.mask_ratio))
            first += len(batch)
        return found

    def _told_by_own(
        self, decoder: OwnDecoder, subject: Subject, tests: list[Tensor], hidden: list[Tensor | None], channels: int
    ) -> list[Tensor]:
        """What the run's own decoder tells of the clean images of ``tests``."""
        told_ = []
        for pair, places in zip(tests, hidden):
            clean, seen = pair[:, :channels], pair[:, channels:]
            guide = subject.encoder.make_guide(clean if self.options.guide == "clean" else seen)
            told_.append(decoder(seen, guide, places, clean))
        return told_

    def _told(
        self,
        study: Study,
        name: str,
        features: FeatureMap,
        width: int,
        stride: tuple[int, ...],
        pairs: list[Tensor],
        tests: list[Tensor],
        channels: int,
    ) -> list[Tensor]:
        """What is told of the clean images of ``tests``."""

        def clean(pair: Tensor) -> Tensor:
            return pair[:, :channels]

        if self.options.steps:
            trained = train_decoder(features, width, stride, pairs, study, steps=self.options.steps, lr=2e-3,
                                    target=clean, desc=name)  # fmt: skip
            return [trained(pair) for pair in tests]
        path, penalty = fitted(features, stride, study.each(pairs, name), clean)
        ridge = path.at(penalty)
        return [
            told(rows_of(features(pair).float()), path, ridge, (len(pair), channels, *pair.shape[2:]), stride)
            for pair in tests
        ]

    def _show(
        self,
        page: AnalysisPage,
        kind: str,
        arrays: Mapping[str, np.ndarray],
        errors: Mapping[str, Mapping[str, Summary]],
        found: Mapping[str, Recovery],
        told_by: Mapping[str, str],
    ) -> None:
        page.section(f"From {kind} images")
        page.table(
            [
                {
                    "": name,
                    "RMSE": MeanStd(error["rmse"].mean, error["rmse"].std),
                    "RMAE": MeanStd(error["rmae"].mean, error["rmae"].std),
                    **({f"R² {band}": share for band, share in found[name].bands.items()} if name in found else {}),
                    "Told by": told_by.get(name, ""),
                }
                for name, error in errors.items()
            ],
            caption="Root mean square error, and mean absolute error over the mean of the image, over whole images, "
            "mean ± standard deviation; R² of each band, in which 1 is the clean image.",
            best={"RMSE": "min", "RMAE": "min"},
            digits=3,
        )
        page.show(
            f"{kind}-images",
            reconstruction_table(arrays, self.options.shown),
            "Images that no decoder was fitted to here, and below them the logarithm of their spectra, on the "
            "original's scale.",
            wide=True,
        )
        curves = {name: (own.frequency, own.share) for name, own in found.items()}
        low = min((v for own in found.values() for v in own.share if math.isfinite(v)), default=0.0)
        page.show(
            f"{kind}-spectrum",
            share_curves(curves, null=_NULL, span=(max(-1.0, min(-0.1, low - 0.05)), 1.02)),
            "Share of the clean images that is told, by frequency.",
            wide=True,
        )


def _own_decoders(study: Study) -> dict[str, OwnDecoder]:
    """By the name of the encoder; a note says of the others why there is none."""
    found: dict[str, OwnDecoder] = {}
    for subject in study.subjects:
        try:
            found[subject.name] = own_decoder(subject.encoder, subject.reference)
        except NoDecoder as error:
            study.notes.append(f"{subject.name} has no decoder of its own ({error}), and one is fitted.")
    return found


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _pairs(corrupt: Corrupt, batches: tuple[Tensor, ...], seed: int, first: int) -> list[Tensor]:
    """Clean images and, as further channels, the corrupted ones."""
    found = []
    for images in batches:
        found.append(torch.cat([images, corrupted(corrupt, images, seed, first)], 1))
        first += len(images)
    return found


def _errors(original: np.ndarray, other: np.ndarray) -> dict[str, Summary]:
    measures = {"rmse": root_mean_square_error, "rmae": relative_error}
    return {name: summarise([measure(a, b) for a, b in zip(other, original)]) for name, measure in measures.items()}
