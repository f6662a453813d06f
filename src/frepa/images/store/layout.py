"""Where things are in a store, what one row of its index holds, and whether a folder is a store at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frepa.errors import InputError
from frepa.files import clean_temporaries
from frepa.images.scan import ARBITRARY, HU

FORMAT, VERSION = "frepa-store", 1
#: Array types a record may have; the index holds the place in this list.
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "uint64", "int64", "float64")
UNITS = (ARBITRARY, HU)
#: Bits of a row's ``has``: which optional values it holds.
HAS_GROUP, HAS_SPACING, HAS_AFFINE, HAS_PADDING, IS_QUANTIZED = 1, 2, 4, 8, 16


_INDEX_NAMES = {
    f"{name}.bin" for name in ("records", "modality", "by_modality", "group", "label", "name_ends", "names", "masks")
} | {"annotations.arrow"}


def row_type(dims: int, *, affine: bool) -> np.dtype:
    """One record of ``index/records.bin``: all there is to know of it side by side, so that one page holds it.

    ``sha256`` are the first 16 bytes of the digest and ``crc32`` the checksum of the record's bytes in its shard;
    ``group`` is the anonymous group, or the record's own id where there is none, so that equal means same group;
    ``slope`` and ``intercept`` turn a quantized record back: ``slope * stored + intercept``.
    """
    fields: list[Any] = [
        ("offset", "<i8"),
        ("length", "<i8"),
        ("shard", "<i4"),
        ("chunks", "<i4"),
        ("crc32", "<u4"),
        ("modality", "<i4"),
        ("sha256", "u1", 16),
        ("id", "<u8"),
        ("group", "<u8"),
        ("size", "<i4", dims),
        ("channels", "u1"),
        ("dtype", "u1"),
        ("unit", "u1"),
        ("has", "u1"),
        ("low", "<f8"),
        ("high", "<f8"),
        ("padding", "<f8"),
        ("slope", "<f4"),
        ("intercept", "<f4"),
        ("spacing", "<f8", dims),
    ]
    return np.dtype([*fields, ("affine", "<f8", (3, 4))] if affine else fields)


def mask_type() -> np.dtype:
    """A place in ``index/masks.bin``, which has one per record and column of masks: where a mask is in its shard.

    ``length`` is 0 where there is none. A mask has one channel and the extent of its image.
    """
    fields = [("offset", "<i8"), ("length", "<i8"), ("chunks", "<i4"), ("crc32", "<u4"), ("sha256", "u1", 16)]
    return np.dtype([*fields, ("dtype", "<u4")])


class StoreFolder:
    """Paths inside a store."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self.facts = self.root / "store.json"
        self.parquet = self.root / "index.parquet"
        self.index = self.root / "index"
        self.records = self.index / "records.bin"
        self.modality = self.index / "modality.bin"
        self.by_modality = self.index / "by_modality.bin"
        self.group = self.index / "group.bin"
        self.label = self.index / "label.bin"
        self.name_ends = self.index / "name_ends.bin"
        self.names = self.index / "names.bin"
        self.masks = self.index / "masks.bin"
        self.annotations = self.index / "annotations.arrow"
        self.shards = self.root / "shards"
        self.skipped = self.root / "skipped.csv"
        self.damaged = self.root / "damaged.csv"
        self.unfinished = self.root / "unfinished"
        self.plan = self.unfinished / "plan.json"
        self.lock = self.unfinished / "lock"
        #: File names of what was skipped; beside the store, since names may tell who was scanned.
        whole = self.root if self.root.name not in ("", "..") else Path(os.path.abspath(self.root))
        self.skipped_names = whole.parent / f"{whole.name}.skipped.csv"

    def shard(self, number: int) -> Path:
        return self.shards / f"{number:05}.b2"

    def part(self, number: int) -> Path:
        """A shard that is still being written."""
        return self.unfinished / f"{number:05}.part"

    def journal(self, number: int) -> Path:
        return self.unfinished / f"{number:05}.jsonl"

    def exists(self) -> bool:
        """Whether this is a store, finished or not, or the remains of one."""
        # These, unlike Path's, take a folder that may not be read for an empty one
        is_dir, is_file = os.path.isdir, os.path.isfile
        if is_file(self.plan) or (is_dir(self.shards) and is_dir(self.index)):
            return True
        return is_file(self.facts) and (is_dir(self.shards) or FORMAT.encode() in _head(self.facts))

    def is_finished(self) -> bool:
        return self.facts.is_file()

    def written(self) -> Iterator[Path]:
        """Every file in the folder that a store's own names are given to, and no other."""
        building = (self.unfinished / "store" / name for name in ("index.parquet", "index"))
        for parent, names in (
            (self.root, {self.facts.name, self.parquet.name, self.skipped.name, self.damaged.name}),
            (self.index, _INDEX_NAMES),
            (self.shards, re.compile(r"\d{5,}\.b2")),
            (self.unfinished, re.compile(r"\d{5,}\.(part|jsonl)|plan\.json|lock")),
            (next(building).parent, {self.parquet.name}),
            (next(building), _INDEX_NAMES),
        ):
            if parent.is_dir() and not parent.is_symlink():
                for path in sorted(parent.iterdir()):
                    known = path.name in names if isinstance(names, set) else names.fullmatch(path.name)
                    if known and (path.is_symlink() or path.is_file()):
                        yield path

    def remove(self, *, below: Path | None = None) -> list[str]:
        """Remove what a store consists of (``below`` one of its folders); returns the names of what stays."""
        top = below or self.root
        for path in list(self.written()):
            if path.is_relative_to(top):
                path.unlink()
        for folder in (self.unfinished / "store" / "index", self.unfinished / "store", self.unfinished, self.index):
            self._drop(folder, top)
        self._drop(self.shards, top)
        return sorted(path.name for path in top.iterdir()) if top.is_dir() else []

    @staticmethod
    def _drop(folder: Path, top: Path) -> None:
        if folder.is_relative_to(top) and folder.is_dir() and not folder.is_symlink():
            clean_temporaries(folder)
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def read_facts(folder: StoreFolder) -> dict[str, Any]:
    """``store.json`` of a finished store.

    Raises:
        InputError: unfinished, damaged, of another format or from a newer version.
    """
    remedy = "Pack it again with frepa prepare and --overwrite."
    if not folder.facts.is_file():
        if folder.plan.is_file():
            raise InputError(
                f"The store {folder.root} is not finished: give the frepa prepare command that began it once more, and "
                "it continues where it stopped."
            )
        if not folder.exists():
            raise InputError(f"{folder.root} is no store. Name a folder that frepa prepare has made.")
        raise InputError(f"The store {folder.root} has lost its store.json and cannot be read. {remedy}")
    try:
        facts = json.loads(folder.facts.read_text("utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("not an object")
    except (ValueError, UnicodeDecodeError, RecursionError):
        raise InputError(f"{folder.facts} is damaged: it holds no names and values in JSON. {remedy}") from None
    except OSError as error:
        raise InputError(f"{folder.facts} cannot be read ({error.strerror}).") from None
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{folder.facts} says format {facts.get('format')!r}, expected {FORMAT!r}: this folder was not made by "
            "frepa prepare. Name the folder of a store, or of images."
        )
    if facts.get("version") != VERSION:
        raise InputError(
            f"The store {folder.root} has format version {facts.get('version')!r}, and this frepa reads version "
            f"{VERSION}. Update frepa, or pack the store again with frepa prepare."
        )
    missing = {
        "labels",
        "options",
        "dims",
        "records",
        "fingerprint",
        "affine",
        "modalities",
        "channels",
        "files",
    } - facts.keys()
    if missing:
        raise InputError(f"{folder.facts} is damaged: it lacks {', '.join(sorted(missing))}. {remedy}")
    wrong = [name for name, fits in _FITS.items() if name in facts and not fits(facts[name])]
    if wrong:
        raise InputError(f"{folder.facts} is damaged: no store can have these values: {', '.join(wrong)}. {remedy}")
    return facts


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


#: What `read_facts` holds the entries of ``store.json`` to, before anything is mapped by them.
_FITS: dict[str, Callable[[Any], bool]] = {
    "dims": lambda value: value in (2, 3) and _is_count(value),
    "records": _is_count,
    "affine": lambda value: isinstance(value, bool),
    "channels": lambda value: value in (1, 3) and _is_count(value),
    "fingerprint": lambda value: isinstance(value, str),
    "modalities": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    "labels": lambda value: value is None or (isinstance(value, list) and all(isinstance(v, int | str) for v in value)),
    "options": lambda value: isinstance(value, dict),
    "files": lambda value: (
        isinstance(value, dict)
        and all(isinstance(known, dict) and _is_count(known.get("bytes")) for known in value.values())
    ),
}


def dump(facts: Mapping[str, Any]) -> str:
    """JSON for people: indented, one trailing newline."""
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError:
        return b""
