"""A decoder trained on the frozen map of an encoder, to tell the image from it (Frepa Eq. 14)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frepa.analysis.contract import Study
from frepa.analysis.recovery import FeatureMap
from frepa.heads.decoder import ReconstructionDecoder
from frepa.heads.standardise import Moments, Standardise
from frepa.machine import deterministic, keeping_memory
from frepa.optimizers import adam
from frepa.schedules import learning_rates

# Numbers of a map and image that are held for all images, rather than computed anew at each step: 2 GB.
_HELD = 5e8
#: Images per step.
BATCH = 8


@dataclass(frozen=True)
class TrainedDecoder:
    """A decoder on standardised features.

    Attributes:
        features: the frozen map.
        standardise, decoder: in evaluation mode.
        steps: it was trained for. best_step: after which it told the images held out best; it is kept as it was then.
        error: mean squared error of the images held out, an eighth, after ``best_step``.
        error_fitted: of the training batches, over the last tenth of the steps.
    """

    features: FeatureMap
    standardise: Standardise
    decoder: ReconstructionDecoder
    steps: int
    best_step: int
    error: float
    error_fitted: float

    @property
    def course(self) -> dict[str, float]:
        """The numbers of the training."""
        return {name: getattr(self, name) for name in ("steps", "best_step", "error", "error_fitted")}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """What it tells of images (B, C, *S): the same shape, float32, meant to lie in [0, 1]."""
        return self.decoder(self.standardise(self.features(images)), tuple(images.shape[2:]))


def mean_square(residual: Tensor) -> Tensor:
    """Mean squared error of a residual (B, C, *S): what Frepa Eq. 14 is trained with."""
    return residual.square().mean()


def train_decoder(
    features: FeatureMap,
    channels: int,
    stride: int | tuple[int, ...],
    fit: Sequence[Tensor],
    study: Study,
    *,
    steps: int,
    lr: float,
    loss: Callable[[Tensor], Tensor] = mean_square,
    target: FeatureMap | None = None,
    desc: str = "Decoder",
) -> TrainedDecoder:
    """Train the light decoder of pretraining on a frozen map, from the study's seed.

    The last eighth of the images is held out, looked at ten times, and decides which state is kept: a decoder of many
    weights on few images learns them by heart.

    Args:
        features: images (B, C, *S) in [0, 1] to the map (B, channels, *s), without gradient.
        channels, stride: of the map.
        fit: batches (B, C, *S).
        steps: of `BATCH` images each, drawn without repeating until all were seen.
        lr: highest learning rate, after which it falls along half a cosine.
        loss: of the residual.
        target: what is to be told of the images, where it is not they themselves.
    """
    device, images = fit[0].device, torch.cat(list(fit))
    dims, out = images.ndim - 2, max(1, len(images) // 8)
    with torch.no_grad():
        wanted = images if target is None else torch.cat([target(batch) for batch in fit])
        moments, maps = Moments(channels, device), list[Tensor]()
        hold = True
        for batch in study.each(fit, f"{desc}: features"):
            own = features(batch)
            moments.add(own)
            hold = hold and (own[0].numel() + images[0].numel()) * len(images) <= _HELD
            if hold:
                maps.append(own)
        held = torch.cat(maps) if hold else None
    standardise = Standardise(channels).to(device)
    standardise.set(moments.mean, moments.std)

    def residual(rows: Tensor) -> Tensor:
        with torch.no_grad():
            own = features(images[rows]) if held is None else held[rows]
        return decoder(standardise(own), tuple(images.shape[2:])) - wanted[rows]

    @torch.no_grad()
    def error() -> float:
        decoder.eval()
        places = torch.arange(len(images) - out, len(images))
        found = float(torch.cat([residual(rows).square().flatten(1).mean(1) for rows in places.split(BATCH)]).mean())
        decoder.train()
        return found

    with torch.random.fork_rng(devices=[]), deterministic(device), keeping_memory():
        torch.manual_seed(study.seed)
        decoder = ReconstructionDecoder(channels, stride, wanted.shape[1], dims).to(device).train()
        optimizer = adam(decoder.parameters(), lr)
        rates = learning_rates("cosine", peak=lr, steps=steps, warmup_steps=steps // 20)
        looks = set(np.unique(np.linspace(1, steps, 10).round()).astype(int).tolist())
        fitted: list[Tensor] = []
        best: tuple[float, int, dict[str, Tensor]] | None = None
        for step, rows in zip(study.each(range(steps), desc, steps), _batches(max(1, len(images) - out), study.seed)):
            for group in optimizer.param_groups:
                group["lr"] = float(rates[step])
            off = residual(rows)
            optimizer.zero_grad(set_to_none=True)
            loss(off).backward()
            optimizer.step()
            fitted.append(mean_square(off.detach()))
            now = error() if step + 1 in looks else math.inf
            if best is None or now < best[0]:
                best = now, step + 1, {name: value.clone() for name, value in decoder.state_dict().items()}
    assert best is not None
    decoder.load_state_dict(best[2])
    return TrainedDecoder(
        features, standardise, decoder.eval().requires_grad_(False), steps, best[1], best[0],
        float(torch.stack(fitted[-max(1, steps // 10) :]).double().mean()),
    )  # fmt: skip


def _batches(count: int, seed: int) -> Iterator[Tensor]:
    """Rows of each step: all of them in a drawn order, then again in another one."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < min(BATCH, count):
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:BATCH]
        waiting = waiting[BATCH:]
