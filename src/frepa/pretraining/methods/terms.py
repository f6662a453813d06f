"""The terms of the pretraining objective: pure functions of tensors, the same code in 2D and 3D.

Shapes: B images, C channels, S the spatial shape, ``(H, W)`` or ``(D, H, W)``. Every term but the consistency is
taken of the residual ``r = prediction - target``: each is linear in ``r`` before its norm, so one filtering serves
both images. Inputs of any floating dtype are computed in float32 (float64 stays float64) with autocast off; every
term is a 0-d tensor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from frepa.corruption.spectrum import high_pass

HFL_CUTOFFS = (0.1, 0.2, 0.3, 0.4, 0.5)

_Term = TypeVar("_Term", bound=Callable[..., Tensor])


def _full_precision(term: _Term) -> _Term:
    """Runs ``term`` outside autocast, its half-precision tensors made float32."""

    def cast(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.float() if half else value

    @functools.wraps(term)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device.type, enabled=False):
            return term(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return call  # type: ignore[return-value]


def _spatial(x: Tensor) -> tuple[int, ...]:
    """The spatial axes of (B, C, *S)."""
    return tuple(range(2, x.ndim))


@_full_precision
def rmse(residual: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean square error, per image, then averaged over images (Frepa Eq. 7).

    ``residual``: (B, C, *S). ``mask``: (B, 1, *S), nonzero where a pixel counts (in all its channels), or None for
    all pixels; an image whose mask is empty counts all its pixels. The result is in the units of the intensity. At a
    residual of exactly zero the gradient is zero, not NaN.
    """
    square = residual.square()
    if mask is None:
        mean = square.flatten(1).mean(1)
    else:
        counts = mask.to(residual.dtype)
        empty = counts.flatten(1).sum(1) == 0
        counts = counts + empty.view(-1, *[1] * (counts.ndim - 1))
        mean = (square * counts).flatten(1).sum(1) / (counts.flatten(1).sum(1) * residual.shape[1])
    # sqrt has an infinite slope at 0; the inner where keeps 0 out of its graph (0 * inf would be NaN).
    positive = mean > 0
    return torch.where(positive, torch.where(positive, mean, 1.0).sqrt(), 0.0).mean()


@_full_precision
def gradient_l1(residual: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring pixels along each axis, summed over the axes (Frepa Eq. 8).

    ``residual``: (B, C, *S). Each axis is averaged over its own differences; an axis of length 1 has none and adds 0.
    """
    total = residual.new_zeros(())
    for axis in _spatial(residual):
        difference = residual.diff(dim=axis)
        total = total + difference.abs().sum() / max(difference.numel(), 1)
    return total


class _Known(torch.autograd.Function):
    """A value whose gradients were worked out together with it: ``apply(value, gradients, *inputs)``.

    Where the gradient has a closed form this costs less time than autograd's own pass, and keeps one tensor per input
    for the backward pass instead of every step in between. First derivatives only.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *_inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grad_output * gradient for gradient in ctx.saved_tensors)


