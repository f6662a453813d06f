from __future__ import annotations

import collections
import random

import pytest

from frepa.downstream.division import SHARES, split_groups
from frepa.errors import InputError


@pytest.mark.parametrize("count", [3, 7, 10, 45, 300])
def test_shares_are_kept_as_well_as_whole_groups_allow(count: int) -> None:
    parts = collections.Counter(split_groups([f"p{i}" for i in range(count)], SHARES, seed=1))
    assert sum(parts.values()) == count
    assert abs(parts["val"] - max(1, count / 10)) <= 1
    assert abs(parts["test"] - max(1, count / 5)) <= 1


def test_groups_never_part() -> None:
    generator = random.Random(0)
    groups = [f"patient{generator.randrange(40)}" for _ in range(300)]
    parts = split_groups(groups, SHARES, seed=3)
    seen: dict[str, set[str]] = {}
    for group, part in zip(groups, parts):
        seen.setdefault(group, set()).add(part)
    assert all(len(found) == 1 for found in seen.values())
    assert set(parts) == {"train", "val", "test"}


def test_the_order_of_files_does_not_matter_and_the_seed_does() -> None:
    groups = [f"p{i}" for i in range(50)]
    first = dict(zip(groups, split_groups(groups, SHARES, seed=0)))
    assert dict(zip(groups[::-1], split_groups(groups[::-1], SHARES, seed=0))) == first
    assert dict(zip(groups, split_groups(groups, SHARES, seed=1))) != first


def test_a_split_is_the_same_on_every_machine() -> None:
    # Pinned: published results depend on it.
    assert split_groups(list("abcdefghij"), SHARES, seed=0) == [
        "train",
        "train",
        "train",
        "val",
        "train",
        "train",
        "train",
        "test",
        "train",
        "test",
    ]


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(InputError, match="at least 3"):
        split_groups(["a", "b", "a"], SHARES, seed=0)
