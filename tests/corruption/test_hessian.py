"""Hessians against scikit-image, eigenvalues against LAPACK, operators against SciPy's filters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.feature import hessian_matrix

from frepa.corruption.hessian import axis_operator, eigenvalues, full_precision, hessian, squared_norm

SHAPES = [(70, 45), (150, 131), (3, 40), (1, 33), (20, 1), (1, 1), (18, 25, 70), (9, 1, 30), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5, 3.0])
def test_hessian_is_that_of_scikit_image_up_to_the_border(shape: tuple[int, ...], sigma: float) -> None:
    images = np.random.default_rng(0).random((2, *shape))
    found = hessian(torch.from_numpy(images).float(), sigma)
    for row in range(2):
        expected = hessian_matrix(images[row], sigma, mode="reflect", use_gaussian_derivatives=True)
        assert len(expected) == len(found)
        for value, entry in zip(found.values(), expected):  # both in the order (0, 0), (0, 1), ...
            assert np.allclose(value[row].numpy(), entry, atol=5e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 40])
@pytest.mark.parametrize("orders", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_operator_is_two_filters_in_a_row(size: int, orders: tuple[int, int]) -> None:
    signal = np.random.default_rng(1).random(size)
    expected = signal
    for order in orders:
        expected = ndimage.gaussian_filter1d(expected, 1.2 / math.sqrt(2), order=order, mode="reflect", truncate=9)
    assert np.allclose(axis_operator(size, 1.2, orders) @ signal, expected, atol=1e-8)


def test_operator_is_banded() -> None:
    operator = axis_operator(3000, 1.5, (1, 0))
    assert operator.nnz < 3000 * 40


@pytest.mark.parametrize("size", [2, 3])
def test_eigenvalues_near_degenerate_matrices_keep_their_digits(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(5000, size, size, generator=generator, dtype=torch.float64)
    general = random + random.mT
    rotation = torch.linalg.qr(random).Q
    gap = 10.0 ** -torch.randint(1, 12, (5000, 1), generator=generator).double()
    step = gap * torch.randn(5000, size, generator=generator, dtype=torch.float64)
    near = [torch.tensor(([1.0, 1, 1], [1.0, 1, -2], [1.0, 1, 0], [0.0, 0, 1])[kind][:size]) for kind in range(4)]
    close = [rotation @ torch.diag_embed(base + step) @ rotation.mT for base in near]
    special = torch.zeros(2, size, size, dtype=torch.float64)
    special[1] = 0.3 * torch.eye(size)
    matrices = torch.cat([general, 1e-4 * general, *close, special]).float()
    found = torch.stack(
        eigenvalues({(i, j): matrices[:, i, j].contiguous() for i in range(size) for j in range(i, size)}), 1
    ).numpy()
    expected = np.linalg.eigvalsh(matrices.double().numpy())[:, ::-1]
    scale = np.maximum(np.abs(expected).max(1, keepdims=True), 1e-30)
    assert np.abs((found - expected) / scale).max() < 1e-6
    assert (np.diff(found, axis=1) <= 1e-6 * scale).all()


def test_squared_norm_is_the_sum_of_squared_eigenvalues() -> None:
    for shape in ((30, 20), (8, 9, 10)):
        matrix = hessian(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)), 1.0)
        total = sum(value**2 for value in eigenvalues(matrix))
        assert torch.allclose(squared_norm(matrix), total, rtol=1e-4, atol=1e-9)


def test_products_stay_float32_where_the_run_allows_less() -> None:
    x = torch.rand(512, 512, generator=torch.Generator().manual_seed(0))
    expected = x @ x
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # bfloat16 on processors that have it
    try:
        with full_precision(x.device):
            found = x @ x
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, expected)


def test_precision_is_restored_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError), full_precision(torch.device("cpu")):
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == before
