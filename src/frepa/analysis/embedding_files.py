"""Embeddings on disk: parts while they are made, so that a killed run goes on; one parquet or npz file in the end.

Nothing but the part that is being filled is in memory, however many images there are.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from frepa.files import append_json_lines, keep_lines, write_atomically
from frepa.images.scan import Skipped

PARTS, DONE = "parts", "done.jsonl"
#: The file of each format.
FILES = {"parquet": "embeddings.parquet", "npz": "embeddings.npz"}
#: Key of the table's metadata that holds, as JSON, what made the embeddings.
FACTS = b"frepa"
TEXTS = ("id", "name", "label", "split", "group")
# Of one part, and of one row group: neither is ever larger than these say.
_ROWS, _BYTES = 4096, 2**26
_SECONDS = 60.0
_HALF, _FULL = pa.float16(), pa.float32()


def schema_of(channels: int, dense: tuple[int, ...] | None, half: bool, facts: dict[str, Any]) -> pa.Schema:
    """Columns of a row: texts (null where unknown), and vectors as fixed-size lists of floats.

    Args:
        channels: of ``embedding``.
        dense: shape (C, *s) of the map, written flat, last axis fastest; None writes none. half: in half precision.
        facts: kept in the metadata, with the map's shape as ``dense``.
    """
    fields = [pa.field(name, pa.string()) for name in TEXTS]
    fields.append(pa.field("embedding", pa.list_(_FULL, channels)))
    if dense is not None:
        fields.append(pa.field("dense", pa.list_(_HALF if half else _FULL, math.prod(dense))))
    told = {**facts, "dense": None if dense is None else list(dense)}
    return pa.schema(fields, metadata={FACTS: json.dumps(told)})


def rows_of(schema: pa.Schema, texts: Sequence[dict[str, str | None]], arrays: dict[str, np.ndarray]) -> pa.Table:
    """Rows of this schema: ``texts`` of each, ``arrays`` with an entry (n, ...) for each column of vectors."""
    columns: list[pa.Array] = [pa.array([text[name] for text in texts], pa.string()) for name in TEXTS]
    for field in list(schema)[len(TEXTS) :]:
        flat = np.ascontiguousarray(arrays[field.name]).reshape(-1)
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, field.type.value_type), type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A column of fixed-size lists as (n, C)."""
    width = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)


