"""What an encoder's features hold of each frequency, read linearly: the closed-form counterpart of Frepa Fig. 7.

From the features of each position a ridge regression predicts the position's block of pixels. What it recovers of
images it was not fitted to is compared with them ring by ring over the spectrum. No decoder is trained, so there is no
seed, no learning rate and no question whether it has converged. A random projection of each block to as many numbers as
the encoder has channels is the null: what any map of that size keeps without having learnt anything.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frepa.corruption.spectrum import half_shape, signed_frequencies, to_spectrum
from frepa.encoders.contract import per_axis
from frepa.heads.ridge import (
    Ridge,
    RidgePath,
    RidgeSums,
    blocks_of,
    choose_by_leaving_out,
    leaving_out,
    rows_of,
    unblocked,
)

#: Rings between 0 and 0.5 cycles per pixel.
RINGS = 25
#: Bands by radial frequency in cycles per pixel (Frepa Eq. 15, which gives no numbers); beyond 0.5 lie the corners.
BANDS = {"low": (0.0, 0.1), "medium": (0.1, 0.3), "high": (0.3, math.inf)}
_FOLDS = 4
# Positions that a cross-fitted regression sees of each feature, at least; of finer maps not all are looked at.
_ROWS_PER_FEATURE = 40
# From next to none to so much that the mean is all that is left.
_FEW_PENALTIES = (1e-4, 1e-2, 1.0, 100.0)

#: Images (B, C, *S) in [0, 1] to the features of every position, (B, K, *(S / stride)).
FeatureMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Recovery:
    """What was recovered of the test images.

    Attributes:
        frequency: centres of the rings in cycles per pixel, (rings,).
        share: R^2 of each ring: 1 - (energy of the error) / (energy of the images), (rings,). 1 is all of it, 0 what
            the mean would give; NaN where the images have no energy.
        energy: share of the images' energy (without their mean) in each ring, (rings,).
        bands: R^2 of each band of `BANDS`.
        similarity: rho of each band, 1 - RMSE between the filtered images (Frepa Eq. 15), mean over images.
        spread: standard deviation of rho over images.
        penalty: of the ridge regression, chosen on the images it was fitted to; NaN for another decoder.
        channels, outputs: numbers per position, and pixels of its block they have to tell.
    """

    frequency: tuple[float, ...]
    share: tuple[float, ...]
    energy: tuple[float, ...]
    bands: Mapping[str, float]
    similarity: Mapping[str, float]
    spread: Mapping[str, float]
    penalty: float
    channels: int
    outputs: int


@torch.no_grad()
def recovery(
    features: FeatureMap,
    stride: int | tuple[int, ...],
    fit: Iterable[Tensor],
    test: Iterable[Tensor],
    bands: Mapping[str, tuple[float, float]] = BANDS,
) -> Recovery:
    """Fit the regression to the batches of ``fit`` and see what it recovers of those of ``test``.

    Args:
        features: gives the map of a batch, in evaluation mode.
        stride: pixels per position, one number or one per axis.
        fit, test: batches (B, C, *S) in [0, 1], all with the same C and each S a multiple of the stride. At least two
            batches to fit, so that the penalty can be chosen by leaving some out; test images must be others.
        bands: name to limits in cycles per pixel.

    Raises:
        ValueError: no batches, or a size that the stride does not divide.
    """
    path, penalty = fitted(features, stride, fit)
    ridge, seen = path.at(penalty), Comparison(bands)
    for images in test:
        rows, _ = _rows(features, images, stride)
        seen.add(images, told(rows, path, ridge, images.shape, stride) - images, rows.shape[1], stride)
    if not seen.outputs:
        raise ValueError("no images to test")
    return seen.result(penalty)


@torch.no_grad()
def fitted(
    features: FeatureMap, stride: int | tuple[int, ...], fit: Iterable[Tensor], target: FeatureMap | None = None
) -> tuple[RidgePath, float]:
    """The regression from a map to the pixels of the same images, and the penalty chosen by leaving some out.

    ``target`` gives the images that are to be told, (B, C, *S), where they are not those that the map is of.

    Raises:
        ValueError: no batches, or a size that the stride does not divide.
    """
    folds: list[RidgeSums] = []
    for number, images in enumerate(fit):
        rows, blocks = _rows(features, images, stride)
        if target is not None:
            blocks = blocks_of(target(images), stride)
        if len(folds) < _FOLDS:
            folds.append(RidgeSums(rows.shape[1], blocks.shape[1], rows.device))
        folds[number % _FOLDS].add(rows, blocks)
    if not folds:
        raise ValueError("no images to fit")
    total = folds[0]
    for fold in folds[1:]:
        total = total.plus(fold)
    return RidgePath(total), choose_by_leaving_out(folds)


def told(
    rows: Tensor, path: RidgePath, ridge: Ridge, shape: torch.Size | tuple[int, ...], stride: int | tuple[int, ...]
) -> Tensor:
    """Images of ``shape`` (B, C, *S) float32 as the regression tells them from rows (B * positions, K)."""
    scale = torch.where(path.std > 0, 1 / path.std, 0.0)
    found = ((rows.double() - path.mean) * scale) @ ridge.weight + ridge.bias
    return unblocked(found.float(), shape, stride)


@torch.no_grad()
def cross_bands(maps: Sequence[Tensor], images: Sequence[Tensor], stride: int | tuple[int, ...]) -> dict[str, float]:
    """R^2 of each band of `BANDS`, of few images: each is told by what is fitted to the others, in four folds.

    Args:
        maps: (1, K, *s) of each image.
        images: (1, C, *S) in [0, 1], S as many whole positions as the map has. At least two, all of one size.
        stride: pixels per position.

    Of a few penalties each band has the one that recovers most of it: of few images one penalty for all would be that
    of the low frequencies, which have the energy, and lose the high ones to what it fits of chance.
    """
    count = min(_FOLDS, len(images))
    if count < 2:
        raise ValueError("at least two images are needed, to fit to some and look at others")
    parts = [torch.cat(tuple(images[number::count])) for number in range(count)]
    rows = [rows_of(torch.cat(tuple(maps[number::count])).float()) for number in range(count)]
    total, width = sum(map(len, rows)), rows[0].shape[1]
    # A position in so many is enough for a fine map, and a fine map is large.
    step = max(1, total // (_ROWS_PER_FEATURE * width))
    folds: list[RidgeSums] = []
    for own, part in zip(rows, parts):
        blocks = blocks_of(part, stride)
        folds.append(RidgeSums(width, blocks.shape[1], own.device))
        folds[-1].add(own[::step], blocks[::step])
    paths = leaving_out(folds)
    best = dict.fromkeys(BANDS, math.nan)
    for penalty in _FEW_PENALTIES:
        seen = Comparison()
        for own, part, path in zip(rows, parts, paths):
            seen.add(part, told(own, path, path.at(penalty), part.shape, stride) - part, width, stride)
        for name, share in seen.result(penalty).bands.items():
            best[name] = share if math.isnan(best[name]) else max(best[name], share)
    return best


@torch.no_grad()
def random_projection(channels: int, stride: int | tuple[int, ...], seed: int = 0) -> FeatureMap:
    """The null: each block of pixels, over all image channels, projected by one fixed Gaussian matrix."""

    def project(images: Tensor) -> Tensor:
        steps = per_axis(stride, images.ndim - 2)
        blocks = blocks_of(images, steps)
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(blocks.shape[1], channels, generator=generator) / math.sqrt(blocks.shape[1])
        grid = [n // step for n, step in zip(images.shape[2:], steps)]
        found = blocks.float() @ matrix.to(blocks.device)
        return found.view(len(images), *grid, channels).movedim(-1, 1)

    return project


def _rows(features: FeatureMap, images: Tensor, stride: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    steps = per_axis(stride, images.ndim - 2)
    if any(n % step for n, step in zip(images.shape[2:], steps)):
        raise ValueError(f"images of {tuple(images.shape[2:])} are not whole numbers of positions of {steps} pixels")
    return rows_of(features(images).float()), blocks_of(images, steps)


class Comparison:
    """Reconstructions compared with their images, ring by ring and band by band, over any number of batches.

    Args:
        bands: name to limits in cycles per pixel; each is the ring from the first (with it) to the second (without).
    """

    def __init__(self, bands: Mapping[str, tuple[float, float]] = BANDS) -> None:
        self.bands = dict(bands)
        self.channels = self.outputs = 0
        self._error, self._energy = (torch.zeros(RINGS + 1, dtype=torch.float64) for _ in range(2))
        self._band_error, self._band_energy = dict.fromkeys(self.bands, 0.0), dict.fromkeys(self.bands, 0.0)
        self._similarity: dict[str, list[Tensor]] = {name: [] for name in self.bands}

    def add(self, images: Tensor, residual: Tensor, channels: int, stride: int | tuple[int, ...]) -> None:
        """Take in images (B, C, *S) and the residual of what was told of them from ``channels`` numbers per position.

        The residual is filtered, as everything here is linear: never prediction and image apart.
        """
        self.channels, self.outputs = channels, images.shape[1] * math.prod(per_axis(stride, images.ndim - 2))
        shape = tuple(images.shape[2:])
        radius = radial_frequency(shape).to(images.device)
        # A coefficient of the half spectrum stands for its mirror image too, except on the planes that have none.
        weight = _mirror_weight(shape).to(images.device)
        off, whole = (to_spectrum(x).abs().square().double() * weight for x in (residual, images))
        ring = (radius / 0.5 * RINGS).long().clamp(max=RINGS)
        ring[radius == 0] = RINGS  # the mean counts in no ring
        for total, values in ((self._error, off), (self._energy, whole)):
            total.index_add_(0, ring.flatten().cpu(), values.sum((0, 1)).flatten().cpu())
        for name, (low, high) in self.bands.items():
            inside = (radius >= low) & (radius < high)
            counted = inside & (radius > 0)
            self._band_error[name] += float(off[..., counted].sum())
            self._band_energy[name] += float(whole[..., counted].sum())
            # Parseval: the RMSE of the filtered residual, from its spectrum
            mean_square = off[..., inside].sum((1, 2)) / (math.prod(shape) ** 2 * images.shape[1])
            self._similarity[name].append(1 - mean_square.sqrt().cpu())

    def result(self, penalty: float) -> Recovery:
        """All of it together."""
        error, energy = self._error, self._energy
        total = float(energy[:RINGS].sum())
        return Recovery(
            frequency=tuple((torch.arange(RINGS) + 0.5).div(RINGS).mul(0.5).tolist()),
            share=tuple((1 - error / energy)[:RINGS].where(energy[:RINGS] > 0, math.nan).tolist()),
            energy=tuple((energy[:RINGS] / total if total else energy[:RINGS]).tolist()),
            bands={n: 1 - self._band_error[n] / e if e else math.nan for n, e in self._band_energy.items()},
            similarity={name: float(torch.cat(values).mean()) for name, values in self._similarity.items()},
            spread={n: float(torch.cat(values).std(correction=0)) for n, values in self._similarity.items()},
            penalty=penalty,
            channels=self.channels,
            outputs=self.outputs,
        )


@functools.lru_cache(maxsize=16)  # shared: never changed in place
@torch.inference_mode(False)
def radial_frequency(shape: tuple[int, ...]) -> Tensor:
    """Radial frequency of each coefficient of the half spectrum in cycles per pixel, float64 (*half)."""
    square = torch.zeros((), dtype=torch.float64)
    for axis, size in enumerate(shape):
        own = signed_frequencies(size)[: half_shape(shape)[axis]].double().abs() / size
        square = square[..., None] + own**2
    return square.sqrt()


def _mirror_weight(shape: tuple[int, ...]) -> Tensor:
    last = shape[-1]
    weight = torch.full((last // 2 + 1,), 2.0, dtype=torch.float64)
    weight[0] = 1
    if last % 2 == 0:
        weight[-1] = 1
    return weight
