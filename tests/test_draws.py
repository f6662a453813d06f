"""Draws depend on a row's key and the stream's name alone."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from frepa.draws import Draws, sample_keys


def test_keys_are_63_bit_distinct_and_depend_on_everything() -> None:
    keys = [key for seed in range(3) for view in range(2) for key in sample_keys(seed, range(2000), view)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 1 << 63 for key in keys)
    assert sample_keys(5, [7, 3], 1) == [sample_keys(5, [7], 1)[0], sample_keys(5, [3], 1)[0]]


def test_key_bits_are_balanced() -> None:
    keys = np.array(sample_keys(0, range(20000), 0), dtype=np.uint64)
    share = [float(((keys >> np.uint64(bit)) & np.uint64(1)).mean()) for bit in range(63)]
    assert np.allclose(share, 0.5, atol=5 * 0.5 / math.sqrt(20000))


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_rows_do_not_depend_on_the_batch(kind: str) -> None:
    keys = sample_keys(1, range(6), 0)
    whole = getattr(Draws(keys), kind)((5, 7), "a")
    alone = getattr(Draws(keys[3:4]), kind)((5, 7), "a")
    turned = getattr(Draws(keys[::-1]), kind)((5, 7), "a")
    chosen = getattr(Draws(keys).select([4, 3]), kind)((5, 7), "a")
    assert torch.equal(whole[3], alone[0])
    assert torch.equal(whole, turned.flip(0))
    assert torch.equal(chosen, whole[[4, 3]])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, getattr(Draws(keys), kind)((5, 7), "b"))


def test_draws_neither_read_nor_change_global_random_state() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 -- the global state is what this test looks at
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first = Draws([11]).normal((4,), "x")
    Draws([11]).host_uniform("x")
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(99)
    assert torch.equal(first, Draws([11]).normal((4,), "x"))


def test_distributions() -> None:
    draws = Draws(sample_keys(2, range(8), 0))
    uniform, normal = draws.uniform((20000,), "u"), draws.normal((20000,), "n")
    assert uniform.dtype == normal.dtype == torch.float32
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert torch.allclose(uniform.mean(1), torch.full((8,), 0.5), atol=5 * 0.289 / math.sqrt(20000))
    assert torch.allclose(normal.mean(1), torch.zeros(8), atol=5 / math.sqrt(20000))
    assert torch.allclose(normal.var(1), torch.ones(8), atol=5 * math.sqrt(2 / 20000))
    correlation = torch.corrcoef(normal) - torch.eye(8)
    assert float(correlation.abs().max()) < 5 / math.sqrt(20000)


def test_host_uniform_is_uniform_and_keyed() -> None:
    keys = sample_keys(3, range(20000), 0)
    values = np.array(Draws(keys).host_uniform("strategy"))
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square with 19 degrees of freedom: above 45 once in 1000
    assert Draws(keys[10:12]).host_uniform("strategy") == values[10:12].tolist()
    assert abs(np.corrcoef(values, Draws(keys).host_uniform("other"))[0, 1]) < 5 / math.sqrt(20000)
