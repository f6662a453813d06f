"""The high-frequency guide: where an image has ridges, by an image-domain filter (Frepa Eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from frepa.corruption.hessian import Matrix, convolved, eigenvalues, full_precision, hessian, reach, squared_norm
from frepa.corruption.inputs import check_images
from frepa.corruption.workers import for_each
from frepa.errors import InputError, nearest
from frepa.images.readers.pixels import LUMINANCE

# Kinds of guide: a measure, and, behind it, the ridges that answer where only one polarity does.
GUIDES = ("frangi", "frangi_dark", "frangi_bright", "hessian", "hessian_dark", "hessian_bright", "none")
# Scales in pixels of a guide that names none.
SIGMAS = (0.5, 1.0, 1.5)
# A filter's kernel is several times as wide, and no ridge of an image is.
_MOST_SIGMA = 128
# `skimage.filters.hessian` sets the strength at which a structure counts to 15 of 255 grey levels.
_HESSIAN_GAMMA = 15 / 255
# No gamma goes below this share of the intensity range (a step of one in 16-bit images gives 1.5e-5): an image that is
# constant but for float32 rounding, as after resampling, has no ridges.
_LEAST_GAMMA = 1e-5


class Guide(NamedTuple):
    """What a guide's name says.

    measure: ``"frangi"``, ``"hessian"`` or ``"none"``. ridges: ``"both"``, ``"dark"`` or ``"bright"``. sigmas: scales
    in pixels.
    """

    measure: str
    ridges: str
    sigmas: tuple[float, ...]


def parse_guide(name: str) -> Guide:
    """The guide that ``name`` stands for: a kind, or a kind and its scales in pixels, ``"frangi_dark:1-2-3"``.

    Raises InputError for an unknown kind and for scales that are not positive numbers.
    """
    kind, colon, scales = name.partition(":")
    if kind not in GUIDES:
        raise InputError(f"guide {name!r} is not known. {nearest(kind, GUIDES)}")
    try:
        sigmas = tuple(float(scale) for scale in scales.split("-")) if colon else SIGMAS
    except ValueError:
        sigmas = ()
    if not sigmas or not all(0 < sigma <= _MOST_SIGMA for sigma in sigmas) or (colon and kind == "none"):
        raise InputError(
            f"guide {name!r}: expected a kind of guide other than none, a colon and scales in pixels from above 0 to "
            f"{_MOST_SIGMA} with - "
            'between them, for instance "frangi_dark:1-2-3".'
        )
    measure, _, ridges = kind.partition("_")
    return Guide(measure, ridges or "both", sigmas)


def hessian_guide(
    x: Tensor,
    *,
    kind: str = "frangi",
    sigmas: Sequence[float] | None = None,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float | None = None,
) -> Tensor:
    """Multi-scale Hessian ridge measure of the clean image: the guide channel of Frepa Eq. 6.

    At each scale, of the Hessian's eigenvalues ``|l1| <= |l2| <= |l3|``::

        (1 - exp(-Ra^2 / 2 alpha^2)) * exp(-Rb^2 / 2 beta^2) * (1 - exp(-S^2 / 2 gamma^2))

    with ``Ra = l2 / l3``, ``Rb = |l1| / sqrt(l2 l3)`` and ``S`` the norm of all three; 0 unless ``l2`` and ``l3``
    have the sign of the ridge. In 2D ``l3`` is ``l2`` and the first factor is 1. The result is the maximum over the
    scales. It is `skimage.filters.frangi`, except that skimage lets some ridges of the wrong polarity through where
    ``l1`` is nearly 0 (it relies on a ratio with 1e-10 being large); here they are 0.

    Args:
        x: clean images ``(B, C, *S)`` in [0, 1], finite. Of three channels the luminance is taken (Rec. 709), of any
            other number the mean.
        kind: ``"frangi"``: gamma is half the largest ``S`` of each image at the first scale, so an image is measured
            against itself. ``"hessian"``: gamma is 15 / 255, so that faint structures stay faint; this is
            `skimage.filters.hessian` of the image times 255, but for the 1 which that filter writes where the measure
            is 0: here it stays 0. ``"none"``: zeros. Both answer to dark and bright ridges, the maximum of the two;
            ``"frangi_dark"``, ``"frangi_bright"``, ``"hessian_dark"`` and ``"hessian_bright"`` answer to one of them,
            which tells the encoder the sign as well. Scales may follow: ``"frangi_dark:1-2-3"``.
        sigmas: scales in pixels; those that ``kind`` names, or 0.5, 1 and 1.5, when not given.
        alpha: sensitivity to plates against tubes (3D only).
        beta: sensitivity to blobs.
        gamma: strength at which structures count, in intensity units per pixel squared, instead of the kind's own.

    Returns:
        float32 ``(B, 1, *S)`` in [0, 1]; zeros for a constant image. No gradient flows through it.

    Raises InputError for an unknown kind, no scales, or a scale or factor that is not positive.
    """
    check_images(x)
    guide = parse_guide(kind)
    sigmas = guide.sigmas if sigmas is None else tuple(sigmas)
    if not sigmas or min(*sigmas, alpha, beta, 1 if gamma is None else gamma) <= 0:
        raise InputError(
            f"guide: found sigmas={sigmas}, alpha={alpha}, beta={beta}, gamma={gamma}; "
            "expected at least one scale and positive numbers."
        )
    out = torch.zeros(len(x), 1, *x.shape[2:], device=x.device)
    if guide.measure == "none":
        return out
    if gamma is None and guide.measure == "hessian":
        gamma = _HESSIAN_GAMMA

    def measure(images: slice) -> None:
        _measure(luminance(x[images]), out[images, 0], sigmas, alpha, beta, gamma, guide.ridges)

    with full_precision(x.device):
        for_each(len(x), math.prod(x.shape[2:]), x.device, measure)
    return out


def plain_guide(x: Tensor, kind: str) -> Tensor:
    """`hessian_guide` in plain operations, which torch.export and ONNX can write down for any size of image.

    Args:
        x: clean images ``(B, C, *S)`` in [0, 1], every side at least `guide_reach` pixels.
        kind: as `hessian_guide` takes it, but not "none".

    Returns:
        float32 ``(B, 1, *S)``, equal to `hessian_guide` up to rounding.
    """
    guide, grey = parse_guide(kind), luminance(x)
    each = (-1, *[1] * (grey.ndim - 1))
    grey = grey - grey.flatten(1)[:, 0].view(each)
    gamma = None if guide.measure == "frangi" else 2 * _HESSIAN_GAMMA**2
    width: Tensor | float | None = gamma
    best = torch.zeros_like(grey)
    for sigma in guide.sigmas:
        matrix = hessian(grey, sigma, along=convolved)
        norm = squared_norm(matrix)
        if width is None:
            width = (norm.flatten(1).amax(1) / 2).clamp_min(2 * _LEAST_GAMMA**2).view(each)
        strength = -torch.expm1(-norm / width)
        best = torch.maximum(best, line_shape(matrix, guide.ridges, 0.5, 0.5) * strength)
    return best.unsqueeze(1)


def guide_reach(kind: str) -> int:
    """Pixels that a guide's widest filter looks to either side."""
    return max(map(reach, parse_guide(kind).sigmas))