def _wants_gradient(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(value.requires_grad for value in inputs)


@_full_precision
def hfl(residual: Tensor, cutoffs: Sequence[float] = HFL_CUTOFFS) -> Tensor:
    """Hierarchical frequency-to-spatial loss (Frepa Eq. 9): mean over k of the mean of ``|O_h^k r|``.

    ``residual``: (B, C, *S). ``O_h^k`` is the exponential high-pass ``1 - exp(-d^2 / d_c^2)`` with
    ``d_c = cutoff * min(S)`` bins, one for each of ``cutoffs``. First derivatives only.
    """
    wanted = _wants_gradient(residual)
    with torch.no_grad():
        value, gradient = _high_pass_l1(residual, tuple(cutoffs), wanted)
    return _Known.apply(value, (gradient,), residual) if wanted else value


def _high_pass_l1(residual: Tensor, cutoffs: tuple[float, ...], wanted: bool) -> tuple[Tensor, Tensor | None]:
    """``mean over k of mean |O_k r|`` and, where ``wanted``, its gradient ``1/(K N) sum_k O_k sign(O_k r)``.

    That is the gradient because a real even transfer function is linear and self-adjoint. The K parts of it are
    summed in the spectrum: one transform back, and memory that does not grow with K.
    """
    shape, axes = tuple(residual.shape[2:]), _spatial(residual)
    spectrum = torch.fft.rfftn(residual, dim=axes)
    total, summed = residual.new_zeros(()), None
    for cutoff in cutoffs:
        transfer = high_pass(shape, cutoff, residual.device).to(residual.dtype)
        detail = torch.fft.irfftn(spectrum * transfer, s=shape, dim=axes)
        # Line by line: a norm of everything at once adds up in one long row, and float32 loses digits there.
        total += torch.linalg.vector_norm(detail, 1, dim=-1).sum()
        if wanted:
            part = torch.fft.rfftn(detail.sign_(), dim=axes).mul_(transfer)
            summed = part if summed is None else summed.add_(part)
            del part
        del detail  # given back before the next one is made
    scale = 1.0 / (len(cutoffs) * residual.numel())
    del spectrum
    return total * scale, None if summed is None else torch.fft.irfftn(summed, s=shape, dim=axes).mul_(scale)


@_full_precision
def consistency(
    embedding_a: Tensor,
    embedding_b: Tensor,
    *,
    reduction: str = "mean",
    temperature: float = 1.0,
    standardise: bool = False,
) -> Tensor:
    """Jensen-Shannon divergence of two views' embeddings, in nats (Frepa Eq. 10).

    ``embedding_a`` and ``embedding_b``: (B, C, *s), any real values; a softmax over the channels makes one
    distribution at each position. 0 for equal embeddings. First derivatives only.

    Args:
        reduction: ``"mean"`` over positions and images, which lies in [0, ln 2]; or ``"sum"`` over positions and mean
            over images ("batchmean" of ``kl_div``), up to ln 2 times the positions.
        temperature: divides the embeddings before the softmax; below 1 small differences count more.
        standardise: first give every channel mean 0 and variance 1 over images and positions of both views, so that
            embeddings cannot agree by becoming small. A channel without variance becomes 0. The gradient passes
            through these statistics.
    """
    if standardise:
        embedding_a, embedding_b = standardised(embedding_a, embedding_b)
    if temperature != 1:
        embedding_a, embedding_b = embedding_a / temperature, embedding_b / temperature
    with torch.no_grad():
        log_a, log_b = embedding_a.log_softmax(1), embedding_b.log_softmax(1)
        p, q = log_a.exp(), log_b.exp()
        # Where both vanish their share is 0 as long as the logarithm stays finite.
        log_mean = ((p + q) / 2).clamp_min_(torch.finfo(p.dtype).tiny).log_()
        positions = p.numel() // p.shape[1]
        count = positions if reduction == "mean" else len(p)
        total, gradients = p.new_zeros(()), []
        for share, log_ratio in ((p, log_a.sub_(log_mean)), (q, log_b.sub_(log_mean))):
            divergence = (share * log_ratio).sum(1, keepdim=True)  # from the mean of the two: KL(p || m)
            total += divergence.sum()
            # dJS/dp = log(p / m) / 2, and the softmax takes its mean under p away.
            gradients.append(log_ratio.sub_(divergence).mul_(share).mul_(0.5 / count))
        # Rounding can step over the bounds by an ulp.
        value = (0.5 * total / count).clamp(0.0, math.log(2) * (positions / count))
    return (
        _Known.apply(value, gradients, embedding_a, embedding_b) if _wants_gradient(embedding_a, embedding_b) else value
    )


def standardised(embedding_a: Tensor, embedding_b: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, C, *s) with mean 0 and variance 1 per channel over the two together; no variance becomes 0."""
    both = torch.stack([embedding_a, embedding_b])
    axes = (0, 1, *range(3, both.ndim))
    centred = both - both.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    # Rounding leaves a constant channel a variance of this order.
    floor = (16 * torch.finfo(both.dtype).eps) ** 2 * both.detach().square().mean(axes, keepdim=True)
    first, second = torch.where(variance > floor, centred * variance.clamp_min(1e-30).rsqrt(), 0.0)
    return first, second


@_full_precision
def focal_frequency_loss(residual: Tensor, alpha: float = 1.0) -> Tensor:
    """Focal frequency loss (Jiang et al., ICCV 2021), kept for the comparison of Frepa's Fig. 4.

    ``residual``: (B, C, *S). With ``F`` its orthonormal transform, the mean over the whole spectrum plane of ``w
    |F|^2``, where ``w = |F|^alpha`` divided by its largest value in each image and channel is held constant in the
    backward pass.
    """
    spectrum = torch.view_as_real(torch.fft.rfftn(residual, dim=_spatial(residual), norm="ortho"))
    power = spectrum.square().sum(-1)
    with torch.no_grad():
        weight = power.pow(alpha / 2)
        largest = weight.amax(_spatial(residual), keepdim=True)
        weight = torch.where(largest > 0, weight / largest, 0.0).clamp_(0.0, 1.0)
        # The half spectrum holds one of each conjugate pair: those columns count twice.
        width = residual.shape[-1]
        weight[..., 1 : (width + 1) // 2] *= 2
    return (weight * power).sum() / residual.numel()
