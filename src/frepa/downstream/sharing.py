"""What heads on one encoder and one set have in common is computed by the first of them and found by the others.

A study asks for this (`sharing`); a run on its own computes everything, and so does one whose encoder is tuned. Nothing
changes by it, not even a last digit: what is found was computed from equal values in equal batches. What is drawn at
random for one head, the crops it is trained on, is no other head's, and is not kept.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Shared:
    """Results by what they were computed from, as long as they fit: the first ones stay.

    Args:
        limit: bytes of tensors that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: dict[tuple, Any] = {}

    def result(self, key: tuple, compute: Callable[[], Result], size: Callable[[Result], int]) -> Result:
        """What is kept under ``key``, or else what ``compute`` gives; ``size`` in bytes. Nobody else holds the same."""
        if key in self._kept:
            return copy.deepcopy(self._kept[key])
        made = compute()
        if self._bytes + size(made) <= self._limit:
            # A copy: what was given out may be changed in place.
            self._kept[key] = copy.deepcopy(made)
            self._bytes += size(made)
        return made


_CURRENT: ContextVar[Shared | None] = ContextVar("shared", default=None)


@contextlib.contextmanager
def sharing(shared: Shared | None) -> Iterator[None]:
    """Runs inside find in ``shared`` what others on the same encoder and data computed; None lets them compute all."""
    token = _CURRENT.set(shared)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def shared(key: Callable[[], tuple], compute: Callable[[], Result], size: Callable[[Result], int]) -> Result:
    """``compute()``, or what it gave where the key was the same; the key is only made where something is shared.

    The encoder need not be in the key, and what of the data is in the study's own name for them need not either.
    """
    current = _CURRENT.get()
    return compute() if current is None else current.result(key(), compute, size)


def shared_maps(words: tuple, inputs: Sequence[Tensor], compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Maps that an encoder makes of ``inputs``, which are told by their content; kept in the machine's memory."""
    device = inputs[0].device
    return [
        item.to(device)
        for item in shared(
            lambda: (*words, *map(content, inputs)),
            compute if _CURRENT.get() is None else lambda: [item.cpu() for item in compute()],
            lambda maps: sum(item.nbytes for item in maps),
        )
    ]


def content(tensor: Tensor) -> tuple:
    """Type, extent, layout and a hash of the values."""
    values: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = hashlib.blake2b(values, digest_size=16).digest()
    return str(tensor.dtype), tuple(tensor.shape), tensor.stride(), digest
