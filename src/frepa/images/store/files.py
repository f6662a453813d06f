"""Bytes of a store's files: columns mapped for good, shards opened as needed."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from frepa.images.store.frames import DamagedRecord
from frepa.images.store.layout import StoreFolder

# Fewer than a process may usually have open (1024), with room for everything else
_MOST_OPEN = 128


class Column:
    """A fixed-width column of the index, mapped when first used; only its path crosses into another process."""

    def __init__(self, path: Path, dtype: np.dtype, length: int) -> None:
        self._path, self._dtype, self._length = path, dtype, length

    @cached_property
    def array(self) -> np.ndarray:
        """``(n,)``, read-only, backed by pages that all processes share."""
        return np.asarray(np.memmap(self._path, self._dtype, "r", shape=(self._length,)))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "array"}


class _Handle:
    """A file descriptor that closes when the last user lets go of it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)
        self.length = os.fstat(self.number).st_size

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class ShardFiles:
    """Shards of a store, the most recently used of them kept open or mapped."""

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder
        self._handles: OrderedDict[int, _Handle] = OrderedDict()
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Some bytes of a shard in one read.

        Raises:
            DamagedRecord: the file is missing, cannot be read or ends before.
        """
        try:
            handle = _recent(self._handles, shard, lambda: _Handle(self._folder.shard(shard)))
            data = os.pread(handle.number, length, offset)
            while len(data) < length:  # the system hands out at most 2 GB at a time
                more = os.pread(handle.number, length - len(data), offset + len(data))
                if not more:
                    raise DamagedRecord("the shard ends before it")
                data += more
        except OSError as error:
            raise DamagedRecord(f"the shard cannot be read ({error.strerror})") from None
        return data

    def mapped(self, shard: int, offset: int, length: int) -> memoryview:
        """Some bytes of a shard, read from disk only where they are looked at. Raises as `read` does."""
        try:
            whole = _recent(self._maps, shard, lambda: _map(self._folder.shard(shard)))
        except (OSError, ValueError):  # an empty file cannot be mapped
            raise DamagedRecord("the shard is missing or cannot be read") from None
        if offset + length > len(whole):
            raise DamagedRecord("the shard ends before it")
        return memoryview(whole)[offset : offset + length]


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _recent(kept: OrderedDict[int, Any], key: int, make: Any) -> Any:
    if key in kept:
        kept.move_to_end(key)
        return kept[key]
    kept[key] = made = make()
    if len(kept) > _MOST_OPEN:
        kept.popitem(last=False)  # closes when nobody looks at it any more
    return made
