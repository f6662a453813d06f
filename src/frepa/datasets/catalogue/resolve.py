"""From a dataset's name and folder to its table of records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from frepa.datasets.annotations import SPHERES
from frepa.datasets.catalogue.entry import Entry, dataset_ids, load_entry
from frepa.datasets.catalogue.patterns import FileIndex
from frepa.datasets.catalogue.records import Records
from frepa.datasets.catalogue.steps import Context, check_step, steps
from frepa.errors import InputError, nearest

# What any dataset may be narrowed to, beside the options of its entry.
GENERAL_OPTIONS = ("split",)

_SOURCE = re.compile(r"(?P<id>[A-Za-z0-9][A-Za-z0-9_-]+)(?:\?(?P<options>[^:]*))?:(?P<folder>.+)", re.DOTALL)


@dataclass(frozen=True)
class Resolved:
    """A dataset read from a folder: the records, and the files they were found among."""

    entry: Entry
    index: FileIndex
    records: Records

    def table(self) -> pa.Table:
        """One row per image, volume or slice; see `resolve`."""
        entry, names = self.entry, self.entry.labels.get("names")
        spheres = self.records.facts.get("box_unit") == SPHERES
        facts = {
            "dataset": entry.id,
            "modality": entry.modality,
            "window": entry.window,
            "binary": bool(entry.labels.get("binary")),
            "rules": entry.labels.get("rules", {}),
            "origins": {
                "label": "the dataset's own labels",
                "boxes": f"the dataset's own {'findings, as centre and diameter' if spheres else 'boxes'}",
            },
        }
        if isinstance(names, Mapping) and all(str(value).isdigit() for value in names):
            facts["values"] = {str(value): str(name) for value, name in names.items()}
        return self.records.to_table(facts)


def read_dataset(entry: Entry, folder: str | Path, options: Mapping[str, str] | None = None) -> Resolved:
    """Find the dataset's images in ``folder`` and join what belongs to them.

    Args:
        entry: the dataset.
        folder: where it was unpacked, the dataset's own top folder or the one above; a single file of it also does.
        options: ``{"split": "train"}``, and selections the entry offers, such as ``{"target": "vein"}``.

    Raises:
        InputError: no such folder, no image of this dataset in it, an option the entry does not have.
    """
    options = {name: str(value) for name, value in (options or {}).items()}
    for name in options:
        if name not in entry.options and name not in GENERAL_OPTIONS:
            known = [*entry.options, *GENERAL_OPTIONS]
            raise InputError(f"{entry.id} has no option {name!r}. {nearest(name, known)}")
    if not entry.read:
        raise InputError(
            f"The layout of {entry.id} is not known, so its files cannot be sorted. Give the folder itself as SOURCE."
        )
    for step in entry.read:
        for name, parameters in step.items():
            check_step(name, parameters, entry.id)
    index = FileIndex(Path(folder).expanduser())
    records = Records()
    context = Context(index, records, entry.id, entry.modality, entry.dims, options)
    known_steps = steps()
    for step in entry.read:
        for name, parameters in step.items():
            if not records and step is not entry.read[0]:
                raise _nothing_found(entry, folder)
            known_steps[name](context, **parameters)
    if not records:
        raise _nothing_found(entry, folder)
    for name, value in options.items():
        _select(entry, records, name, value)
    return Resolved(entry, index, records)


def resolve(dataset: str, folder: str | Path, **options: str) -> pa.Table:
    """The table of a dataset's records.

    Args:
        dataset: identifier in the catalogue.
        folder: where it was unpacked.
        **options: selections the entry offers (`frepa datasets show ID` lists them).

    Returns:
        One row per image, volume or slice. Columns: ``path`` (absolute; ``file#member`` or ``file#member[row]`` where a
        file holds several), ``modality``, ``dims``, ``split`` (train, val, test), ``fold``, ``label`` (one class),
        ``labels`` (several), ``group`` (anonymous name of patient or study), ``mask`` and ``mask_<target>`` (paths),
        ``boxes`` (label and coordinates; the metadata's ``box_unit`` says which), ``unit``, ``slope``, ``intercept``
        (value = slope * stored + intercept). Unknown values are null. The schema's metadata holds, as JSON:
        ``dataset``, ``classes`` in order, ``target`` of ``mask``, ``targets``, ``window``, ``problems``.

    Raises:
        InputError: unknown dataset or option, no such folder, no image of the dataset in it.
    """
    return read_dataset(load_entry(dataset), folder, options).table()


def parse_source(text: str) -> tuple[Entry, dict[str, str], Path] | None:
    """Dataset, options and folder of ``dataset-id:folder`` or ``dataset-id?option=value&...:folder``; None for any
    other source.

    A path that exists is a path, whatever colons it has; a single letter before the colon is a Windows drive; an
    address (``s3://...``) is none of ours.

    Raises:
        InputError: it is written like one of the catalogue's sources, the folder exists, and the dataset does not.
    """
    found = _SOURCE.fullmatch(text)
    if found is None or found["folder"].startswith("//") or Path(text).exists():
        return None
    name, folder = found["id"].lower(), Path(found["folder"]).expanduser()
    name = next((known for known in dataset_ids() if _plain(known) == _plain(name)), name)
    if name not in dataset_ids():
        if not folder.exists():
            return None
        raise InputError(f"There is no dataset {name!r} in the catalogue. {nearest(name, dataset_ids())}")
    options = {}
    for part in filter(None, (found["options"] or "").split("&")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{text}: after '?' come options like size=64, found {part!r}.")
        options[key] = value
    return load_entry(name), options, folder


def _select(entry: Entry, records: Records, name: str, value: str) -> None:
    """Keep the records whose column or named part ``name`` is ``value``, letters and digits alone compared."""
    if name == "target":
        targets = records.facts.get("targets", [])
        if value not in targets:
            raise InputError(f"{entry.id} has no target {value!r}. {nearest(value, targets)}")
        return
    present: list[Any] = [records.value(name, i) for i in range(len(records))]
    wanted = _plain(value)
    if wanted not in {_plain(one) for one in present if one is not None}:
        have = sorted({str(one) for one in present if one is not None})
        raise InputError(f"{entry.id}: no image with {name} {value!r} in this folder. {nearest(value, have)}")
    records.keep(lambda i: present[i] is not None and _plain(present[i]) == wanted)


def _plain(value: object) -> str:
    return re.sub(r"[^a-z0-9]", "", str(value).casefold())


def _nothing_found(entry: Entry, folder: str | Path) -> InputError:
    example = next(iter(entry.layout), None)
    expected = f" A file of it looks like {example}." if example else ""
    return InputError(
        f"No image of {entry.id} was found in {folder}.{expected} `frepa datasets show {entry.id}` draws the layout; "
        f"give the folder in which it starts."
    )
