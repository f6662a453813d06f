"""From the journals of the shards to the index: rows and columns to map, a parquet table, what was skipped."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from frepa.errors import InputError
from frepa.files import clean_temporaries, file_digest, sync_to_disk, write_csv, write_text
from frepa.images.anonymity import key_check
from frepa.images.hidden_names import Names
from frepa.images.sampling import sorted_by_code
from frepa.images.source import Source
from frepa.images.store.labels import Labels, fill_masks, pieces
from frepa.images.store.layout import FORMAT, VERSION, StoreFolder, dump, mask_type, row_type
from frepa.images.store.records import anonymous_id, fill_row
from frepa.images.store.shards import Shard, journal_lines
from frepa.names import shown

_ROWS = 65536  # rows built, and written to parquet, at a time
# Journal line of a record, place of its label, its name where names are kept
_Kept = tuple[dict[str, Any], int | None, str | None]


def write_index(
    folder: StoreFolder,
    source: Source,
    shards: list[Shard],
    options: dict[str, Any],
    *,
    keep_names: bool,
    names: Names | None = None,
    labels: Labels | None = None,
) -> dict[str, Any]:
    """Build everything but the shards of a store whose shards are complete; returns what ``store.json`` says.

    Memory does not grow with the number of records, apart from a few bytes for each one's modality and label.

    Raises:
        InputError: no record could be used.
        OSError: the disk is full.
    """
    building = StoreFolder(folder.unfinished / "store")
    folder.remove(below=building.root)
    building.index.mkdir(parents=True, exist_ok=True)
    survey = _survey(folder, source, shards, labels)
    if survey.records == 0:
        raise _nothing_usable(folder, source, survey, names)
    _write_rows(folder, building, source, shards, survey, keep_names)
    if survey.modalities:
        codes = np.fromfile(building.modality, "<i4")
        order, counts = sorted_by_code(codes, len(survey.modalities))
        order.astype("<i4" if order.itemsize == 4 else "<i8").tofile(building.by_modality)
    else:
        building.modality.unlink()
        counts = np.zeros(0, np.int64)
    if not survey.groups:
        building.group.unlink()
    if survey.labels is None:
        building.label.unlink()
    if not survey.masks:
        building.masks.unlink()
    if labels is not None:
        _write_annotations(building, survey, labels)
    _write_skipped(folder, source, survey, keep_names, names)

    folder.remove(below=folder.index)
    folder.index.mkdir(exist_ok=True)
    for path in [path for path in building.written() if path.parent == building.index]:
        sync_to_disk(path)
        os.replace(path, folder.index / path.name)
    os.replace(building.parquet, folder.parquet)
    files = {
        path.relative_to(folder.root).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in [*(p for p in folder.written() if p.parent == folder.index), folder.parquet]
    }
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "dims": source.dims,
        "records": survey.records,
        "skipped": len(survey.skipped) + len(source.skipped),
        "channels": source.channels,
        "affine": survey.affine,
        "modalities": {name: int(count) for name, count in zip(survey.modalities, counts)},
        "labels": survey.labels,
        "masks": list(survey.masks),
        "shards": len(shards),
        "shard_bytes": survey.bytes,
        "source": source.fingerprint,
        "key": key_check(),
        "options": options,
        "files": files,
    }
    identity = {name: facts[name] for name in ("dims", "channels", "modalities", "labels")}
    identity |= {"masks": facts["masks"]} if survey.masks else {}
    identity["content"] = {name: file["sha256"] for name, file in files.items() if not name.endswith(".parquet")}
    facts["fingerprint"] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    write_text(folder.facts, dump(facts))
    return facts


class _Survey:
    """What has to be known of all records before the first row can be written."""

    def __init__(self) -> None:
        self.records = self.bytes = 0
        self.affine = self.groups = False
        self.modalities: tuple[str, ...] = ()
        self.labels: list[Any] | None = None
        self.kept = array("q")  # records of the source, where it has annotations
        self.masks: tuple[str, ...] = ()  # columns of masks of which there is one at least
        self.skipped: dict[int, str] = {}
        self.broken: dict[tuple[int, str], str] = {}  # masks that cannot be used


def _survey(folder: StoreFolder, source: Source, shards: list[Shard], annotated: Labels | None) -> _Survey:
    survey, modalities, labels, masks = _Survey(), Counter[str | None](), set(), set()
    for line, _ in _lines(folder, shards):
        if "skipped" in line:
            survey.skipped[line["record"]] = line["skipped"]
            continue
        survey.records += 1
        survey.bytes += line["length"]
        survey.affine |= "affine" in line
        survey.groups |= "group" in line
        modalities[line.get("modality")] += 1
        if source.labels is not None:
            labels.add(_plain(source.labels[line["record"]]))
        if annotated is not None:
            survey.kept.append(line["record"])
        for column, facts in line.get("masks", {}).items():
            if "broken" in facts:
                survey.broken[line["record"], column] = facts["broken"]
            else:
                masks.add(column)
                survey.bytes += facts["length"]
    survey.masks = tuple(column for column in annotated.masks if column in masks) if annotated is not None else ()
    if set(modalities) - {None}:
        survey.modalities = tuple(sorted(name or "" for name in modalities))
    if source.labels is not None:
        survey.labels = sorted(labels, key=lambda label: (isinstance(label, str), label))
    return survey


def _lines(folder: StoreFolder, shards: list[Shard]) -> Iterator[tuple[dict[str, Any], Shard]]:
    for shard in shards:
        for line in journal_lines(folder.journal(shard.number)):
            yield line, shard


def _write_rows(
    folder: StoreFolder,
    building: StoreFolder,
    source: Source,
    shards: list[Shard],
    survey: _Survey,
    keep_names: bool,
) -> None:
    kind = row_type(source.dims, affine=survey.affine)
    modality_place = {name: place for place, name in enumerate(survey.modalities)}
    label_place = {label: place for place, label in enumerate(survey.labels or [])}
    tables = _Tables(building, kind, survey, keep_names)
    rows = np.zeros(_ROWS, kind)
    masks = np.zeros((_ROWS, len(survey.masks)), mask_type())
    kept: list[_Kept] = []
    offset, current = 0, -1
    with tables:
        for line, shard in _lines(folder, shards):
            if "skipped" in line:
                continue
            if shard.number != current:
                offset, current = 0, shard.number
            modality = modality_place.get(line.get("modality") or "", -1)
            row = rows[len(kept)]
            fill_row(row, line, shard=current, offset=offset, modality=modality)
            fill_masks(masks[len(kept)], line, survey.masks, offset)
            offset += sum(length for length, _ in pieces(line))
            label = None if source.labels is None else label_place[_plain(source.labels[line["record"]])]
            kept.append((line, label, source.name(line["record"]) if keep_names else None))
            if len(kept) == _ROWS:
                tables.add(rows, masks, kept)
                rows, masks, kept = np.zeros(_ROWS, kind), np.zeros_like(masks), []
        if kept:
            tables.add(rows[: len(kept)], masks[: len(kept)], kept)


class _Tables:
    """The files of the index, filled a batch of rows at a time."""

    def __init__(self, building: StoreFolder, kind: np.dtype, survey: _Survey, keep_names: bool) -> None:
        self._folder, self._survey, self._keep_names = building, survey, keep_names
        self._schema = _schema(survey, keep_names)
        self._name_end = 0

    def __enter__(self) -> _Tables:
        folder = self._folder
        paths = [folder.records, folder.modality, folder.group, folder.label, folder.masks]
        paths += [folder.names, folder.name_ends] if self._keep_names else []
        self._files: dict[Path, BinaryIO] = {path: open(path, "wb") for path in paths}  # noqa: SIM115
        self._parquet = parquet.ParquetWriter(os.path.abspath(folder.parquet), self._schema, compression="zstd")
        return self

    def __exit__(self, *_: object) -> None:
        self._parquet.close()
        for file in self._files.values():
            file.close()

    def add(self, rows: np.ndarray, masks: np.ndarray, kept: list[_Kept]) -> None:
        folder, files = self._folder, self._files
        files[folder.records].write(rows.tobytes())
        files[folder.modality].write(rows["modality"].astype("<i4").tobytes())
        files[folder.group].write(rows["group"].tobytes())
        files[folder.masks].write(masks.tobytes())
        if self._survey.labels is not None:
            files[folder.label].write(np.array([label for _, label, _ in kept], "<i4").tobytes())
        if self._keep_names:
            encoded = [(name or "").encode("utf-8", "surrogateescape") for _, _, name in kept]
            files[folder.names].write(b"".join(encoded))
            ends = self._name_end + np.cumsum([len(name) for name in encoded])
            self._name_end = int(ends[-1])
            files[folder.name_ends].write(ends.astype("<i8").tobytes())
        self._parquet.write_table(self._table(rows, kept))

    def _table(self, rows: np.ndarray, kept: list[_Kept]) -> pa.Table:
        columns: dict[str, Any] = {name: rows[name] for name in ("shard", "offset")}
        for name in self._schema.names:
            if name == "label":
                columns[name] = [self._survey.labels[place] for _, place, _ in kept]  # type: ignore[index]
            elif name == "name":
                columns[name] = [text.encode("utf-8", "replace").decode() for _, _, text in kept]  # type: ignore[union-attr]
            elif name == "affine":
                columns[name] = [np.ravel(line["affine"]) if "affine" in line else None for line, _, _ in kept]
            elif name not in columns:
                columns[name] = [line.get(name) for line, _, _ in kept]
        return pa.table([pa.array(columns[field.name], field.type) for field in self._schema], schema=self._schema)


def _schema(survey: _Survey, keep_names: bool) -> pa.Schema:
    """Columns for people and other tools, in the words of the journal lines."""
    fields = [("id", pa.string())]
    fields += [("name", pa.string())] if keep_names else []
    fields += [("shard", pa.int32()), ("offset", pa.int64()), ("length", pa.int64()), ("chunks", pa.int32())]
    fields += [("sha256", pa.string()), ("crc32", pa.uint32())]
    fields += [("channels", pa.uint8()), ("size", pa.list_(pa.int32())), ("dtype", pa.string()), ("unit", pa.string())]
    fields += [("spacing", pa.list_(pa.float64()))]
    fields += [("affine", pa.list_(pa.float64()))] if survey.affine else []
    fields += [("modality", pa.string()), ("group", pa.string())]
    if survey.labels is not None:
        whole = all(isinstance(label, int) for label in survey.labels)
        fields += [("label", pa.int64() if whole else pa.string())]
    fields += [("low", pa.float64()), ("high", pa.float64()), ("padding", pa.float64())]
    fields += [("slope", pa.float32()), ("intercept", pa.float32())]
    return pa.schema(fields)


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def _write_annotations(building: StoreFolder, survey: _Survey, labels: Labels) -> None:
    """The annotations of the records that are kept, and which of them have masks; mapped, not read, when in use."""
    table = labels.table.take(pa.array(np.array(survey.kept, np.int64)))
    masks = np.fromfile(building.masks, mask_type()).reshape(len(survey.kept), -1) if survey.masks else None
    for place, column in enumerate(survey.masks):
        assert masks is not None
        there = masks[:, place]["length"] > 0
        table = table.append_column(column, pa.array([column if has else None for has in there.tolist()], pa.string()))
    with pa.OSFile(os.path.abspath(building.annotations), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _write_skipped(
    folder: StoreFolder, source: Source, survey: _Survey, keep_names: bool, hidden: Names | None = None
) -> None:
    """Two lists: one in the store that names nobody, one beside it with the names of the files to mend."""
    known = [(entry.path, entry.reason) for entry in source.skipped]
    known += [(source.name(record), reason) for record, reason in survey.skipped.items()]
    known += [(source.name(record), f"its {column}: {reason}") for (record, column), reason in survey.broken.items()]
    names = sorted(set(known))
    inside = sorted((anonymous_id(name), without_name(reason, name)) for name, reason in names)
    if keep_names:
        _write_csv(folder.skipped, ("path", "reason"), names)
    else:
        _write_csv(folder.skipped, ("id", "reason"), inside)
    if names:
        given = hidden or Names()
        beside = sorted((given.name(name), given.said(reason)) for name, reason in names)
        _write_csv(folder.skipped_names, ("path", "reason"), beside)
    else:
        folder.skipped_names.unlink(missing_ok=True)


def without_name(reason: str, name: str) -> str:
    """A reason that does not repeat the file's name or any folder of its path."""
    file = name.partition("#")[0]
    parts = {name, file, *file.split("/"), file.rpartition("/")[2].partition(".")[0]}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) > 2:
            reason = reason.replace(part, "(file)")
    return reason


def _write_csv(path: Path, header: tuple[str, str], rows: list[tuple[str, str]]) -> None:
    clean_temporaries(path.parent, names=[path.name])
    write_csv(path, header, (dict(zip(header, row)) for row in rows), end="\n")


def _nothing_usable(folder: StoreFolder, source: Source, survey: _Survey, names: Names | None) -> InputError:
    _write_skipped(folder, source, survey, keep_names=False, hidden=names)
    first = next(iter(survey.skipped.items()))
    return InputError(
        f"None of the {len(source)} records of {shown(source.location)} can be used; {folder.skipped_names} says why. "
        f"The first: {shown(source.name(first[0]))}: {shown(first[1])}"
    )
