"""Sources made of files: folder, glob, single file, manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frepa.errors import InputError
from frepa.images.anonymity import pseudonym
from frepa.images.columns import CHUNK, Columns
from frepa.images.finding import ANNOTATED, Found, Plain, find_files, manifest_files
from frepa.images.label_folders import warning as label_warning
from frepa.images.readers.dicom.folders import grouped
from frepa.images.readers.pixels import MAX_PIXELS
from frepa.images.readers.registry import READERS, Reader, readable_suffixes, reader_at, reader_for
from frepa.images.scan import Header, Scan, Skipped, UnreadableScan, replace_scan
from frepa.images.source import Source
from frepa.images.units import declared, scale_value
from frepa.images.volumes import check_volume
from frepa.names import shown


class Origin(NamedTuple):
    """Where a record of files comes from.

    Attributes:
        reader: name of its reader.
        path: the file, or the folder of a series.
        member: what holds it within the file; None where that is the file itself.
        parts: the files of a series in the order of its slices; None of other records.
        row: number of the record within its file, member or series.
        of: how many records that has.
    """

    reader: str
    path: Path
    member: str | None
    parts: list[Path] | None
    row: int
    of: int


class FileSource(Source):
    """Records held in files. One row per file, member or series; ``_starts`` turns record numbers into rows.

    Args:
        root: folder the names are relative to.
        location: what the user named.
        found: the files.
        dims, max_pixels, canonical, voi: as in `frepa.datasets.opening.open_source`.
    """

    def __init__(
        self,
        root: Path,
        location: str,
        found: Iterable[Found | Plain],
        *,
        dims: int,
        max_pixels: int,
        canonical: bool = True,
        voi: bool = False,
    ) -> None:
        super().__init__()
        self.dims, self.location, self.folder = dims, location, root
        self._root, self._max_pixels, self._canonical, self._voi = root, max_pixels, canonical, voi
        self._kept: tuple[int, tuple[str, ...] | None] = -1, None  # the row whose files were asked for last
        self._numbered = False  # some row means one record of its file, by number
        columns = Columns()
        for entry in found:
            if isinstance(entry, Plain):
                columns.add_plain(entry, READERS.index(entry.reader))
            else:
                self._take(entry, columns)
        count = len(columns)
        self._names = columns.names()
        self._members, self._parts = columns.sparse()
        self._warn_of_slices()
        self._readers = np.array(columns.readers, np.uint8)
        self._sizes, self._rows = (np.array(column, np.int64) for column in (columns.sizes, columns.rows))
        self._starts = np.zeros(count + 1, np.int64)
        np.cumsum(columns.counts.column(count), out=self._starts[1:])
        self._firsts = np.array(columns.firsts.column(count)) if self._numbered else None
        self._groups: np.ndarray | None = None
        self._group_names = 0  # codes from here on are records of unknown groups
        self._values: list[dict[str, Any]] = []
        if len(columns.modalities) > 1:
            self.modalities, self.modality_codes = self._per_record(
                list(columns.modalities), columns.modality_codes.column(count)
            )
        if len(columns.groups) > 1:
            names, codes = self._per_record(list(columns.groups), columns.group_codes.column(count))
            self.group_codes = _alone_where_unknown(np.array(names, object), codes.astype(np.int64))
            self._group_names = len(names)

    def _per_record(self, names: list[str], codes: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        """Sorted names that occur, and each record's place among them, from one code per row."""
        values = np.asarray(names, dtype=object)
        present, codes = np.unique(values[codes].astype(str), return_inverse=True)
        return tuple(str(name) for name in present), np.repeat(codes, np.diff(self._starts)).astype(np.int32)

    def _take(self, entry: Found, columns: Columns) -> None:
        """Check one file cheaply and add its row, or list it as skipped."""
        name = entry.name if entry.member is None else f"{entry.name}#{entry.member}"
        name += "" if entry.record is None else f"[{entry.record}]"
        reason, trouble = entry.reason, entry.trouble
        if not reason and entry.size <= 0:
            reason, trouble = "empty file (0 bytes)" if entry.size == 0 else "file not found", "empty"
        reader = None if reason else self._reader(entry.parts[0] if entry.parts else entry.name)
        if not reason and reader is None:
            reason = f"no reader for this ending; known: {', '.join(readable_suffixes(self.dims))}"
        elif reader is not None and self.dims not in reader.dims:
            kind = "an image, not a volume" if self.dims == 3 else "a volume, not an image"
            reason, trouble = f"{kind}; read it with dims {5 - self.dims}", "other dims"
        elif reader is not None and reader.many and entry.count is None:
            try:
                entry = self._from_header(entry, reader)
            except UnreadableScan as error:
                reason, trouble = error.reason, error.kind
            else:
                reason, trouble = "" if entry.count else "holds no record", "empty"
        if reason or reader is None:
            self.skipped.append(Skipped(name, reason, trouble))
            return
        self.notes.extend(Skipped(name, note, note.kind) for note in entry.notes)
        columns.add(entry, READERS.index(reader))

    def _reader(self, name: str) -> Reader | None:
        # Nearly always the ending decides, and joining a million paths takes seconds
        return reader_for(name) or reader_at(self._root / name)

    def _from_header(self, entry: Found, reader: Reader) -> Found:
        path = self._root / entry.name
        header = reader.header(path, entry.member, dims=self.dims, max_pixels=self._max_pixels)
        if self.dims == 3:
            check_volume(path, header.size)
        if entry.record is not None:
            self._numbered = True
            if entry.record >= header.count:
                raise UnreadableScan(
                    str(path), f"has no record {entry.record}; it holds {header.count}, counted from 0"
                )
        return entry.changed(
            member=header.member or entry.member,
            count=header.count if entry.record is None else 1,
            modality=header.modality or "",
            group=header.group or "",
            notes=header.notes,
        )

    def _warn_of_slices(self) -> None:
        """Add a warning where volumes are incomplete: what is lost may be the part that matters."""
        found = [entry for entry in self.notes if entry.kind in ("slices missing", "slices unreadable")]
        if found:
            which = "; ".join(f"{shown(entry.path)}: {shown(entry.reason)}" for entry in found[:3])
            volumes = "volume is" if len(found) == 1 else "volumes are"
            more = "; ..." if len(found) > 3 else "."
            self.warnings.append(f"{len(found):,} {volumes} incomplete. {which}{more}")

    def attach(self, table: dict[str, pa.DictionaryArray]) -> None:
        """Give the records the manifest's columns, each one value per row.

        ``label``, ``group``, ``modality``, ``unit``, ``slope``, ``intercept`` of the values, and what `annotations`
        has: ``label``, ``group``, ``split``, ``fold``, ``mask`` and ``mask_<target>``, ``case``.
        """

        def per_record(column: str) -> tuple[np.ndarray, np.ndarray]:
            values = np.asarray(table[column].dictionary.to_pylist(), dtype=object)
            order = np.argsort(values.astype(str), kind="stable")
            place = np.empty(len(values), np.int64)
            place[order] = np.arange(len(values))
            codes = place[table[column].indices.to_numpy(zero_copy_only=False)]
            return values[order], np.repeat(codes[self._rows], np.diff(self._starts))

        if "label" in table:
            values, codes = per_record("label")
            self.labels = values[codes]
        if "modality" in table:
            values, codes = per_record("modality")
            present, codes = np.unique(codes, return_inverse=True)
            self.modalities = tuple(values[present])
            self.modality_codes = codes.astype(np.int32)
        if "group" in table:
            self._take_groups(*per_record("group"))
        known = {name: column for name, column in table.items() if name in ANNOTATED or name.startswith("mask_")}
        if known:
            rows = pa.array(np.repeat(self._rows, np.diff(self._starts)))
            columns = {name: _nulls_for_empty(column).take(rows) for name, column in known.items()}
            self.annotations = pa.table(columns)
        scale = {name: per_record(name) for name in ("unit", "slope", "intercept") if name in table}
        if scale:
            distinct, codes = np.unique(np.stack([codes for _, codes in scale.values()]), axis=1, return_inverse=True)
            self._values = [
                {name: scale_value(name, scale[name][0][code]) for name, code in zip(scale, row)} for row in distinct.T
            ]
            self._value_codes = codes.reshape(-1)

    def group_by(self, names: Sequence[str | None]) -> None:
        """Say of every record which patient or study it is of, None where that is unknown."""
        values, codes = np.unique(np.array([name or "" for name in names], dtype=str), return_inverse=True)
        self._take_groups(values.astype(object), codes.astype(np.int64))

    def _take_groups(self, names: np.ndarray, codes: np.ndarray) -> None:
        self._groups = names
        self.group_codes = _alone_where_unknown(names, codes)
        self._group_names = len(names)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _row(self, index: int) -> tuple[int, int]:
        """Row of the table, and number of the record within it."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a source with {len(self)}")
        if len(self._starts) == len(self) + 1:  # every row has a record at least, so here it has one
            return int(index), 0
        row = int(np.searchsorted(self._starts, index, side="right")) - 1
        return row, index - int(self._starts[row])

    def _place(self, row: int) -> tuple[Path, str | None]:
        name = os.fsdecode(self._names[row].as_py())
        return self._root / name, None if self._members is None else _text(self._members[row])

    def _files(self, row: int) -> tuple[str, ...] | None:
        """The files of a series, or None where the row is no series."""
        if self._parts is None:
            return None
        kept = self._kept
        if kept[0] != row:  # slice after slice asks for the same series
            parts = self._parts[row]
            files = tuple(str(self._root / os.fsdecode(name)) for name in parts.as_py()) if parts.is_valid else None
            kept = self._kept = row, files
        return kept[1]

    def _parts_of(self, row: int) -> list[Path] | None:
        files = self._files(row)
        return None if files is None else [Path(file) for file in files]

    def origin(self, index: int) -> Origin:
        """The file a record is in, and where in it."""
        row, within = self._row(index)
        of = int(self._starts[row + 1] - self._starts[row])
        return Origin(
            READERS[self._readers[row]].name, *self._place(row), self._parts_of(row), self._first(row) + within, of
        )

    def warn_of_labels(self) -> None:
        """Add a warning where files lie in folders that hold labels by their names."""
        sentence = label_warning(map(os.fsdecode, chain.from_iterable(_chunks(self._names))))
        if sentence:
            self.warnings.append(sentence)

    def name(self, index: int) -> str:
        row, within = self._row(index)
        if self.dims == 2 and self._parts is not None and self._parts[row].is_valid:
            return os.fsdecode(self._parts[row][within].as_py())
        name, number = self._file(row), self._first(row) + within
        return f"{name}[{number}]" if number or self._starts[row + 1] - self._starts[row] > 1 else name

    def is_stack(self, index: int) -> bool:
        """Whether the record is one of several that were named as one: by a file, or by a row of a manifest."""
        row, _ = self._row(index)
        return bool(self._starts[row + 1] - self._starts[row] > 1)

    def _first(self, row: int) -> int:
        return 0 if self._firsts is None else int(self._firsts[row])

    def file(self, index: int) -> str:
        return self._file(self._row(index)[0])

    def _file(self, row: int) -> str:
        name = os.fsdecode(self._names[row].as_py())
        member = None if self._members is None else _text(self._members[row])
        return name if member is None else f"{name}#{member}"

    def listing(self) -> Iterable[tuple[str, int]]:
        for start in range(0, len(self._names), CHUNK):
            part = slice(start, start + CHUNK)
            names = [os.fsdecode(name) for name in self._names[part].to_pylist()]
            if self._members is not None:
                members = [_text(member) for member in self._members[part]]
                names = [name if member is None else f"{name}#{member}" for name, member in zip(names, members)]
            yield from zip(names, self._sizes[part].tolist())

    @property
    def groups(self) -> int | None:
        if self.group_codes is None:
            return None
        return len(np.unique(self.group_codes[self.group_codes < self._group_names]))

    def header(self, index: int) -> Header:
        row, _ = self._row(index)
        options: dict[str, Any] = {"dims": self.dims, "max_pixels": self._max_pixels, "canonical": self._canonical}
        files = self._files(row)
        if files is not None:
            from frepa.images.readers.dicom.reader import series_header

            return series_header(files, **options)
        return READERS[self._readers[row]].header(*self._place(row), **options)

    def read(self, index: int) -> Scan:
        row, within = self._row(index)
        name = self.name(index)
        try:
            scan = self._read(row, within)
        except UnreadableScan as error:
            raise error.under(name) from None
        modality = None if self.modality_codes is None else self.modalities[self.modality_codes[index]]
        values = self._values[self._value_codes[index]] if self._values else {}
        scan = declared(scan, modality=modality, **values)
        changes: dict[str, object] = {"id": pseudonym(name)}
        if self._groups is not None and self.group_codes is not None and self.group_codes[index] < len(self._groups):
            changes["group"] = pseudonym(self._groups[self.group_codes[index]])
        return replace_scan(scan, **changes)

    def _read(self, row: int, within: int) -> Scan:
        options: dict[str, Any] = {"dims": self.dims, "max_pixels": self._max_pixels, "canonical": self._canonical}
        files = self._files(row)
        if files is not None:
            from frepa.images.readers.dicom.reader import read_series

            return read_series(files, within, voi=self._voi, **options)
        number = self._first(row) + within
        return READERS[self._readers[row]].read(*self._place(row), number, voi=self._voi, **options)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"frepa files {self.dims}D {len(self)}\n".encode())
        if not self._canonical or self._voi:
            digest.update(f"canonical {self._canonical} voi {self._voi} spacing None\n".encode())
        for start in range(0, len(self._names), CHUNK):
            part = slice(start, start + CHUNK)
            digest.update(b"\0".join(self._names[part].to_pylist()))
            if self._members is not None:
                digest.update(b"\0".join(member or b"" for member in self._members[part].to_pylist()))
            if self._parts is not None:
                digest.update(b"\0".join(b"\1".join(files or ()) for files in self._parts[part].to_pylist()))
            digest.update(self._sizes[part].astype("<i8").tobytes())
            if self._firsts is not None:
                digest.update(self._firsts[part].astype("<i8").tobytes())
        if self.labels is not None:
            for start in range(0, len(self), CHUNK):
                digest.update("\0".join(self.labels[start : start + CHUNK]).encode())
        return digest.hexdigest()


def _nulls_for_empty(column: pa.DictionaryArray) -> pa.DictionaryArray:
    empty = pc.index(column.dictionary, "").as_py()
    indices = pc.if_else(pc.equal(column.indices, pa.scalar(empty, pa.int32())), None, column.indices)
    return pa.DictionaryArray.from_arrays(indices, column.dictionary)


def _text(cell: pa.Scalar) -> str | None:
    name = cell.as_py()
    return None if name is None else os.fsdecode(name)


def _chunks(names: pa.Array) -> Iterator[list[bytes]]:
    for start in range(0, len(names), CHUNK):
        yield names[start : start + CHUNK].to_pylist()


def _alone_where_unknown(names: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Group codes in which records of an unnamed group are a group of their own each: nothing is known of them."""
    alone = np.flatnonzero(names[codes] == "")
    codes[alone] = len(names) + np.arange(len(alone))
    return codes


