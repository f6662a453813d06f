"""A store as a source: rows mapped from disk, one read per image, only the chunks that a crop touches."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from frepa.errors import InputError
from frepa.images.scan import Header, Scan, UnreadableScan, replace_scan
from frepa.images.source import Source
from frepa.images.store.files import Column, ShardFiles
from frepa.images.store.frames import DamagedRecord, unpack, unpack_crop
from frepa.images.store.layout import DTYPES, HAS_GROUP, IS_QUANTIZED, StoreFolder, mask_type, read_facts, row_type
from frepa.images.store.records import described, restored


class StoreSource(Source):
    """The records of a store in their order.

    The index is mapped, not read: opening, sampling and seeking cost the same for a hundred records and for tens of
    millions, and all processes of a machine share the pages. Crossing into another process carries the path alone.

    Attributes:
        labels: as the source had them; built when first asked for.
        by_modality: mapped, for weighted sampling.
    """

    def __init__(self, location: str | Path) -> None:
        super().__init__()
        self._folder = StoreFolder(location)
        facts = read_facts(self._folder)
        self._facts, self.location, self.dims = facts, str(location), int(facts["dims"])
        self._check_files()
        self._length = int(facts["records"])
        self._rows = Column(self._folder.records, row_type(self.dims, affine=facts["affine"]), self._length)
        self._shards = ShardFiles(self._folder)
        self.modalities = tuple(facts["modalities"])
        if self.modalities:
            kind = np.dtype("<i4" if self._length < 2**31 else "<i8")
            counts = np.array(list(facts["modalities"].values()), np.int64)
            self.modality_codes = Column(self._folder.modality, np.dtype("<i4"), self._length).array
            self.by_modality = Column(self._folder.by_modality, kind, self._length), counts
        if self._has(self._folder.group):
            self.group_codes = Column(self._folder.group, np.dtype("<i8"), self._length).array

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.location, self.fingerprint, self.skipped)

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        """The record's name in its source where names were kept, its anonymous id otherwise."""
        if self._has(self._folder.names):
            ends = Column(self._folder.name_ends, np.dtype("<i8"), self._length).array
            start = int(ends[index - 1]) if index else 0
            with open(self._folder.names, "rb") as file:
                file.seek(start)
                return file.read(int(ends[index]) - start).decode("utf-8", "surrogateescape")
        return f"{int(self.row(index)['id']):016x}"

    @property
    def groups(self) -> int | None:
        if self.group_codes is None:
            return None
        rows = self._rows.array
        return len(np.unique(rows["group"][(rows["has"] & HAS_GROUP) > 0]))

    def header(self, index: int) -> Header:
        scan = self.describe(index)
        return Header(
            channels=scan.array.shape[0],
            size=scan.size,
            spacing=scan.spacing,
            affine=scan.affine,
            modality=scan.modality,
        )

    def describe(self, index: int) -> Scan:
        """A record without its pixels; its limits are those of the whole scan (of the volume, for a slice)."""
        return described(self.row(index), self.modalities)

    def read(self, index: int) -> Scan:
        row = self.row(index)
        try:
            data = self._shards.read(int(row["shard"]), int(row["offset"]), int(row["length"]))
            if zlib.crc32(data) != row["crc32"]:
                raise DamagedRecord("its bytes do not match their checksum")
            array = unpack(data, int(row["chunks"]), _shape(row), _stored_type(row))
        except DamagedRecord as error:
            raise self._unreadable(index, row, error) from None
        return self._scan(row, array)

    def read_mask(self, index: int, target: str) -> Scan | None:
        """The mask of a target, ``(1, *S)`` in its stored type, on the grid of its image; None where there is none.

        ``target`` "" is what the column ``mask`` of the annotations holds. Raises `UnreadableScan`.
        """
        columns = self._facts.get("masks", [])
        column = f"mask_{target}" if f"mask_{target}" in columns else "mask"
        if column not in columns or (column == "mask" and target not in ("", self._main_target)):
            return None
        row, place = self.row(index), self._masks.array[index][columns.index(column)]
        if place["length"] == 0:
            return None
        shape = (1, *_shape(row)[1:])
        try:
            data = self._shards.read(int(row["shard"]), int(place["offset"]), int(place["length"]))
            if zlib.crc32(data) != place["crc32"]:
                raise DamagedRecord("the bytes of its mask do not match their checksum")
            array = unpack(data, int(place["chunks"]), shape, np.dtype(DTYPES[place["dtype"]]))
        except DamagedRecord as error:
            raise self._unreadable(index, row, error) from None
        return Scan(array, affine=described(row, self.modalities).affine, spacing=described(row, ()).spacing)

    def read_crop(self, index: int, start: Sequence[int], size: Sequence[int]) -> Scan:
        """As in `Source`; of a volume only the chunks that the crop touches are read and checked."""
        row = self.row(index)
        shard, offset, length, chunks = (int(row[name]) for name in ("shard", "offset", "length", "chunks"))
        try:
            if chunks == 1:
                data: Any = self._shards.read(shard, offset, length)
                if zlib.crc32(data) != row["crc32"]:
                    raise DamagedRecord("its bytes do not match their checksum")
            else:
                data = self._shards.mapped(shard, offset, length)
            array = unpack_crop(data, chunks, _shape(row), _stored_type(row), start, size)
        except DamagedRecord as error:
            raise self._unreadable(index, row, error) from None
        return self._scan(row, array)

    @cached_property
    def annotations(self) -> pa.Table | None:  # type: ignore[override]
        """What is known of each record, mapped; None where the source knew of nothing."""
        if not self._has(self._folder.annotations):
            return None
        with pa.memory_map(str(self._folder.annotations)) as file:
            return pa.ipc.open_file(file).read_all()

    @property
    def holds_masks(self) -> bool:  # type: ignore[override]
        """Whether masks lie in the store itself."""
        return bool(self._facts.get("masks"))

    @cached_property
    def _main_target(self) -> str:
        metadata = (self.annotations.schema.metadata if self.annotations is not None else None) or {}
        return str(json.loads(metadata.get(b"target", b'""')) or "")

    @cached_property
    def _masks(self) -> Column:
        kind = np.dtype((mask_type(), (len(self._facts["masks"]),)))
        return Column(self._folder.masks, kind, self._length)

    @property
    def fingerprint(self) -> str:
        """sha256 over the index, which holds the hash of every record."""
        return self._facts["fingerprint"]

    @cached_property
    def channels(self) -> int:
        """What the packed source answered, so that training on it or on its store sees the same batches."""
        return int(self._facts["channels"])

    @property
    def facts(self) -> dict[str, Any]:
        """What ``store.json`` says."""
        return self._facts

    @cached_property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        """``(n,)``, integers or strings."""
        names = self._facts["labels"]
        if names is None:
            return None
        kind = np.int64 if all(isinstance(name, int) for name in names) else object
        return np.array(names, kind)[Column(self._folder.label, np.dtype("<i4"), self._length).array]

    def row(self, index: int) -> np.ndarray:
        """A record's entry in the index, see `frepa.images.store.layout.row_type`."""
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of a store with {self._length}")
        return self._rows.array[index]

    def mask_places(self, index: int) -> list[np.ndarray]:
        """Where the masks of a record are, see `frepa.images.store.layout.mask_type`."""
        places = self._masks.array[index] if self.holds_masks else ()
        return [place for place in places if place["length"]]

    def _scan(self, row: np.ndarray, array: np.ndarray) -> Scan:
        if int(row["has"]) & IS_QUANTIZED:
            array = restored(array, float(row["slope"]), float(row["intercept"]))
        return replace_scan(described(row, self.modalities), array=array)

    def _unreadable(self, index: int, row: np.ndarray, error: DamagedRecord) -> UnreadableScan:
        file = self._folder.shard(int(row["shard"])).relative_to(self._folder.root)
        return UnreadableScan(self.name(index), f"damaged in the store ({file}): {error}", kind="damaged")

    def _has(self, path: Path) -> bool:
        return path.relative_to(self._folder.root).as_posix() in self._facts["files"]

    def _check_files(self) -> None:
        """Compare presence and length of the index files with ``store.json``; their hashes are for --verify."""
        for name, known in self._facts["files"].items():
            path = self._folder.root / name
            try:
                found = os.stat(path).st_size
            except OSError:
                raise InputError(f"The store {self.location} lacks its file {name}. {_REMEDY}") from None
            if found != known["bytes"]:
                raise InputError(
                    f"The store {self.location} is damaged: {name} has {found} bytes, expected {known['bytes']}. "
                    + _REMEDY
                )
        rows = self._facts["files"].get("index/records.bin", {}).get("bytes", 0)
        width = row_type(self.dims, affine=self._facts["affine"]).itemsize
        if rows != width * self._facts["records"]:
            raise InputError(
                f"The store {self.location} is damaged: its store.json says {self._facts['records']} records, and its "
                f"index has {rows // width}. " + _REMEDY
            )