def luminance(x: Tensor) -> Tensor:
    """Luminance, float32 ``(B, *S)``, of images ``(B, C, *S)``: `LUMINANCE` of three channels, the mean of others."""
    weights = LUMINANCE if x.shape[1] == 3 else (1 / x.shape[1],) * x.shape[1]
    total = x[:, 0].float() * weights[0]
    for channel, weight in enumerate(weights[1:], start=1):
        total.add_(x[:, channel], alpha=weight)
    return total


def _measure(
    grey: Tensor, out: Tensor, sigmas: Sequence[float], alpha: float, beta: float, gamma: float | None, ridges: str
) -> None:
    """Write the measure of images ``grey (B, *S)`` into ``out``, of the same shape and zero."""
    # Derivatives do not see an offset. Without it a constant image is exactly 0, so its Hessian is too.
    grey = grey - grey.flatten(1)[:, 0].view(-1, *[1] * (grey.ndim - 1))
    width = None if gamma is None else grey.new_full((len(grey),), 2 * max(gamma, _LEAST_GAMMA) ** 2)
    for sigma in sigmas:
        matrix = hessian(grey, sigma)
        norm = _squared_norm(matrix)
        if width is None:  # 2 gamma^2, with gamma half of the largest norm
            width = norm.flatten(1).amax(1).div_(2).clamp_min_(2 * _LEAST_GAMMA**2)
        norm.div_(width.view(-1, *[1] * (norm.ndim - 1)))
        _keep_largest(out, matrix, norm, ridges, alpha, beta)


def _squared_norm(matrix: Matrix) -> Tensor:
    out = torch.empty_like(matrix[0, 0])
    flat = {pair: entry.view(-1) for pair, entry in matrix.items()}

    def work(pixels: slice) -> None:
        out.view(-1)[pixels] = squared_norm({pair: entry[pixels] for pair, entry in flat.items()})

    for_each(out.numel(), 1, out.device, work)
    return out


def _keep_largest(best: Tensor, matrix: Matrix, norm: Tensor, ridges: str, alpha: float, beta: float) -> None:
    """Raise ``best`` to this scale's answer where that is larger."""
    flat = {pair: entry.view(-1) for pair, entry in matrix.items()}
    old, strength = best.view(-1), norm.view(-1)

    def work(pixels: slice) -> None:
        answer = line_shape({pair: entry[pixels] for pair, entry in flat.items()}, ridges, alpha, beta)
        answer.mul_(strength[pixels].neg_().expm1_()).neg_()
        torch.maximum(old[pixels], answer, out=old[pixels])

    for_each(best.numel(), 1, best.device, work)


def line_shape(matrix: Matrix, ridges: str, alpha: float, beta: float) -> Tensor:
    """How much Hessians look like those of a line, whatever its strength: values in [0, 1].

    A dark ridge has positive eigenvalues, but for the one of least magnitude, which may have any sign. Sorted from
    large to small that one is the last, and it is the least in magnitude just if the last two have a positive sum. A
    bright ridge is a dark one of the negative. Only one of the two can be, and the maxima below pick it.
    """
    values = eigenvalues(matrix)
    if ridges == "bright":
        values = tuple(value.neg_() for value in reversed(values))
    top, *middle, least = values
    if ridges == "both":
        top, least = torch.maximum(top, -least), torch.maximum(least, -top)
        middle = [value.abs_() for value in middle]
    second = middle[0] if middle else top
    # 0 or 1 by arithmetic: selecting by a mask takes ten times as long on the CPU.
    valid = torch.add(second, least).sign_().clamp_min_(0)
    # The floors only matter where the answer is 0. They keep 0 / 0 out of it, and powers too small for ordinary float32
    # numbers, which are slow to make.
    top = top.clamp_min_(1e-30)
    second = middle[0].clamp_min_(1e-30) if middle else top
    blob = (least / top).mul_(least.div_(second)).mul_(-0.5 / beta**2).clamp_min_(-80).exp_()
    if middle:
        blob.mul_(second.div_(top).square_().mul_(-0.5 / alpha**2).expm1_().neg_())
    return blob.mul_(valid)
