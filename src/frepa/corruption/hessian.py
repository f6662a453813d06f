"""Hessian of Gaussian-smoothed images as exact banded operators, one per axis, for any number of image axes.

Each second derivative is two successive Gaussian filters of standard deviation ``sigma / sqrt(2)``, each of first order
along one axis, with the image mirrored at its borders before either (half-sample symmetric). Along one axis that is a
product of two small banded matrices, borders included, so the whole Hessian is a few matrix products per axis. It
equals `skimage.feature.hessian_matrix(..., use_gaussian_derivatives=True, mode="reflect")` up to rounding.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from frepa.corruption.workers import for_each

# Pixels a matrix product gives along its axis. It reads that many plus the operator's reach on both sides: smaller
# blocks waste less on zeros, larger ones keep the product efficient. On the CPU 32 took the least time of 16 to 128; an
# accelerator has zeros to waste, but each product is a call of its own.
_CPU_BLOCK, _BLOCK = 32, 128
# Weights below this share of the largest one are left out: the rounding of float32 sums is larger.
_NEGLIGIBLE = 1e-9

Matrix = dict[tuple[int, int], Tensor]
# (x, axis, sigma, orders of the derivative of the first and of the second filter) -> x filtered
Along = Callable[[Tensor, int, float, tuple[int, int]], Tensor]


def hessian(x: Tensor, sigma: float, along: Along | None = None) -> Matrix:
    """Second derivatives of images smoothed with a Gaussian of standard deviation ``sigma`` pixels.

    Args:
        x: float32 ``(B, *S)``.
        sigma: scale in pixels; the derivatives are not normalised by it.
        along: how two successive filters go along an axis; by default as banded matrices. See `convolved`.

    Returns:
        ``{(i, j): float32 (B, *S)}`` for the axes ``i <= j`` of ``S``, in intensity units per pixel squared.
    """
    dims, along = x.ndim - 1, along or _filter_axis
    pairs = [(i, j) for i in range(dims) for j in range(i, dims)]
    # Per axis, the order of the derivative taken along it by the first and by the second filter.
    plans = {(i, j): tuple((int(axis == i), int(axis == j)) for axis in range(dims)) for i, j in pairs}
    partial: dict[tuple[tuple[int, int], ...], Tensor] = {(): x}
    for axis in reversed(range(dims)):
        # Several derivatives share what was done along the later axes.
        wanted = sorted({plan[axis:] for plan in plans.values()})
        partial = {plan: along(partial[plan[1:]], axis + 1, sigma, plan[0]) for plan in wanted}
    return {pair: partial[plan] for pair, plan in plans.items()}


def _filter_axis(x: Tensor, axis: int, sigma: float, orders: tuple[int, int]) -> Tensor:
    """Apply `axis_operator` along one axis of ``x``."""
    size, after = x.shape[axis], math.prod(x.shape[axis + 1 :])
    planes = x.reshape(-1, size, after)
    out = torch.empty_like(planes)
    blocks = _blocks(size, sigma, orders, x.device)

    def rows(part: slice) -> None:
        for block in blocks:
            torch.mm(planes[part, block.source, 0], block.weights.T, out=out[part, block.target, 0])

    def columns(part: slice) -> None:
        for block in blocks:
            torch.mm(block.weights, planes[0, block.source, part], out=out[0, block.target, part])

    def whole(part: slice) -> None:
        for block in blocks:
            weights = block.weights.expand(part.stop - part.start, -1, -1)
            torch.bmm(weights, planes[part, block.source], out=out[part, block.target])

    if after == 1:
        for_each(len(planes), size, x.device, rows)
    elif len(planes) == 1:
        for_each(after, size, x.device, columns)
    else:
        for_each(len(planes), size * after, x.device, whole)
    return out.view(x.shape)


def reach(sigma: float) -> int:
    """Pixels that `convolved` looks to either side in one filter; no side of an image may be shorter."""
    return math.ceil(7 * sigma / math.sqrt(2))  # what lies beyond is less than 1e-10 of the largest weight


def convolved(x: Tensor, axis: int, sigma: float, orders: tuple[int, int]) -> Tensor:
    """The same two filters along an axis of ``x (B, *S)`` as plain convolutions: for programs of any size of image.

    It takes several times as long as the banded matrices, which are made for each size.
    """
    spread, radius, dims = sigma / math.sqrt(2), reach(sigma), x.ndim - 1
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    bell = torch.exp(-0.5 * (offset / spread) ** 2)
    bell = bell / bell.sum()
    for order in orders:
        kernel = bell * offset / spread**2 if order else bell
        shape = [1] * (dims + 2)
        shape[axis + 1] = len(kernel)
        first, last = x.narrow(axis, 0, radius), x.narrow(axis, x.shape[axis] - radius, radius)
        mirrored = torch.cat((first.flip(axis), x, last.flip(axis)), dim=axis).unsqueeze(1)
        convolve = torch.nn.functional.conv2d if dims == 2 else torch.nn.functional.conv3d
        x = convolve(mirrored, kernel.to(x.device, x.dtype).view(shape)).squeeze(1)
    return x


class _Block(NamedTuple):
    """Rows ``target`` of the result are ``weights`` times rows ``source`` of the input."""

    target: slice
    source: slice
    weights: Tensor


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)
def _blocks(size: int, sigma: float, orders: tuple[int, int], device: torch.device) -> tuple[_Block, ...]:
    operator = axis_operator(size, sigma, orders)
    count = max(1, round(size / (_CPU_BLOCK if device.type == "cpu" else _BLOCK)))
    blocks = []
    for first, last in itertools.pairwise(size * block // count for block in range(count + 1)):
        rows = operator[first:last]
        # An axis of one pixel has no derivative: no column is used, any will do.
        start, stop = (rows.indices.min(), rows.indices.max() + 1) if rows.nnz else (first, last)
        weights = torch.from_numpy(rows[:, start:stop].toarray().astype(np.float32)).to(device)
        blocks.append(_Block(slice(first, last), slice(int(start), int(stop)), weights))
    return tuple(blocks)


def axis_operator(size: int, sigma: float, orders: tuple[int, int]) -> sparse.csr_array:
    """Two successive Gaussian filters along an axis as one banded matrix, float64 ``(size, size)``.

    ``orders`` are the orders of the derivative (0 or 1) of the first and of the second filter; each has the standard
    deviation ``sigma / sqrt(2)`` pixels.
    """
    first, second = (_gaussian_operator(size, sigma / math.sqrt(2), order) for order in orders)
    operator = second @ first
    operator.data[np.abs(operator.data) < _NEGLIGIBLE * np.abs(operator.data).max(initial=0)] = 0
    operator.eliminate_zeros()
    return operator


def _gaussian_operator(size: int, sigma: float, order: int) -> sparse.csr_array:
    """Gaussian filter of order 0 or 1 on a signal mirrored at both ends: d c b a | a b c d | d c b a."""
    radius = math.ceil(9 * sigma)  # beyond 9 standard deviations nothing is left in float64 sums
    offset = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    kernel /= kernel.sum()
    if order == 1:
        kernel *= offset / sigma**2
    source = (np.arange(size)[:, None] + offset) % (2 * size)
    source = np.where(source < size, source, 2 * size - 1 - source)
    row = np.broadcast_to(np.arange(size)[:, None], source.shape)
    weight = np.broadcast_to(kernel, source.shape)
    return sparse.csr_array((weight.ravel(), (row.ravel(), source.ravel())), shape=(size, size))


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in true float32 even where the run allows TF32 or bfloat16: derivatives cancel digits.

    The setting is the whole process's: enter this on one thread, around all the work.
    """
    backend = torch.backends.cuda.matmul if device.type == "cuda" else getattr(torch.backends.mkldnn, "matmul", None)
    # torch 2.8 has the older switch alone, and none for the CPU.
    name, value = ("fp32_precision", "ieee") if hasattr(backend, "fp32_precision") else ("allow_tf32", False)
    if backend is None or not hasattr(backend, name):
        yield
        return
    before = getattr(backend, name)
    setattr(backend, name, value)
    try:
        yield
    finally:
        setattr(backend, name, before)