_REMEDY = "Copy the store again from where it is whole, or pack it again with frepa prepare and --overwrite."


def _shape(row: np.ndarray) -> tuple[int, ...]:
    return (int(row["channels"]), *(int(n) for n in row["size"]))


def _stored_type(row: np.ndarray) -> np.dtype:
    return np.dtype(DTYPES[row["dtype"]])


def open_store(
    text: str, *, dims: int, max_pixels: int | None = None, canonical: bool = True, voi: bool = False
) -> StoreSource:
    """The store in a folder.

    ``max_pixels`` guards against files that lie and is not needed here; the axes are those that were packed.

    Raises:
        InputError: unfinished, damaged or of another format; it holds records of the other dimensionality; or ``voi``
            is asked for, which has to be done before packing.
    """
    if voi:
        raise InputError(
            f"The store {text} holds pixels as they were packed; display windows are applied when files are read. "
            "Pack the files again with --voi."
        )
    source = StoreSource(text)
    if source.dims != dims:
        kinds = {2: "images", 3: "volumes"}
        raise InputError(
            f"The store {text} holds {kinds[source.dims]}, not {kinds[dims]}: use --dims {source.dims}, or pack the "
            f"scans again with frepa prepare --dims {dims}"
            + (", which packs slices of volumes too." if dims == 2 else ".")
        )
    return source


def _reopened(location: str, fingerprint: str, skipped: list[Any]) -> StoreSource:
    source = StoreSource(location)
    if source.fingerprint != fingerprint:
        raise InputError(f"The store {location} has been replaced while it was in use. Start again.")
    source.skipped = skipped
    return source
