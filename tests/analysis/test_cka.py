"""Linear CKA: against HSIC by NumPy, what it does not see, what it does, and the analysis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from frepa.analysis.cka import Cka, CkaOptions, debiased_cka, linear_cka
from frepa.encoders.contract import Features
from tiny_studies import BlockEncoder, Unshown, gaussian, study, write_textures


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Gretton et al. 2005, by the Gram matrices."""
    n = len(k)
    centre = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(k @ centre @ m @ centre)) / (n - 1) ** 2


def features(count: int, channels: int, seed: int) -> torch.Tensor:
    return 3 + gaussian(count, channels, seed) * count**0.5


def test_it_is_hsic_of_the_gram_matrices() -> None:
    x, y = features(60, 7, 0), features(60, 11, 1)
    y[:, :3] += x[:, :3]
    k, m = ((value.double() @ value.double().T).numpy() for value in (x, y))
    assert linear_cka(x, y) == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), rel=1e-9)


def test_what_it_does_not_see_and_what_it_does() -> None:
    x, y = features(300, 6, 0), features(300, 6, 1)
    turn = torch.linalg.qr(gaussian(6, 6, 2).double())[0]
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 5 * x.double() @ turn + 7) == pytest.approx(1, abs=1e-9)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), rel=1e-9)
    stretched = x.clone()
    stretched[:, 0] *= 10  # no turn: a general linear map changes it
    assert linear_cka(x, stretched) < 0.6
    assert np.isnan(linear_cka(x, torch.ones(300, 2)))


def test_the_debiased_estimate_of_independent_features_is_zero() -> None:
    values = [(linear_cka(*pair), debiased_cka(*pair)) for pair in
              ((features(20, 200, 2 * i), features(20, 200, 2 * i + 1)) for i in range(20))]  # fmt: skip
    plain, debiased = np.mean(values, axis=0)
    assert plain > 0.8  # few samples of many channels look alike
    assert abs(debiased) < 0.05
    x = features(20, 200, 0)
    assert debiased_cka(x, 2 * x + 1) == pytest.approx(1, abs=1e-9)


def test_the_unbiased_hsic_is_its_u_statistic() -> None:
    """Sum over quadruples of different samples (Song et al. 2012, Eq. 4), for a handful of them."""
    from itertools import permutations

    x, y = features(6, 3, 0).double(), features(6, 2, 1).double()
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()

    def unbiased(a: np.ndarray, b: np.ndarray) -> float:
        terms = [a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q]) for i, j, q, r in permutations(range(6), 4)]
        return float(np.mean(terms))

    expected = unbiased(k, m) / np.sqrt(unbiased(k, k) * unbiased(m, m))
    assert debiased_cka(x, y) == pytest.approx(expected, rel=1e-6)


def test_what_every_image_has_at_a_place_does_not_count(tmp_path: Path) -> None:
    """Where a position lies in the map makes no two encoders alike."""

    class Placed(BlockEncoder):
        def extract(self, x: torch.Tensor) -> Features:
            found = super().extract(x).dense
            place = torch.linspace(0, 100, found[0].numel()).view_as(found[0])
            return Features(found + place, found)

    source = write_textures(tmp_path / "images", 8, 16, fall=0.0)
    pair = Placed(4, matrix=gaussian(16, 3, 0)), Placed(4, matrix=gaussian(16, 3, 9))
    analysis = Cka(CkaOptions(standardise=False))
    analysis.check()
    found = analysis.analyse(study(source, *pair), Unshown()).numbers["positions"]
    plain = [BlockEncoder(4, matrix=encoder.matrix) for encoder in pair]
    expected = analysis.analyse(study(source, *plain), Unshown()).numbers["positions"]
    assert np.allclose(found, expected, atol=1e-4)
    assert found[0][1] < 0.6


@pytest.mark.parametrize("dims", [2, 3])
def test_of_maps_of_different_strides_and_of_bands(tmp_path: Path, dims: int) -> None:
    source = write_textures(tmp_path / "images", 6, 32 if dims == 2 else -16, fall=1.5)
    encoders = BlockEncoder(2, dims), BlockEncoder(4, dims)
    analysis = Cka(CkaOptions())
    analysis.check()
    found = analysis.analyse(study(source, *encoders, crop_size=16), Unshown())
    matrix = np.array(found.numbers["positions"])
    assert np.allclose(matrix.diagonal(), 1)
    assert np.allclose(matrix, matrix.T)
    assert 0 < matrix[0, 1] < 1
    split = found.numbers["with_band_split_images"]["blocks 0"]
    # Natural images hold most in the low frequencies, and so do their pixels
    assert split["no high"] > split["no low"]
    assert split["low"] > split["high"] > split["mean alone"]
    assert found.numbers["rows"] == 384  # 24 parts of 4 x 4 positions, or 6 of 4 x 4 x 4
