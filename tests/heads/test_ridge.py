from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import KFold

from frepa.heads.logistic import choose_logistic, fit_logistic, log_loss
from frepa.heads.ridge import (
    RidgePath,
    RidgeSums,
    blocks_of,
    choose_by_leaving_out,
    neighbourhood,
    rows_of,
    solved,
    squared_error,
)


def _samples(count: int = 300, features: int = 12, outputs: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = 50 + draw.normal(size=(count, features)) @ draw.normal(size=(features, features)) * draw.uniform(0.01, 9)
    y = x @ draw.normal(size=(features, outputs)) + draw.normal(size=(count, outputs)) + 7
    return x, y


def _sums(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None, parts: int = 3) -> RidgeSums:
    sums = RidgeSums(x.shape[1], y.shape[1])
    for rows in np.array_split(np.arange(len(x)), parts):
        each = None if weight is None else torch.from_numpy(weight[rows])
        sums.add(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]), each)
    return sums


@pytest.mark.parametrize("penalty", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_solution_is_scikit_learns(penalty: float, weighted: bool) -> None:
    x, y = _samples()
    weight = np.random.default_rng(1).integers(0, 3, len(x)).astype(float) if weighted else None
    path = RidgePath(_sums(x, y, weight))
    mean, std = np.average(x, 0, weight), np.sqrt(np.average((x - np.average(x, 0, weight)) ** 2, 0, weight))
    np.testing.assert_allclose(path.mean.numpy(), mean)
    np.testing.assert_allclose(path.std.numpy(), std, rtol=1e-7)
    total = len(x) if weight is None else weight.sum()
    oracle = SklearnRidge(alpha=penalty * total, solver="cholesky").fit((x - mean) / std, y, sample_weight=weight)
    error = (oracle.predict((x - mean) / std) - y) ** 2
    for found in (path.at(penalty), solved(_sums(x, y, weight), penalty)):
        np.testing.assert_allclose(found.weight.numpy(), oracle.coef_.T, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found.bias.numpy(), oracle.intercept_, rtol=1e-8)
        np.testing.assert_allclose(found.residual.numpy(), np.average(error, 0, weight), rtol=1e-6)


def test_statistics_of_another_part_give_the_same_predictions_without_penalty() -> None:
    x, y = _samples()
    sums = _sums(x, y)
    mean, std = sums.mean + 3, sums.std * 2
    moved, own = RidgePath(sums, mean, std), RidgePath(sums)
    z = torch.from_numpy(x)
    first, second = moved.at(1e-12), own.at(1e-12)
    torch.testing.assert_close(
        (z - mean) / std @ first.weight + first.bias, (z - own.mean) / own.std @ second.weight + second.bias
    )


@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (1e3, -50.0), (1.0, 1e3)])
def test_scale_and_shift_of_the_features_change_nothing(scale: float, shift: float) -> None:
    x, y = _samples()
    factor = scale * np.random.default_rng(2).uniform(0.5, 2, x.shape[1])
    first, second = RidgePath(_sums(x, y)), RidgePath(_sums(x * factor + shift, y))
    torch.testing.assert_close(first.at(1e-3).weight, second.at(1e-3).weight, rtol=1e-6, atol=1e-7)


def test_a_feature_without_variance_has_no_weight() -> None:
    x, y = _samples()
    wide = np.concatenate([x, np.full((len(x), 1), 3.0)], 1)
    found, without = RidgePath(_sums(wide, y)).at(1e-3), RidgePath(_sums(x, y)).at(1e-3)
    assert found.weight[-1].abs().max() == 0
    torch.testing.assert_close(found.weight[:-1], without.weight)


def test_one_penalty_alone_is_what_the_path_has_there() -> None:
    x, y = _samples()
    x[:, 4] = 2.0  # no variance
    sums = _sums(x, y)
    for penalty in (1e-6, 1e-2, 1.0):
        for given in ((), (sums.mean + 0.3, sums.std * 1.5)):
            for own, other in zip(solved(sums, penalty, *given), RidgePath(sums, *given).at(penalty)):
                torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-8)


def test_fewer_samples_than_features() -> None:
    x, y = _samples(count=8, features=20)
    path = RidgePath(_sums(x, y))
    z = (x - x.mean(0)) / x.std(0)
    oracle = SklearnRidge(alpha=1e-3 * len(x), solver="svd").fit(z, y)
    np.testing.assert_allclose(path.at(1e-3).weight.numpy(), oracle.coef_.T, rtol=1e-5, atol=1e-7)


