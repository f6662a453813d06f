"""The weighted sum of the terms: which are computed, of what, and how views enter."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from frepa.errors import InputError
from frepa.pretraining.methods import terms
from frepa.pretraining.methods.objective import ConsistencyReading, Objective

OFF = {"rmse": 0, "gradient": 0, "hfl": 0, "consistency": 0}


def _batch(shape: tuple[int, ...] = (9, 8), dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(0)
    target = torch.rand(3, 1, *shape, generator=g, dtype=dtype)
    prediction = torch.rand(6, 1, *shape, generator=g, dtype=dtype).requires_grad_()
    mask = (torch.rand(6, 1, *shape, generator=g) < 0.5).float()
    embeddings = tuple(torch.randn(3, 5, 2, 2, generator=g, dtype=dtype).requires_grad_() for _ in range(2))
    return prediction, target, mask, embeddings


@pytest.mark.parametrize("shape", [(9, 8), (4, 5, 6)])
def test_total_is_the_papers_weighted_sum_averaged_over_views(shape):
    prediction, target, mask, embeddings = _batch(shape)
    total, values = Objective()(prediction, target, mask, embeddings)
    expected = 0.5 * terms.consistency(*embeddings)
    for view in range(2):
        rows = slice(3 * view, 3 * view + 3)
        residual = prediction[rows] - target
        view_loss = terms.rmse(residual, mask[rows]) + terms.gradient_l1(residual) + terms.hfl(residual)
        expected = expected + view_loss / 2
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(values) == {"rmse", "gradient", "hfl", "consistency"}
    assert all(value.ndim == 0 and not value.requires_grad for value in values.values())
    weighted = values["rmse"] + values["gradient"] + values["hfl"] + 0.5 * values["consistency"]
    assert total.item() == pytest.approx(weighted.item(), rel=1e-6)

    got = torch.autograd.grad(total, [prediction, *embeddings])
    wanted = torch.autograd.grad(expected, [prediction, *embeddings])
    for one, other in zip(got, wanted):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_targets_may_be_given_once_or_for_every_view():
    prediction, target, mask, embeddings = _batch()
    once, _ = Objective()(prediction, target, mask, embeddings)
    every, _ = Objective()(prediction, target.repeat(2, 1, 1, 1), mask, embeddings)
    assert torch.equal(once, every)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("rmse", "rmse"),
        ("gradient", "gradient_l1"),
        ("hfl", "hfl"),
        ("consistency", "consistency"),
        ("focal_frequency", "focal_frequency_loss"),
    ],
)
def test_a_term_is_computed_when_it_has_a_weight_and_only_then(name, function, monkeypatch):
    prediction, target, mask, embeddings = _batch()
    everything = {"rmse": 1, "gradient": 1, "hfl": 1, "consistency": 1, "focal_frequency": 1}
    total, values = Objective(**{**OFF, name: 3})(prediction, target, mask, embeddings)
    assert set(values) == {name}
    assert total.item() == pytest.approx(3 * values[name].item(), rel=1e-6)

    def refuse(*_args, **_kwargs):
        raise AssertionError(f"{function} was computed")

    monkeypatch.setattr(terms, function, refuse)
    _, values = Objective(**{**everything, name: 0})(prediction, target, mask, embeddings)
    assert set(values) == set(everything) - {name}
    with pytest.raises(AssertionError, match=function):
        Objective(**everything)(prediction, target, mask, embeddings)


def test_one_view_has_no_consistency():
    prediction, target, mask, _ = _batch()
    total, values = Objective()(prediction[:3], target, mask[:3], None)
    assert "consistency" not in values
    assert total.item() == pytest.approx(sum(value.item() for value in values.values()), rel=1e-6)


def test_without_a_mask_every_pixel_counts():
    prediction, target, _, _ = _batch()
    _, values = Objective(**{**OFF, "rmse": 1})(prediction, target, None, None)
    everywhere = torch.ones(6, 1, 9, 8)
    assert values["rmse"].item() == pytest.approx(
        Objective(**{**OFF, "rmse": 1})(prediction, target, everywhere, None)[1]["rmse"].item(), rel=1e-6
    )


def test_the_adversary_is_asked_about_the_prediction_when_it_has_a_weight():
    prediction, target, mask, embeddings = _batch()
    asked = []

    def generator_loss(fake: torch.Tensor) -> torch.Tensor:
        asked.append(fake)
        return fake.square().mean()

    total, values = Objective(adversarial=0.1)(prediction, target, mask, embeddings, generator_loss)
    assert asked[0] is prediction
    without, _ = Objective()(prediction, target, mask, embeddings, generator_loss)
    assert len(asked) == 1
    assert total.item() == pytest.approx(without.item() + 0.1 * values["adversarial"].item(), rel=1e-6)
    _, values = Objective(adversarial=0.1)(prediction, target, mask, embeddings)
    assert "adversarial" not in values


def test_bfloat16_predictions_against_float32_targets_lose_nothing_but_their_own_rounding():
    prediction, target, mask, embeddings = _batch()
    rounded = prediction.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = Objective(focal_frequency=1)(rounded, target, mask, embeddings)
    exact, _ = Objective(focal_frequency=1)(rounded.detach().float(), target, mask, embeddings)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=1e-6)
    total.backward()
    assert rounded.grad.dtype == torch.bfloat16
    assert torch.isfinite(rounded.grad).all()


def test_nothing_reads_a_value_back_from_the_device():
    class NoReadBack(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
            return func(*args, **(kwargs or {}))

    prediction, target, mask, embeddings = _batch()
    with NoReadBack():
        total, _ = Objective(focal_frequency=1)(prediction, target, mask, embeddings)
        total.backward()
    with pytest.raises(AssertionError), NoReadBack():
        total.item()


def test_total_gradient_is_right_by_finite_differences():
    prediction, target, mask, embeddings = _batch((4, 5), torch.float64)
    assert torch.autograd.gradcheck(
        lambda p, a, b: Objective()(p, target, mask, (a, b))[0], (prediction, *embeddings), atol=1e-6
    )


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_refused_by_name(weight):
    with pytest.raises(InputError, match="hfl"):
        Objective(hfl=weight)


def test_an_objective_of_nothing_is_refused():
    with pytest.raises(InputError, match="All weights"):
        Objective(**OFF)
    prediction, target, mask, _ = _batch()
    with pytest.raises(InputError, match="Nothing to minimise"):
        Objective(**{**OFF, "consistency": 1})(prediction, target, mask, None)


def test_the_consistency_is_read_as_the_objective_says():
    prediction, target, mask, embeddings = _batch()
    reading = ConsistencyReading(reduction="sum", temperature=0.5, standardise=True)
    total, values = Objective(**{**OFF, "consistency": 2}, reading=reading)(prediction, target, mask, embeddings)
    expected = terms.consistency(*embeddings, reduction="sum", temperature=0.5, standardise=True)
    assert values["consistency"].item() == expected.item()
    assert total.item() == pytest.approx(2 * expected.item(), rel=1e-6)


def test_the_consistency_starts_at_its_epoch_and_needs_no_second_view_before():
    objective = Objective(reading=ConsistencyReading(start_epoch=5))
    assert [objective.at(epoch).views for epoch in (0, 4, 5, 6)] == [1, 1, 2, 2]
    assert objective.at(5) is objective
    prediction, target, mask, _ = _batch()
    _, values = objective.at(4)(prediction[:3], target, mask[:3], None)
    assert set(values) == {"rmse", "gradient", "hfl"}
    assert Objective(consistency=0).views == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reduction": "summ"}, "Did you mean sum"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"start_epoch": -1}, "0 or more"),
    ],
)
def test_a_reading_that_makes_no_sense_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        ConsistencyReading(**options)


def test_something_must_be_minimised_before_the_consistency_starts():
    with pytest.raises(InputError, match="Before epoch 3"):
        Objective(**{**OFF, "consistency": 1}, reading=ConsistencyReading(start_epoch=3))