def open_files(
    text: str,
    *,
    dims: int,
    max_pixels: int | None,
    canonical: bool = True,
    voi: bool = False,
) -> FileSource:
    """A source from a folder, glob pattern, single file or manifest. See `frepa.datasets.opening.open_source`."""
    limit = MAX_PIXELS[dims] if max_pixels is None else max_pixels
    options: dict[str, Any] = {"dims": dims, "max_pixels": limit, "canonical": canonical, "voi": voi}
    if text.lower().endswith((".csv", ".parquet")):
        root, found, table, others = manifest_files(text, dims)
        source = FileSource(root, text, found, **options)
        if others:
            rows = "1 row is" if others == 1 else f"{others:,} rows are"
            source.aside = f"{rows} left out, whose column dim says {5 - dims}D; --dims {5 - dims} reads such rows."
        if len(source):
            source.attach(table)
    else:
        root, found = find_files(text, dims)
        source = FileSource(root, text, grouped(found, root, dims, limit), **options)
        source.warn_of_labels()
    if len(source) == 0:
        raise nothing_readable(source)
    return source


def nothing_readable(source: FileSource) -> InputError:
    """Why a source has no record, in words."""
    endings = ", ".join(readable_suffixes(source.dims))
    if not source.skipped:
        other = " Volumes are read with dims 3, images with dims 2." if source.dims in (2, 3) else ""
        where = shown(source.location)
        return InputError(
            f"No {source.dims}D image found in {where}. Files with these endings are read: {endings}.{other}"
        )
    first = "; ".join(f"{shown(entry.path)}: {shown(entry.reason)}" for entry in source.skipped[:3])
    return InputError(
        f"None of the {len(source.skipped)} files found in {shown(source.location)} can be read as {source.dims}D "
        f"images. The first: {first}"
    )
