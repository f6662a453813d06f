"""The sample order against its definition: bijection, uniformity, exact quotas, cost of seeking."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from frepa.errors import InputError
from frepa.images.sampling import SampleStream, permute, uniform


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 10, 64, 97, 1000, 65537])
def test_every_epoch_visits_each_record_once_in_an_order_of_its_own(length: int) -> None:
    stream = SampleStream(length, seed=3)
    first, second = stream.at(np.arange(2 * length)).reshape(2, length)
    assert np.array_equal(np.sort(first), np.arange(length))
    assert np.array_equal(np.sort(second), np.arange(length))
    if length > 10:
        assert not np.array_equal(first, second)
        assert not np.array_equal(first, np.arange(length))


def test_orders_of_five_records_are_equally_likely() -> None:
    epochs = SampleStream(5, seed=0).at(np.arange(5 * 24_000)).reshape(-1, 5)
    counts = Counter(map(tuple, epochs.tolist()))
    assert len(counts) == 120
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_place_and_neighbours_are_independent() -> None:
    length = 1000
    epochs = SampleStream(length, seed=1).at(np.arange(200 * length)).reshape(200, length)
    # Where a record comes says nothing of its number, and the next record nothing of this one
    place = np.broadcast_to(np.arange(length), epochs.shape)
    assert abs(np.corrcoef(place.ravel(), epochs.ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(epochs[:, :-1].ravel(), epochs[:, 1:].ravel())[0, 1]) < 0.01
    table, _, _ = np.histogram2d(place.ravel(), epochs.ravel(), bins=20)
    assert stats.chisquare(table.ravel()).pvalue > 1e-3


def test_another_seed_is_another_order_and_the_same_seed_the_same() -> None:
    positions = np.arange(500)
    assert np.array_equal(SampleStream(500, 7).at(positions), SampleStream(500, 7).at(positions))
    assert not np.array_equal(SampleStream(500, 7).at(positions), SampleStream(500, 8).at(positions))


def test_order_is_pinned() -> None:
    # A change here would make every interrupted run continue with other samples
    wanted = [9, 0, 1, 4, 6, 7, 2, 3, 5, 8, 5, 9, 4, 6, 8, 0, 3, 1, 7, 2]
    assert SampleStream(10, 0).at(np.arange(20)).tolist() == wanted


def test_answer_does_not_depend_on_how_positions_are_asked_for() -> None:
    groups = np.arange(300) % 3
    for stream in (SampleStream(300, 5), SampleStream(300, 5, groups=groups, weights=[1, 2, 3], block=60)):
        whole = stream.at(np.arange(1000))
        shuffled = np.random.default_rng(0).permutation(1000)
        assert np.array_equal(stream.at(shuffled), whole[shuffled])
        assert np.array_equal(np.concatenate([stream.at(range(p, p + 8)) for p in range(0, 1000, 8)]), whole)


def test_seventeen_million_records_cost_nothing_to_seek_in() -> None:
    length = 17_000_000
    stream = SampleStream(length, seed=11)
    start = time.perf_counter()
    batch = stream.at(np.arange(99 * length + 123, 99 * length + 123 + 256))
    assert time.perf_counter() - start < 0.1
    assert len(set(batch.tolist())) == 256
    assert batch.min() >= 0
    assert batch.max() < length


def test_large_permutation_is_a_bijection() -> None:
    length = 1_000_003
    seen = np.zeros(length, bool)
    seen[permute(np.arange(length), length, 12345)] = True
    assert seen.all()


def test_weights_are_honoured_exactly_in_every_block() -> None:
    rng = np.random.default_rng(0)
    groups = rng.choice(4, size=5000, p=[0.7, 0.2, 0.09, 0.01])
    weights = np.array([1.0, 1.0, 2.0, 0.5])
    stream = SampleStream(5000, 2, groups=groups, weights=weights, block=90)
    drawn = groups[stream.at(np.arange(90 * 40))].reshape(40, 90)
    for block in drawn:
        assert np.bincount(block, minlength=4).tolist() == [20, 20, 40, 10]
    assert any(not np.array_equal(drawn[0], block) for block in drawn[1:])


def test_rounding_is_by_largest_remainder() -> None:
    groups = np.arange(30) % 3
    assert SampleStream(30, 0, groups=groups, weights=[1, 1, 1], block=10).quotas.tolist() == [4, 3, 3]
    assert SampleStream(30, 0, groups=groups, weights=[0.5, 0.26, 0.24], block=10).quotas.tolist() == [5, 3, 2]


def test_each_group_is_used_up_before_any_of_it_comes_again() -> None:
    groups = np.array([0] * 7 + [1] * 50)
    stream = SampleStream(57, 4, groups=groups, weights=[1, 1], block=10)
    drawn = stream.at(np.arange(10 * 70))
    rare, common = drawn[groups[drawn] == 0], drawn[groups[drawn] == 1]
    assert len(rare) == len(common) == 350
    # Blocks shuffle the order within them, so complete rounds are counted, not their borders
    assert np.bincount(rare, minlength=7)[:7].tolist() == [50] * 7
    assert np.bincount(common)[7:].tolist() == [7] * 50


def test_weight_zero_leaves_a_group_out() -> None:
    groups = np.arange(100) % 2
    drawn = SampleStream(100, 0, groups=groups, weights=[0.0, 1.0], block=10).at(np.arange(500))
    assert set(groups[drawn].tolist()) == {1}


@pytest.mark.parametrize(
    ("weights", "words"),
    [([1.0, 1e-9], "less than one image"), ([0.0, 0.0], "not all 0"), ([1.0, -1.0], "0 or more")],
)
def test_impossible_weights_are_refused_in_plain_words(weights: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SampleStream(10, 0, groups=np.arange(10) % 2, weights=weights)


def test_members_stand_in_for_group_codes() -> None:
    codes = np.array([2, 0, 1, 1, 0, 2, 2, 1])
    members = (np.array([1, 4, 2, 3, 7, 0, 5, 6]), np.array([2, 3, 3]))
    by_members = SampleStream(8, 3, weights=[1, 2, 1], members=members, block=8)
    by_codes = SampleStream(8, 3, weights=[1, 2, 1], groups=codes, block=8)
    assert np.array_equal(by_members.at(np.arange(200)), by_codes.at(np.arange(200)))
    with pytest.raises(ValueError, match="8 members for 9 records"):
        SampleStream(9, 3, weights=[1, 2, 1], members=members)


def test_uniform_numbers_are_uniform_and_independent_between_streams() -> None:
    positions = np.arange(20_000)
    one, other = uniform(9, positions, 1), uniform(9, positions, 2)
    assert one.min() >= 0
    assert one.max() < 1
    assert stats.kstest(one, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert float(uniform(9, 17, 1)) == one[17]
