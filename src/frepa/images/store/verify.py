"""Every record of a store against its hash, and every file of its index."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frepa.errors import InputError
from frepa.images.store.files import ShardFiles
from frepa.images.store.frames import DamagedRecord
from frepa.images.store.layout import StoreFolder, file_digest, write_atomically
from frepa.images.store.source import StoreSource
from frepa.names import cell

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
        write_atomically(folder.damaged, lambda temporary: _write(temporary, damaged))
    else:
        folder.damaged.unlink(missing_ok=True)
    return damaged


def _damaged(source: StoreSource, folder: StoreFolder, records: range) -> Iterator[Damage]:
    shards = ShardFiles(folder)  # one per thread
    for record in records:
        row = source.row(record)
        reason = None
        try:
            data = shards.read(int(row["shard"]), int(row["offset"]), int(row["length"]))
            if not np.array_equal(np.frombuffer(hashlib.sha256(data).digest()[:16], np.uint8), row["sha256"]):
                reason = "its bytes do not match their hash"
        except DamagedRecord as error:
            reason = str(error)
        if reason is not None:
            yield Damage(record, source.name(record), folder.shard(int(row["shard"])).name, reason)


def _write(path: Path, damaged: list[Damage]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("record", "name", "shard", "reason"))
        writer.writerows((item.record, cell(item.name), item.shard, item.reason) for item in damaged)