def eigenvalues(matrix: Matrix) -> tuple[Tensor, ...]:
    """Eigenvalues of symmetric 2 x 2 or 3 x 3 matrices in closed form, largest first; tensors shaped as the entries."""
    return (_eigenvalues_2 if len(matrix) == 3 else _eigenvalues_3)(matrix)


def _eigenvalues_2(m: Matrix) -> tuple[Tensor, ...]:
    mean = torch.add(m[0, 0], m[1, 1]).div_(2)
    radius = torch.sub(m[0, 0], m[1, 1]).square_().addcmul_(m[0, 1], m[0, 1], value=4).sqrt_().div_(2)
    return mean + radius, mean.sub_(radius)


def _eigenvalues_3(m: Matrix) -> tuple[Tensor, ...]:
    """Trigonometric form, with the angle taken from its sine as well as from its cosine.

    The cosine alone keeps half of the digits where two eigenvalues are nearly equal. With ``B`` the matrix without its
    trace, scaled to norm sqrt(6), the sine is, up to a factor, the norm of what is left of ``B^2`` beside ``B`` and the
    identity. As a sum of squares it is small exactly where a pair is nearly equal.
    """
    xy, xz, yz = m[0, 1], m[0, 2], m[1, 2]
    mean = torch.add(m[0, 0], m[1, 1]).add_(m[2, 2]).div_(3)
    x, y, z = m[0, 0] - mean, m[1, 1] - mean, m[2, 2] - mean
    scale = (x * x).addcmul_(y, y).addcmul_(z, z)
    for value in (xy, xz, yz):
        scale.addcmul_(value, value, value=2)
    scale.div_(6).sqrt_()
    inverse = scale.clamp_min(1e-30).reciprocal_()
    x, y, z = x.mul_(inverse), y.mul_(inverse), z.mul_(inverse)
    xy, xz, yz = xy * inverse, xz * inverse, yz * inverse
    # Entries of the cofactors' first row, then half the determinant.
    cosine = (y * z).addcmul_(yz, yz, value=-1).mul_(x)
    cosine.addcmul_(xy, (yz * xz).addcmul_(xy, z, value=-1))
    cosine.addcmul_(xz, (xy * yz).addcmul_(xz, y, value=-1)).div_(2)
    # B^2 - 2 - cosine * B, entry by entry: along the diagonal, then above it.
    square = torch.zeros_like(cosine)
    for entry, one, other in ((x, xy, xz), (y, xy, yz), (z, xz, yz)):
        rest = (entry - cosine).mul_(entry).addcmul_(one, one).addcmul_(other, other).sub_(2)
        square.addcmul_(rest, rest)
    for entry, third, one, other in ((xy, z, xz, yz), (xz, y, xy, yz), (yz, x, xy, xz)):
        # x + y is -z, and so on round, because B has no trace.
        rest = (third + cosine).mul_(entry).neg_().addcmul_(one, other)
        square.addcmul_(rest, rest, value=2)
    angle = torch.atan2(square.div_(6).sqrt_(), cosine).div_(3)
    along, across = torch.cos(angle).mul_(scale), torch.sin(angle).mul_(scale).mul_(math.sqrt(3))
    largest = torch.add(mean, along, alpha=2)
    middle = mean.sub_(along)
    return largest, middle + across, middle.sub_(across)


def squared_norm(matrix: Matrix) -> Tensor:
    """Squared Frobenius norm of the matrices: the sum of their squared eigenvalues."""
    total = torch.zeros_like(matrix[0, 0])
    for (i, j), value in matrix.items():
        total.addcmul_(value, value, value=1 if i == j else 2)
    return total
