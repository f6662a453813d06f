"""One dataset's entry: its schema, and loading with errors in plain words.

An entry is a YAML file in ``data/`` named after its ``id``. Facts carry a ``status`` where they may be doubted:
``verified`` (read from a source) or ``recalled`` (from memory, shown as not verified and never held against anybody's
copy).
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from frepa.errors import InputError, nearest

ROLES = ("pretraining", "downstream", "both", "extra")
ACCESS = ("open", "registration", "credentialed", "in-house", "unknown")
TASKS = ("classification", "segmentation", "detection")
STATUS = ("verified", "recalled", "unknown")
CONFIDENCE = ("high", "medium", "low", "not-applicable")
MODALITIES = (
    "CT",
    "MRI",
    "X-ray",
    "ultrasound",
    "OCT",
    "OCT angiography",
    "fundus",
    "dermoscopy",
    "EM",
    "microscopy",
)
COUNTED = ("images", "masks", "groups", "boxes", "labelled")

_DATA = Path(__file__).parent / "data"
# The C loader is ten times faster and is part of every PyYAML wheel; the other one serves builds without it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Count:
    """How many of something a complete copy holds, among the records whose columns or named parts equal ``where``.

    An ``optional`` part may be absent as a whole: people download one task of ten.
    """

    of: str
    n: int
    status: str = "verified"
    where: dict[str, str] = field(default_factory=dict)
    note: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Download:
    """One file that ``fetch`` can get.

    Attributes:
        url: its address.
        checksum: ``md5:...`` or ``sha256:...`` in hexadecimal.
        select: options of the entry that this file belongs to, ``{size: "64"}``.
        unpacks_to: folder that an archive leaves; empty for a plain file.
        default: fetched without being selected.
    """

    url: str
    checksum: str
    select: dict[str, str] = field(default_factory=dict)
    unpacks_to: str = ""
    default: bool = True


@dataclass(frozen=True)
class Entry:
    """What is known of one dataset.

    Attributes:
        id: name used on the command line, lower case with hyphens.
        name: full name.
        summary: one sentence: what is in it.
        modality: one of ``MODALITIES``; what the images are, also where the paper files them elsewhere.
        dims: 2 or 3, of one record.
        role: in the paper; ``extra`` for sets that are not in it.
        tasks: what it is labelled for.
        access: how one gets it.
        licence: ``{name, status}``.
        layout: example path -> what it is; drawn as a tree.
        read: steps, ``[{step name: options}]``; empty where the layout is not known.
        recognise: patterns that a folder in this layout has at its top, by which it is known without its name.
        confidence: how sure the layout is.
        paper: ``{tables, images, modality, notes}`` as printed there; ``modality`` only where it differs.
        paper_tasks: ``[{id, type, dims, printed, ...}]`` the paper's tasks on it, with the means it prints.
        options: name -> ``{about, values}``: what ``ID?name=value:FOLDER`` may select.
        labels: ``{kind, names, notes}``; names by value are those of mask values. ``binary``: masks are foreground and
            background whatever their values; ``rules``: target -> how its values become classes
            (`frepa.datasets.reading.RULES`).
        window: the CT window that fits, or None.
        split: the official split, in words.
        counts: what a complete copy holds.
        facts, pitfalls, sources: short sentences.
        overlaps: ``[{with, why, status}]`` other datasets that hold the same images.
        downloads: files that ``fetch`` gets.
        ignore: patterns of files that belong to a release and are not read, so that a check does not call them
            unexpected.
    """

    id: str
    name: str
    summary: str
    modality: str
    dims: int
    role: str
    access: str
    licence: dict[str, str]
    confidence: str
    tasks: list[str] = field(default_factory=list)
    homepage: str | None = None
    mirrors: list[str] = field(default_factory=list)
    access_note: str = ""
    formats: list[str] = field(default_factory=list)
    paper: dict[str, Any] = field(default_factory=dict)
    paper_tasks: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, str] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    read: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    recognise: list[str] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    window: str | None = None
    split: str = ""
    counts: list[Count] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    pitfalls: list[str] = field(default_factory=list)
    overlaps: list[dict[str, str]] = field(default_factory=list)
    downloads: list[Download] = field(default_factory=list)
    ignore: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    @property
    def images(self) -> int | None:
        """Images the paper counts, or those a complete copy is known to hold; None when neither is known."""
        whole = [
            count.n for count in self.counts if count.of == "images" and not count.where and count.status == "verified"
        ]
        return self.paper.get("images") or (whole[0] if whole else None)


def dataset_ids() -> list[str]:
    """Identifiers of every dataset of the catalogue, sorted."""
    return sorted(path.stem for path in _DATA.glob("*.yaml"))


def load_entries() -> list[Entry]:
    """Every entry, by identifier."""
    return [load_entry(name) for name in dataset_ids()]


@cache
def load_entry(dataset: str) -> Entry:
    """The entry of a dataset.

    Raises:
        InputError: there is no such dataset (the nearest names are suggested), or its file breaks the schema.
    """
    name = dataset.strip().lower()
    path = _DATA / f"{name}.yaml"
    if name not in dataset_ids():
        raise InputError(
            f"There is no dataset {dataset!r} in the catalogue. {nearest(name, dataset_ids())} "
            f"`frepa datasets list` shows all."
        )
    return read_entry(path)


def read_entry(path: Path) -> Entry:
    """An entry from its YAML file; the file's name must be the entry's ``id``.

    Raises:
        InputError: names the file, the key, what was found and what is expected.
    """
    try:
        written = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(written, dict):
        raise InputError(f"{path} must hold keys and values (id, name, ...), found {type(written).__name__}.")
    entry = _build(Entry, written, path.name)
    if entry.id != path.stem:
        raise InputError(f"{path.name}: the id is {entry.id!r}; it must be the file's name, {path.stem!r}.")
    _check(entry, path.name)
    return entry


def _build(kind: Any, written: dict[str, Any], where: str) -> Any:
    """A dataclass from a mapping, its keys and the types of its values checked."""
    known = {one.name: one for one in fields(kind)}
    for key in written:
        if key not in known:
            raise InputError(f"{where}: there is no key {key!r}. {nearest(str(key), known)}")
    for name, one in known.items():
        if name not in written and one.default is MISSING and one.default_factory is MISSING:
            raise InputError(f"{where}: the key {name!r} is missing.")
    values = dict(written)
    for name, (nested, many) in {"counts": (Count, "counts"), "downloads": (Download, "downloads")}.items():
        if kind is Entry and isinstance(values.get(name), list):
            values[name] = [_build(nested, item, f"{where}, {many}[{i}]") for i, item in enumerate(values[name])]
    for name, value in values.items():
        _check_type(str(known[name].type), value, f"{where}: {name}")
    return kind(**values)


_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "dict": (dict,), "list": (list,)}


def _check_type(expected: str, value: Any, where: str) -> None:
    base, optional = expected.removesuffix(" | None"), expected.endswith(" | None")
    if value is None and optional:
        return
    types = _TYPES[base.split("[")[0]]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise InputError(f"{where} must be {types[0].__name__}, found {value!r}.")
    if base in ("list[str]", "dict[str, str]"):
        items: Any = value.values() if isinstance(value, dict) else value
        for item in items:
            if not isinstance(item, str):
                raise InputError(f"{where} must hold text only, found {item!r}.")


def _check(entry: Entry, where: str) -> None:
    _one_of(entry.role, ROLES, f"{where}: role")
    _one_of(entry.access, ACCESS, f"{where}: access")
    _one_of(entry.modality, MODALITIES, f"{where}: modality")
    _one_of(entry.confidence, CONFIDENCE, f"{where}: confidence")
    _one_of(entry.dims, (2, 3), f"{where}: dims")
    _one_of(entry.licence.get("status"), STATUS, f"{where}: licence.status")
    for task in entry.tasks:
        _one_of(task, TASKS, f"{where}: tasks")
    for count in entry.counts:
        _one_of(count.of, COUNTED, f"{where}: counts.of")
        _one_of(count.status, STATUS, f"{where}: counts.status")
    for overlap in entry.overlaps:
        _one_of(overlap.get("status"), STATUS, f"{where}: overlaps.status")
    for download in entry.downloads:
        _one_of(download.checksum.partition(":")[0], ("md5", "sha256"), f"{where}: downloads.checksum")
    for step in entry.read:
        if not isinstance(step, dict) or len(step) != 1:
            raise InputError(f"{where}: every item of read is one step, `- name: {{options}}`, found {step!r}.")


def _one_of(value: Any, allowed: tuple[Any, ...], where: str) -> None:
    if value not in allowed:
        raise InputError(f"{where} is {value!r}; it must be one of {', '.join(map(str, allowed))}.")
