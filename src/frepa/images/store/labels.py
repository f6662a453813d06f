"""What a store keeps of the annotations of its images: a table of plain values, and masks beside the pixels."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from frepa.images.scan import Scan, UnreadableScan
from frepa.images.store.frames import pack
from frepa.images.store.layout import DTYPES
from frepa.images.store.records import narrowed


class Labels(Protocol):
    """The annotations of a source as a store keeps them.

    Attributes:
        table: a row per record of the source, as `frepa.datasets.annotations` has it, but for the columns of masks and
            with nothing in it that names a patient.
        masks: names of the columns of masks, ``mask`` and ``mask_<target>``.
        fingerprint: another one where the annotations are others.
    """

    table: pa.Table
    masks: tuple[str, ...]
    fingerprint: str

    def read(self, index: int, column: str, image: Scan) -> np.ndarray | None:
        """A mask of a record, ``(1, *S)`` on the grid of ``image``; None where it has none.

        Raises `UnreadableScan` where it is damaged or does not fit.
        """
        ...


@dataclass(frozen=True)
class PackedMask:
    """The bytes of one mask, and what the index has to know of it; or no bytes and ``broken``, why there are none."""

    data: bytes
    facts: dict[str, Any]


def pack_masks(labels: Labels | None, index: int, image: Scan) -> list[tuple[str, PackedMask]]:
    """Every mask of a record, without loss; a mask that cannot be used is named with the reason and takes no room."""
    found = []
    for column in labels.masks if labels is not None else ():
        assert labels is not None
        try:
            array = labels.read(index, column, image)
        except UnreadableScan as error:
            found.append((column, PackedMask(b"", {"broken": error.reason})))
            continue
        if array is None:
            continue
        # Whole numbers keep their type: the largest of it may mean something (no instance at all)
        stored = array if array.dtype.kind in "iu" else narrowed(array)
        packed = pack(stored)
        facts = {
            "length": len(packed.data),
            "chunks": packed.chunks,
            "crc32": zlib.crc32(packed.data),
            "sha256": hashlib.sha256(packed.data).hexdigest()[:32],
            "dtype": stored.dtype.name,
        }
        found.append((column, PackedMask(packed.data, facts)))
    return found


def pieces(line: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Length and sha256 of everything a record's journal line says was written: its image, then its masks."""
    if "skipped" in line:
        return
    yield line["length"], line["sha256"]
    for mask in line.get("masks", {}).values():
        if "broken" not in mask:
            yield mask["length"], mask["sha256"]


def fill_masks(row: np.ndarray, line: dict[str, Any], columns: Sequence[str], offset: int) -> None:
    """Write a record's masks into a row of `frepa.images.store.layout.mask_type`.

    Args:
        row: ``(len(columns),)``, zeros.
        line: the record's journal line.
        columns: in the order of the row.
        offset: where the record begins in its shard.
    """
    offset += line["length"]
    for column, facts in line.get("masks", {}).items():
        if "broken" in facts:
            continue
        place = row[columns.index(column)]
        place["offset"], place["sha256"] = offset, np.frombuffer(bytes.fromhex(facts["sha256"]), np.uint8)
        for name in ("length", "chunks", "crc32"):
            place[name] = facts[name]
        place["dtype"] = DTYPES.index(facts["dtype"])
        offset += facts["length"]
