"""Every record of a store against its hash, and every file of its index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from frepa.errors import InputError
from frepa.files import file_digest, write_csv
from frepa.images.store.files import ShardFiles
from frepa.images.store.frames import DamagedRecord
from frepa.images.store.layout import StoreFolder
from frepa.images.store.source import StoreSource

_BATCH = 4096


@dataclass(frozen=True)
class Damage:
    """A record whose bytes are not those that were packed: its number, name (or id), shard, and what is wrong."""

    record: int
    name: str
    shard: str
    reason: str


def verify_store(
    location: str | Path, *, num_workers: int = 1, progress: Callable[[int], None] = lambda count: None
) -> list[Damage]:
    """Damaged records, in order; also written to ``damaged.csv`` in the store, which goes when there are none.

    Args:
        location: folder of a finished store.
        num_workers: threads that read and hash.
        progress: called with the number of records done since the last call.

    Raises:
        InputError: not a store, unfinished, or its index is damaged so that records cannot be found.
    """
    source = StoreSource(location)
    folder = StoreFolder(location)
    for name, known in source.facts["files"].items():
        if file_digest(folder.root / name) != known["sha256"]:
            raise InputError(
                f"The index of the store {location} is damaged: {name} does not match its hash. Copy this file again "
                "from where it is whole, or pack the store again with frepa prepare and --overwrite."
            )
    batches = [range(first, min(first + _BATCH, len(source))) for first in range(0, len(source), _BATCH)]
    damaged: list[Damage] = []
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        for batch, found in zip(batches, pool.map(lambda batch: list(_damaged(source, folder, batch)), batches)):
            damaged += found
            progress(len(batch))
    if damaged:
        write_csv(folder.damaged, ("record", "name", "shard", "reason"), map(asdict, damaged), end="\n")
    else:
        folder.damaged.unlink(missing_ok=True)
    return damaged


def _damaged(source: StoreSource, folder: StoreFolder, records: range) -> Iterator[Damage]:
    shards = ShardFiles(folder)  # one per thread
    for record in records:
        row = source.row(record)
        reason = None
        for what, place in (
            ("its bytes do", row),
            *(("the bytes of its mask do", mask) for mask in source.mask_places(record)),
        ):
            try:
                data = shards.read(int(row["shard"]), int(place["offset"]), int(place["length"]))
                if not np.array_equal(np.frombuffer(hashlib.sha256(data).digest()[:16], np.uint8), place["sha256"]):
                    reason = reason or f"{what} not match their hash"
            except DamagedRecord as error:
                reason = reason or str(error)
        if reason is not None:
            yield Damage(record, source.name(record), folder.shard(int(row["shard"])).name, reason)