def test_folds_leave_what_the_other_folds_hold() -> None:
    x, y = _samples()
    parts = [_sums(x[:100], y[:100]), _sums(x[100:180], y[100:180]), _sums(x[180:], y[180:])]
    total = parts[0].plus(parts[1]).plus(parts[2])
    left, oracle = (
        RidgePath(total.minus(parts[1])),
        RidgePath(_sums(np.delete(x, range(100, 180), 0), np.delete(y, range(100, 180), 0))),
    )
    torch.testing.assert_close(left.at(1e-2).weight, oracle.at(1e-2).weight, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(left.at(1e-2).bias, oracle.at(1e-2).bias)
    ridge = oracle.at(1e-2)
    z = (torch.from_numpy(x[100:180]) - oracle.mean) / oracle.std
    direct = float((z @ ridge.weight + ridge.bias - torch.from_numpy(y[100:180])).square().mean())
    assert squared_error(parts[1], ridge, oracle.mean, oracle.std) == pytest.approx(direct, rel=1e-8)


def test_penalty_by_leaving_out_is_the_one_cross_validation_finds() -> None:
    draw = np.random.default_rng(5)
    x = draw.normal(size=(60, 40))
    y = x[:, :3] @ draw.normal(size=(3, 4)) + 3 * draw.normal(size=(60, 4))
    folds, errors = [], dict.fromkeys((0.0001, 0.01, 0.1, 1.0, 10.0), 0.0)
    for kept, left in KFold(4).split(x):
        folds.append(_sums(x[left], y[left]))
        mean, std = x[kept].mean(0), x[kept].std(0)
        for penalty in errors:
            model = SklearnRidge(alpha=penalty * len(kept)).fit((x[kept] - mean) / std, y[kept])
            errors[penalty] += ((model.predict((x[left] - mean) / std) - y[left]) ** 2).sum()
    assert choose_by_leaving_out(folds, list(errors)) == min(errors, key=errors.get)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "stride"), [((8, 12), (4, 4)), ((4, 6, 8), (1, 2, 4))])
def test_blocks_are_the_pixels_under_each_position(size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    axes = len(size)
    pixels = torch.randn(2, 3, *size)
    blocks = blocks_of(pixels, stride)
    grid = [n // s for n, s in zip(size, stride)]
    assert blocks.shape == (2 * int(np.prod(grid)), 3 * int(np.prod(stride)))
    # A transposed convolution whose kernel equals its stride lays the blocks back.
    lay = torch.nn.functional.conv_transpose2d if axes == 2 else torch.nn.functional.conv_transpose3d
    eye = torch.eye(blocks.shape[1]).view(-1, 3, *stride)
    maps = blocks.view(2, *grid, -1).movedim(-1, 1)
    assert torch.equal(lay(maps, eye, stride=stride), pixels)
    assert torch.equal(rows_of(maps), blocks)


def test_neighbourhood_repeats_the_border() -> None:
    x = torch.randn(2, 3, 4, 5)
    found = neighbourhood(x, 3)
    assert found.shape == (2, 27, 4, 5)
    assert torch.equal(found[:, 12:15], x)  # the middle one
    assert torch.equal(found[:, :3, 1:, 1:], x[..., :-1, :-1])
    assert torch.equal(found[:, :3, 0, 0], x[..., 0, 0])
    assert neighbourhood(torch.randn(1, 2, 3, 3, 3), 3).shape == (1, 54, 3, 3, 3)


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_is_scikit_learns(classes: int) -> None:
    draw = np.random.default_rng(classes)
    x = draw.normal(size=(200, 6))
    label = (x @ draw.normal(size=(6, classes)) + draw.gumbel(size=(200, classes))).argmax(1)
    found = fit_logistic(x, np.eye(classes)[label], 1e-2, several=False)
    oracle = LogisticRegression(C=1 / (1e-2 * len(x)), tol=1e-10, max_iter=10_000).fit(x, label)
    if classes == 2:
        # Two opposite weights of a softmax share the penalty that one weight of a sigmoid has: |w|^2 / 2.
        oracle = LogisticRegression(C=2 / (1e-2 * len(x)), tol=1e-10, max_iter=10_000).fit(x, label)
    logits = found.logits(x)
    probability = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    np.testing.assert_allclose(probability, oracle.predict_proba(x), atol=1e-5)


def test_logistic_of_several_classes_is_one_regression_each() -> None:
    draw = np.random.default_rng(3)
    x = draw.normal(size=(150, 5))
    targets = (x @ draw.normal(size=(5, 3)) + draw.logistic(size=(150, 3)) > 0).astype(float)
    found = fit_logistic(x, targets, 1e-2, several=True)
    for k in range(3):
        oracle = LogisticRegression(C=1 / (1e-2 * len(x)), tol=1e-10, max_iter=10_000).fit(x, targets[:, k])
        np.testing.assert_allclose(found.weight[:, k], oracle.coef_[0], atol=1e-4)
        np.testing.assert_allclose(found.bias[k], oracle.intercept_[0], atol=1e-4)


@pytest.mark.parametrize("with_val", [False, True])
def test_the_penalty_is_the_best_on_the_validation_part(with_val: bool) -> None:
    draw = np.random.default_rng(7)
    x = draw.normal(size=(80, 30))
    targets = np.eye(2)[(x[:, 0] + draw.logistic(size=80) > 0).astype(int)]
    val = (draw.normal(size=(400, 30)), None)
    truth = np.eye(2)[(val[0][:, 0] + draw.logistic(size=400) > 0).astype(int)]
    model, penalty = choose_logistic(x, targets, (val[0], truth) if with_val else None, several=False)
    losses = {
        p: log_loss(fit_logistic(x, targets, p, several=False).logits(val[0]), truth, several=False)
        for p in (1e-5, 1e-3, 1e-2, 1e-1, 1.0)
    }
    assert log_loss(model.logits(val[0]), truth, several=False) <= min(losses.values()) * (1.001 if with_val else 1.05)
    assert penalty >= 1e-2  # 30 features of noise and 80 samples
