"""Splits that never part a group, and that stay when cases are added elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from frepa.errors import InputError

#: Training : validation : test of the paper (Frepa section 4).
SHARES = {"train": 7.0, "val": 1.0, "test": 2.0}


def split_groups(groups: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    """A part for every case, in proportion to ``shares`` and whole groups at a time.

    Groups are ordered by a hash of seed and name, so the split depends neither on the order of files nor on the
    machine, and hardly changes when a few groups come or go. Every part gets at least one group; the first of
    ``shares`` takes what the others leave.

    Args:
        groups: the group (patient) of each case.
        shares: part name to its relative share, for example ``SHARES``.
        seed: another seed gives another order.

    Raises:
        InputError: fewer groups than parts.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    if len(sizes) < len(shares):
        raise InputError(
            f"{len(sizes)} patients (or single images) cannot be divided into {', '.join(shares)}: "
            f"at least {len(shares)} are needed."
        )
    order = sorted(sizes, key=lambda group: hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=16).digest())
    rest, *others = shares
    total = sum(shares.values())
    part_of: dict[str, str] = {}
    for position, part in enumerate(others):
        wanted = len(groups) * shares[part] / total
        held = 0
        # One group must be left for each of the parts still to be filled.
        while len(order) > len(others) - position and (held == 0 or held + sizes[order[-1]] / 2 <= wanted):
            group = order.pop()
            part_of[group] = part
            held += sizes[group]
    part_of |= dict.fromkeys(order, rest)
    return [part_of[group] for group in groups]


def complete_split(parts: list[str], groups: Sequence[str], seed: int) -> tuple[list[str], str]:
    """Add the parts that an official split leaves out, and say in words what was done.

    Without a test part the validation part becomes that; without a validation part an eighth of the training groups.

    Raises:
        InputError: there is no training part, or nothing but it.
    """
    notes = ["official"]
    if "train" not in parts:
        raise InputError(f"the set has a split, but no training part (only {', '.join(sorted(set(parts)))}).")
    if "test" not in parts:
        if "val" not in parts:
            raise InputError("the set has a training part only. Add test cases, or divide it with --split random.")
        parts = ["test" if part == "val" else part for part in parts]
        notes.append("its validation part is used for testing, since it has no test part")
    if "val" not in parts:
        members = [i for i, part in enumerate(parts) if part == "train"]
        inner = split_groups([groups[i] for i in members], {"train": 7.0, "val": 1.0}, seed)
        parts = list(parts)
        for i, part in zip(members, inner):
            parts[i] = part
        notes.append(f"an eighth of the training groups is used for validation, seed {seed}")
    assert set(parts) <= set(SHARES)
    return parts, "; ".join(notes)


def fold_groups(groups: Sequence[str], targets: np.ndarray, count: int, seed: int) -> list[int]:
    """A fold 0 .. ``count - 1`` for every case, whole groups at a time, classes spread evenly.

    Groups come in an order drawn by seed and name; each goes to the fold that holds fewest cases of the group's
    classes, and of these to the smallest one.

    Args:
        groups: the group (patient) of each case.
        targets: ``(n, K)``, 1 where the case is of the class.
        count: number of folds, 2 or more.
        seed: another seed gives another order.

    Raises:
        InputError: fewer groups than folds.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    if count < 2 or len(members) < count:
        raise InputError(
            f"{len(members)} patients (or single images) cannot be divided into {count} folds: at least 2 folds, and "
            "as many patients as folds, are needed."
        )
    order = sorted(members, key=lambda group: hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=16).digest())
    held = np.zeros((count, targets.shape[1]), np.int64)
    sizes = np.zeros(count, np.int64)
    fold_of: dict[str, int] = {}
    for group in order:
        own = targets[members[group]].sum(0, dtype=np.int64)
        fold = min(range(count), key=lambda fold: (int(held[fold] @ own), int(sizes[fold]), fold))
        fold_of[group] = fold
        held[fold] += own
        sizes[fold] += len(members[group])
    return [fold_of[group] for group in groups]
