"""``dataset-id:folder`` as a source of images, read by the same readers as plain files."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frepa.datasets.catalogue.resolve import parse_source, read_dataset
from frepa.errors import InputError
from frepa.images.anonymity import pseudonym
from frepa.images.places import split_place
from frepa.images.readers.pixels import MAX_PIXELS
from frepa.images.readers.registry import READERS, readable_suffixes, reader_at
from frepa.images.scan import Header, Scan, Skipped, UnreadableScan, replace_scan
from frepa.images.source import Source
from frepa.images.units import declared


class CatalogueSource(Source):
    """Records of a catalogue dataset of one dimensionality.

    Attributes:
        annotations: the rows of `frepa.datasets.catalogue.resolve.resolve` for these records, in the same order.
    """

    annotations: pa.Table

    def __init__(
        self,
        table: pa.Table,
        location: str,
        root: Path,
        *,
        dims: int,
        max_pixels: int,
        canonical: bool = True,
        voi: bool = False,
    ) -> None:
        super().__init__()
        self._options: dict[str, Any] = {"dims": dims, "max_pixels": max_pixels, "canonical": canonical}
        self._voi = voi
        self.dims, self.location = dims, location
        above = os.path.abspath(root)
        self._root = os.path.join(above if root.is_dir() else os.path.dirname(above), "")
        self.folder = Path(self._root)
        table = table.filter(pc.equal(table["dims"], dims))
        places = [split_place(path) for path in table["path"].to_pylist()]
        readers = [reader_at(Path(file)) for file, _, _ in places]
        good = np.array([reader is not None and dims in reader.dims for reader in readers], bool)
        for i in np.flatnonzero(~good):
            reason = f"no reader for this ending; known: {', '.join(readable_suffixes(dims))}"
            self.skipped.append(Skipped(self._short(places[i][0]), reason, "unreadable"))
        kept = np.flatnonzero(good)
        self.annotations = table.take(kept)
        self._files = pa.array([places[i][0] for i in kept], pa.large_string())
        self._members = pa.array([places[i][1] for i in kept], pa.large_string())
        self._rows = np.array([places[i][2] for i in kept], np.int32)
        self._readers = np.array([READERS.index(readers[i]) for i in kept], np.uint8)  # type: ignore[arg-type]
        self.modalities, self.modality_codes = _coded(self.annotations["modality"])
        groups = self.annotations["group"]
        self._groups: tuple[str, ...] = ()
        if groups.null_count == 0 and len(groups):
            self._groups, codes = _coded(groups)
            self.group_codes = codes.astype(np.int64)
        self.labels = _labels(self.annotations)
        self._scale = self.annotations.select(["unit", "slope", "intercept"]).combine_chunks()

    def __len__(self) -> int:
        return len(self._rows)

    def _short(self, file: str) -> str:
        return file[len(self._root) :] if file.startswith(self._root) else file

    def name(self, index: int) -> str:
        member = self._members[index].as_py()
        name = self._short(self._files[index].as_py())
        if member is None:
            return name
        return self.annotations["path"][index].as_py().replace(self._files[index].as_py(), name, 1)

    @property
    def groups(self) -> int | None:
        return len(self._groups) if self._groups else None

    def header(self, index: int) -> Header:
        reader = READERS[self._readers[index]]
        path, member = Path(self._files[index].as_py()), self._members[index].as_py()
        return reader.header(path, member, **self._options)

    def read(self, index: int) -> Scan:
        reader = READERS[self._readers[index]]
        path, member = Path(self._files[index].as_py()), self._members[index].as_py()
        name = self.name(index)
        try:
            row = int(self._rows[index])
            scan = reader.read(path, member, row, voi=self._voi, **self._options)
        except UnreadableScan as error:
            raise error.under(name) from None
        values = {column: self._scale[column][index].as_py() for column in ("unit", "slope", "intercept")}
        modality = self.modalities[self.modality_codes[index]] if self.modality_codes is not None else None
        scan = declared(scan, modality=modality, **values)
        changes: dict[str, object] = {"id": pseudonym(name)}
        if self.group_codes is not None:
            changes["group"] = pseudonym(self._groups[self.group_codes[index]])
        return replace_scan(scan, **changes)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"frepa catalogue {self.dims}D {len(self)}\n".encode())
        if self._voi or not self._options["canonical"]:
            digest.update(f"canonical {self._options['canonical']} voi {self._voi}\n".encode())
        sizes: dict[str, int] = {}
        for i in range(len(self)):
            file = self._files[i].as_py()
            if file not in sizes:
                sizes[file] = os.path.getsize(file)
            digest.update(f"{self.name(i)}\0{sizes[file]}\0".encode("utf-8", "surrogateescape"))
        if self.labels is not None:
            digest.update("\0".join(self.labels).encode())
        return digest.hexdigest()


def open_catalogue(
    text: str, *, dims: int, max_pixels: int | None = None, canonical: bool = True, voi: bool = False
) -> CatalogueSource:
    """A source from ``dataset-id:folder`` or ``dataset-id?option=value:folder``.

    Raises:
        InputError: unknown dataset or option, no such folder, nothing in it that is of ``dims`` dimensions.
    """
    parsed = parse_source(text)
    if parsed is None:
        raise InputError(f"{text!r} is no source of the catalogue; it is written dataset-id:folder.")
    entry, options, folder = parsed
    table = read_dataset(entry, folder, options).table()
    limit = MAX_PIXELS[dims] if max_pixels is None else max_pixels
    source = CatalogueSource(table, text, folder, dims=dims, max_pixels=limit, canonical=canonical, voi=voi)
    if not len(source) and source.skipped:
        first = source.skipped[0]
        raise InputError(f"None of the images of {entry.id} in {folder} can be read. {first.path}: {first.reason}")
    if not len(source):
        other = "volumes" if dims == 2 else "images"
        raise InputError(f"{entry.id} holds {5 - dims}D {other}, not {dims}D. Use dims {5 - dims}.")
    return source


def _coded(column: pa.ChunkedArray) -> tuple[tuple[str, ...], np.ndarray]:
    names, codes = np.unique(np.asarray(column.to_pylist(), dtype=object).astype(str), return_inverse=True)
    return tuple(str(name) for name in names), codes.astype(np.int32)


def _labels(table: pa.Table) -> np.ndarray | None:
    """Class names; several are joined by a bar, none is an empty text. None where the dataset has no labels."""
    one, many = table["label"].to_pylist(), table["labels"].to_pylist()
    if all(label is None for label in one) and all(label is None for label in many):
        return None
    return np.array([label if label is not None else "|".join(names or []) for label, names in zip(one, many)], object)
