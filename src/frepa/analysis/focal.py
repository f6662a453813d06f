"""Focal frequency loss against the hierarchical frequency-to-spatial loss (Frepa Eq. 9, Fig. 4)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from frepa.analysis.contract import Analysis, AnalysisPage, Found, Study, Subject
from frepa.analysis.decoding import train_decoder
from frepa.analysis.recovery import RINGS, Comparison, radial_frequency
from frepa.analysis.registry import register_analysis
from frepa.analysis.views import Views, open_views
from frepa.corruption.spectrum import to_spectrum
from frepa.downstream.scores import summarise
from frepa.encoders.contract import per_axis
from frepa.errors import InputError
from frepa.pretraining.methods.terms import focal_frequency_loss, hfl, rmse
from frepa.report.figures import loss_curves, root_mean_square_error
from frepa.report.page import MeanStd
from frepa.report.strips import reconstruction_table

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FocalOptions:
    """Focal frequency loss against HFL: their weights over the spectrum, and what decoders make of them (Frepa Fig. 4).

    Args:
        alpha: exponent of the focal weight.
        focal_weight: of the focal frequency loss beside the RMSE.
        hfl_weight: of HFL beside the RMSE.
        steps: of each decoder, 8 images each.
        lr: highest learning rate of the decoders.
        shown: images on the page.
    """

    alpha: float = 1.0
    focal_weight: float = 1.0
    hfl_weight: float = 1.0
    steps: int = 400
    lr: float = 2e-3
    shown: int = 3


@register_analysis("focal", FocalOptions)
class Focal(Analysis):
    """Gradients of the two losses over the spectrum, and decoders of frozen maps trained with each."""

    options: FocalOptions
    title = "Focal frequency loss and HFL"
    question = "Where in the spectrum does each loss pull, and what do reconstructions trained with it look like?"

    def check(self) -> None:
        """See `Analysis`."""
        given = self.options
        for name in ("alpha", "focal_weight", "hfl_weight"):
            if not 0 <= getattr(given, name) < math.inf:
                option = name.replace("_", "-")
                raise InputError(f"--kind.{option} {getattr(given, name)}: expected a number of at least 0.")
        if given.steps < 1 or not 1 <= given.shown <= 20:
            raise InputError("--kind.steps is 1 or more, and --kind.shown from 1 to 20.")
        if not 0 < given.lr < 1:
            raise InputError(f"--kind.lr {given.lr}: expected a number above 0 and below 1.")

        def focal(r: Tensor) -> Tensor:
            return focal_frequency_loss(r, given.alpha)

        self.alone: dict[str, Loss] = {"RMSE": rmse, "HFL": hfl, "focal frequency loss": focal}
        self.together: dict[str, Loss] = {
            "RMSE": rmse,
            "RMSE + HFL": lambda r: rmse(r) + given.hfl_weight * hfl(r),
            "RMSE + focal": lambda r: rmse(r) + given.focal_weight * focal(r),
        }

    def analyse(self, study: Study, page: AnalysisPage) -> Found:
        """See `Analysis`."""
        views = open_views(study, least=4)
        page.text(
            "The decoder is the light one of pretraining, on the frozen map of each encoder, trained with the RMSE "
            "alone, with HFL beside it (Frepa Eq. 9), and with the focal frequency loss beside it (Jiang et al. 2021), "
            f"weights {self.options.hfl_weight:g} and {self.options.focal_weight:g}. The lattice is the set of "
            "frequencies that repeat with the encoder's stride: what an image has there beyond its neighbours "
            "in the spectrum is a grid. 1 is none, and the original has its own."
        )
        numbers: dict[str, dict[str, object]] = {}
        scores: dict[str, dict[str, float]] = {}
        clean = torch.cat(list(views.test))
        for subject in study.subjects:
            stride = per_axis(subject.encoder.stride, study.dims)
            told: dict[str, Tensor] = {}
            for name, loss in self.together.items():
                own_told = study.part(partial(self._told, study, subject, views, name, loss), name, subject=subject)
                told[name] = own_told.to(study.device)
            pulls = pull(self.alone, told["RMSE"] - clean)
            own = self._show(page, subject.name, clean, told, pulls, subject.encoder.channels, stride)
            numbers[subject.name] = {"decoders": own, "pull": {name: list(values) for name, values in pulls.items()}}
            scores[subject.name] = {f"{what}, {loss}": value for loss, of in own.items() for what, value in of.items()}
        frequency = ((np.arange(RINGS) + 0.5) / RINGS * 0.5).tolist()
        return Found({"frequency": frequency, "encoders": numbers}, scores)

    def _told(self, study: Study, subject: Subject, views: Views, name: str, loss: Loss) -> Tensor:
        """What a decoder trained with the loss makes of the test images."""
        decoder = train_decoder(
            subject.dense, subject.encoder.channels, per_axis(subject.encoder.stride, study.dims), views.fit, study,
            steps=self.options.steps, lr=self.options.lr, loss=loss, desc=f"{subject.name}, {name}",
        )  # fmt: skip
        return torch.cat([decoder(images) for images in views.test])

    def _show(
        self,
        page: AnalysisPage,
        name: str,
        clean: Tensor,
        told: Mapping[str, Tensor],
        pulls: Mapping[str, list[float]],
        channels: int,
        stride: tuple[int, ...],
    ) -> dict[str, dict[str, float]]:
        page.section(name)
        number = sum("pull" in file for file in page.files) + 1
        frequency = (np.arange(RINGS) + 0.5) / RINGS * 0.5
        page.show(
            f"pull-{number}",
            loss_curves({loss: (frequency.tolist(), values) for loss, values in pulls.items()},
                        xlabel="cycles per pixel", ylabel="pull per unit of error", log=True),
            "How strongly each loss pulls at an error of one unit, by frequency: magnitude of its gradient over that "
            "of the residual, mean over images, made 1 on average. The residual is what the decoder trained with the "
            "RMSE leaves. The RMSE pulls everywhere alike.",
        )  # fmt: skip
        found: dict[str, dict[str, float]] = {}
        original = lattice(clean, stride)
        for loss, images in told.items():
            seen = Comparison()
            seen.add(clean, images - clean, channels, stride)
            result = seen.result(math.nan)
            off = [root_mean_square_error(a, b) for a, b in zip(images.cpu().numpy(), clean.cpu().numpy())]
            found[loss] = {
                "rmse": summarise(off).mean, "rmse_std": summarise(off).std,
                **{f"r2_{band}": share for band, share in result.bands.items()},
                "lattice": lattice(images, stride), "lattice_original": original,
            }  # fmt: skip
        page.table(
            [
                {
                    "Trained with": loss,
                    "RMSE": MeanStd(own["rmse"], own["rmse_std"]),
                    **{f"R² {band}": own[f"r2_{band}"] for band in ("low", "medium", "high")},
                    "Lattice": own["lattice"],
                }
                for loss, own in found.items()
            ],
            caption=f"On images that the decoders were not trained on. The lattice of the originals is {original:.2f}.",
            best={"RMSE": "min"},
            digits=3,
        )
        page.show(
            f"reconstructions-{number}",
            reconstruction_table(
                {name: images.cpu().numpy() for name, images in {"original": clean, **told}.items()}, self.options.shown
            ),
            "Reconstructions, and below them the logarithm of their spectra, on the original's scale.",
            wide=True,
        )
        return found


def pull(losses: Mapping[str, Loss], residual: Tensor) -> dict[str, list[float]]:
    """Magnitude of each loss's gradient over that of the residual (N, C, *S), by ring; its mean over rings is 1.

    Of each image for itself, as losses that weigh by an image's largest coefficient do; the mean of coefficients is
    taken of both before they are divided. NaN where a ring has no coefficient.
    """
    shape = tuple(residual.shape[2:])
    radius = radial_frequency(shape).to(residual.device)
    ring = (radius / 0.5 * RINGS).long().clamp(max=RINGS)
    ring[radius == 0] = RINGS

    def by_ring(images: Tensor) -> Tensor:
        size = to_spectrum(images).abs().double().sum((0, 1))
        return torch.zeros(RINGS + 1, dtype=torch.float64).index_add_(0, ring.flatten().cpu(), size.flatten().cpu())

    below = by_ring(residual)[:RINGS]
    found = {}
    for name, loss in losses.items():
        gradients = []
        for one in residual.split(1):
            wanted = one.detach().clone().requires_grad_()
            gradients.append(torch.autograd.grad(loss(wanted), wanted)[0])
        above = by_ring(torch.cat(gradients))[:RINGS]
        ratio = torch.where(below > 0, above / below, math.nan)
        found[name] = (ratio / ratio.nanmean()).tolist()
    return found


def lattice(images: Tensor, stride: tuple[int, ...]) -> float:
    """How much images (N, C, *S) have at frequencies that repeat with the stride, beyond their neighbours.

    Power is each image's share of its own, mean over images and channels; of it the geometric mean over these
    frequencies (zero left out) of the power there over the mean power two bins away along each axis. Near 1 for many
    images without a grid. NaN where the size holds fewer than four strides, and for a map of full resolution.
    """
    shape = tuple(images.shape[2:])
    steps = [n // step for n, step in zip(shape, stride)]
    if any(step > 1 and n < 4 for n, step in zip(steps, stride)) or max(stride) == 1:
        return math.nan
    axes = tuple(range(2, images.ndim))
    axes_of_power = tuple(range(len(shape)))
    power = torch.fft.fftn(images.double(), dim=axes).abs().square().mean(1)
    power = (power / power.flatten(1).sum(1).view(-1, *(1,) * len(shape)).clamp(min=1e-30)).mean(0)
    there = torch.ones((), dtype=torch.bool)
    for size, every, step in zip(shape, steps, stride):
        own = torch.arange(size) % every == 0 if step > 1 else torch.arange(size) == 0
        there = there[..., None] & own
    there.view(-1)[0] = False
    moved = [power.roll(shift, axis) for axis, shift in itertools.product(axes_of_power, (-2, 2))]
    ratio = power / torch.stack(moved).mean(0).clamp(min=1e-30)
    return float(ratio[there.to(power.device)].clamp(min=1e-12).log().mean().exp())
