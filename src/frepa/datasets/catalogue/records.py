"""The columnar table of records that an adapter builds: one row per image, volume or slice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from frepa.datasets.annotations import SCHEMA as ANNOTATIONS

Box = dict[str, Any]

# Column -> type: where the image is, what is known of it, and what its values mean. Masks of further targets follow as
# ``mask_<target>``.
SCHEMA: dict[str, pa.DataType] = {
    "path": pa.string(),
    "modality": pa.string(),
    "dims": pa.int8(),
    **ANNOTATIONS,
    "unit": pa.string(),
    "slope": pa.float64(),
    "intercept": pa.float64(),
}


class Records:
    """Columns under construction, with what went wrong on the way.

    Attributes:
        columns: column name -> one value per record; every column has the same length.
        fields: named parts of each record's path (``{patient}`` ...), to join on and to select by.
        relative: path of each record's file inside the folder, for joins and messages.
        problems: plain sentences: what was expected and not found, what was dropped.
        notes: plain sentences that are no fault of the copy.
        set_aside: DICOM modality -> files of series that are no images, for steps that can use them.
        facts: about the table as a whole, handed on in its metadata: ``classes`` (ordered names), ``target`` (what
            ``mask`` holds), ``box_unit``.
        used: files read or pointed to, so that a check can name the others.
    """

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA}
        self.fields: list[dict[str, str | None]] = []
        self.relative: list[str] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.set_aside: dict[str, list[str]] = {}
        self.facts: dict[str, Any] = {}
        self.used: set[str] = set()

    def __len__(self) -> int:
        return len(self.relative)

    def add(self, relative: str, fields: Mapping[str, str | None], values: Mapping[str, Any]) -> None:
        """Append one record; columns that ``values`` does not name stay empty."""
        for name, column in self.columns.items():
            column.append(values.get(name))
        self.relative.append(relative)
        self.fields.append(dict(fields))
        self.used.add(relative)

    def column(self, name: str) -> list[Any]:
        """The column ``name``, made empty first where it does not exist yet."""
        if name not in self.columns:
            self.columns[name] = [None] * len(self)
        return self.columns[name]

    def keep(self, wanted: Callable[[int], bool]) -> None:
        """Drop every record whose number ``wanted`` refuses."""
        kept = [i for i in range(len(self)) if wanted(i)]
        if len(kept) == len(self):
            return
        self.columns = {name: [column[i] for i in kept] for name, column in self.columns.items()}
        self.fields = [self.fields[i] for i in kept]
        self.relative = [self.relative[i] for i in kept]

    def rows_where(self, only: Mapping[str, Sequence[str]] | None) -> list[int]:
        """Numbers of the records whose columns or named parts have one of the values in ``only``; None means all."""
        return [
            i
            for i in range(len(self))
            if all(str(self.value(name, i)) in values for name, values in (only or {}).items())
        ]

    def value(self, name: str, i: int) -> Any:
        """Column ``name`` of record ``i``, or where that is empty the named part of its path."""
        own = self.columns[name][i] if name in self.columns else None
        return self.fields[i].get(name) if own is None else own

    def add_class(self, name: str) -> None:
        """Put a class name at the end of the ordered list, once."""
        classes = self.facts.setdefault("classes", [])
        if name not in classes:
            classes.append(name)

    def to_table(self, facts: Mapping[str, Any]) -> pa.Table:
        """The columns as an Arrow table; ``facts`` and the records' own go into the schema's metadata as JSON."""
        names = [*SCHEMA, *(name for name in self.columns if name not in SCHEMA)]
        schema = pa.schema([(name, SCHEMA.get(name, pa.string())) for name in names])
        merged = {**facts, **self.facts, "problems": self.problems, "notes": self.notes}
        metadata = {key: json.dumps(value) for key, value in merged.items()}
        return pa.table({name: self.columns[name] for name in names}, schema=schema.with_metadata(metadata))


@lru_cache(maxsize=65536)
def anonymous(dataset: str, *values: str) -> str:
    """A stable short name for a patient or study, from which the release's own identifier cannot be read."""
    return hashlib.blake2b("\0".join((dataset, *values)).encode(), digest_size=8).hexdigest()


def sample(names: Sequence[str], count: int = 3) -> str:
    """The first few names, for a message: ``a, b, c and 12 more``."""
    shown = ", ".join(names[:count])
    return shown + (f" and {len(names) - count:,} more" if len(names) > count else "")