class Parts:
    """The rows written so far, in the order of the records; `done.jsonl` says which records each part covers.

    Attributes:
        next: the first record that is not on disk yet.
        skipped: those that could not be read, by record.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()  # Arrow takes a colon for an address
        self._waiting: list[pa.Table] = []
        self._unread: dict[int, Skipped] = {}
        self._since = time.monotonic()
        self._files: list[tuple[str, int]] = []
        self.next = 0
        self.skipped: dict[int, Skipped] = {}
        keep_lines(root / DONE, self._take)
        self._first = self.next

    def _take(self, line: dict[str, Any]) -> bool:
        """Whether a line of an earlier run follows on the ones before it, with its file there."""
        if line["first"] != self.next or not (line["file"] is None or (self._root / line["file"]).is_file()):
            return False
        self.next = int(line["end"])
        self.skipped |= {int(record): Skipped(*words) for record, *words in line["skipped"]}
        if line["file"] is not None:
            self._files.append((line["file"], int(line["rows"])))
        return True

    @property
    def rows(self) -> int:
        """Rows on disk."""
        return sum(rows for _, rows in self._files)

    def add(self, end: int, table: pa.Table | None, unread: dict[int, Skipped]) -> None:
        """What was made of the records up to ``end``; written when there is enough of it, or a minute later."""
        if table is not None:
            self._waiting.append(table)
        self._unread |= unread
        self.next = end
        large = sum(len(table) for table in self._waiting) >= _ROWS or self._bytes() >= _BYTES
        if large or time.monotonic() - self._since > _SECONDS:
            self.flush()

    def _bytes(self) -> int:
        return sum(table.nbytes for table in self._waiting)

    def flush(self) -> None:
        """Bring what waits to the disk."""
        if self.next == self._first:
            return
        name = None
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            (self._root / PARTS).mkdir(exist_ok=True)
            name = f"{PARTS}/{self._first:09d}.parquet"
            write_atomically(self._root / name, lambda temporary: parquet.write_table(table, temporary))
            self._files.append((name, len(table)))
        rows = 0 if name is None else len(table)
        listed = [[record, s.path, s.reason, s.kind] for record, s in self._unread.items()]
        line = {"first": self._first, "end": self.next, "file": name, "rows": rows, "skipped": listed}
        append_json_lines(self._root / DONE, [line])
        self.skipped |= self._unread
        self._waiting, self._unread = [], {}
        self._first, self._since = self.next, time.monotonic()

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """What is on disk, a part at a time."""
        for name, _ in self._files:
            yield parquet.read_table(self._root / name, columns=columns)

    def chosen(self, rows: np.ndarray, columns: list[str]) -> pa.Table:
        """The rows at these places, ascending."""
        found, first = [], 0
        for name, count in self._files:
            own = rows[(rows >= first) & (rows < first + count)] - first
            if len(own):
                found.append(parquet.read_table(self._root / name, columns=columns).take(pa.array(own)))
            first += count
        return pa.concat_tables(found)

    def join(self, format: str) -> Path:
        """All rows in one file, the same whatever the parts were; returns it."""
        path = self._root / FILES[format]
        fill: Callable[[Path], None] = self._fill_npz if format == "npz" else self._fill_parquet
        write_atomically(path, fill)
        return path

    def _fill_parquet(self, path: Path) -> None:
        schema = parquet.read_schema(self._root / self._files[0][0])
        with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in self._groups():
                writer.write_table(table)

    def _groups(self) -> Iterator[pa.Table]:
        """The rows in groups whose size depends on what they are alone."""
        kept: pa.Table | None = None
        fields = list(parquet.read_schema(self._root / self._files[0][0]))[len(TEXTS) :]
        width = sum(field.type.list_size * field.type.value_type.bit_width // 8 for field in fields)
        size = max(1, min(_ROWS, _BYTES // width))
        for table in self.tables():
            kept = table if kept is None else pa.concat_tables([kept, table])
            while len(kept) >= size:
                yield kept[:size]
                kept = kept[size:]
        if kept is not None and len(kept):
            yield kept

    def _fill_npz(self, path: Path) -> None:
        """Arrays as NumPy's own ``savez`` writes them, a part at a time."""
        schema = parquet.read_schema(self._root / self._files[0][0])
        facts = json.loads(schema.metadata[FACTS])
        with zipfile.ZipFile(path, "w") as archive:

            def member(name: str) -> Any:
                # Named like this it carries no date, so that equal files have equal bytes
                return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)

            for field in list(schema)[len(TEXTS) :]:
                shape = (field.type.list_size,) if field.name == "embedding" else tuple(facts["dense"])
                kind = np.dtype(field.type.value_type.to_pandas_dtype()).newbyteorder("<")
                with member(field.name) as file:
                    about = {"descr": kind.str, "fortran_order": False, "shape": (self.rows, *shape)}
                    np.lib.format.write_array_header_2_0(file, about)
                    for table in self.tables([field.name]):
                        file.write(vectors(table[field.name]).astype(kind).tobytes())
            for name in TEXTS:
                texts = [text or "" for table in self.tables([name]) for text in table[name].to_pylist()]
                with member(name) as file:
                    np.lib.format.write_array(file, np.array(texts, np.str_), allow_pickle=False)
            with member(FACTS.decode()) as file:
                np.lib.format.write_array(file, np.array(json.dumps(facts)), allow_pickle=False)


def remove_parts(root: Path) -> None:
    """Take the parts away, those of an earlier division too, once what they hold is elsewhere."""
    for path in (root / PARTS).glob("[0-9]*.parquet"):
        path.unlink()
    with contextlib.suppress(OSError):  # not there, or it holds what is none of ours
        (root / PARTS).rmdir()
