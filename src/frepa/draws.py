"""Keyed randomness: what an image draws depends on its own key and on the name of the draw, on nothing else.

No global random state is read or changed. A row gets the same numbers whatever the batch size, its place in the batch
or the other rows, so a resumed or re-sharded run corrupts every image exactly as the first one did.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def _mix(z: int) -> int:
    """The splitmix64 step: a bijection of 64-bit integers that spreads neighbouring inputs apart."""
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@functools.lru_cache(maxsize=256)
def _stream_code(stream: str) -> int:
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")


def sample_keys(seed: int, positions: Sequence[int], view: int) -> list[int]:
    """One 63-bit key for each sample of a batch.

    Args:
        seed: the run's seed.
        positions: the samples' positions in the run's global sample stream.
        view: number of the view of the same image (0, 1); another view draws other numbers.
    """
    start = _mix(seed & _MASK)
    return [_mix((_mix((start + int(position)) & _MASK) + view) & _MASK) >> 1 for position in positions]


class Draws:
    """Random numbers for a batch, one independent source per row.

    Args:
        keys: one integer per row, as made by `sample_keys`.
        device: where the numbers are made. CPU and CUDA give different numbers for the same key.
    """

    def __init__(self, keys: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.keys = [int(key) for key in keys]
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, rows: Sequence[int]) -> Draws:
        """The draws of some rows only."""
        return Draws([self.keys[row] for row in rows], self.device)

    def generator(self, row: int, stream: str) -> torch.Generator:
        """A fresh generator on the device, seeded from the row's key and the stream's name, without waiting for it."""
        generator = torch.Generator(device=self.device)
        generator.manual_seed(self._code(self.keys[row], stream))
        return generator

    def uniform(self, shape: Sequence[int], stream: str) -> Tensor:
        """Uniform numbers in [0, 1), float32 ``(B, *shape)``."""
        out = torch.empty(len(self), *shape, device=self.device)
        for row in range(len(self)):
            out[row].uniform_(generator=self.generator(row, stream))
        return out

    def normal(self, shape: Sequence[int], stream: str) -> Tensor:
        """Standard normal numbers, float32 ``(B, *shape)``."""
        out = torch.empty(len(self), *shape, device=self.device)
        for row in range(len(self)):
            out[row].normal_(generator=self.generator(row, stream))
        return out

    def host_uniform(self, stream: str) -> list[float]:
        """One uniform number in [0, 1) per row, known on the host at once: for choices that decide what is computed."""
        return [(self._code(key, stream) >> 10) / (1 << 53) for key in self.keys]

    @staticmethod
    def _code(key: int, stream: str) -> int:
        return _mix((key ^ _stream_code(stream)) & _MASK) >> 1
