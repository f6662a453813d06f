"""A local copy of a dataset against what the catalogue knows of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from frepa.datasets.catalogue.entry import Count, Entry
from frepa.datasets.catalogue.patterns import pattern
from frepa.datasets.catalogue.records import Box
from frepa.datasets.catalogue.resolve import Resolved, read_dataset
from frepa.images.hidden_names import Names

_IMAGE_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".dcm"),
    *(".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".npz", ".npy", ".h5", ".hdf", ".hdf5", ".mat", ".avi", ".mp4"),
)
_SHOWN = 5


@dataclass(frozen=True)
class Line:
    """One part counted. ``expected`` is None where the catalogue knows no number or only a recalled one."""

    part: str
    found: int
    expected: int | None = None
    recalled: int | None = None

    @property
    def differs(self) -> bool:
        """The number found is not the number a complete copy holds."""
        return self.expected is not None and self.found != self.expected


@dataclass(frozen=True)
class Verification:
    """What was found of a dataset in a folder.

    Attributes:
        dataset, folder: what was looked at.
        lines: parts, found and expected.
        missing: sentences: labels, masks or rows that should be there.
        unexpected: image files that no part of the layout accounts for, relative to the folder.
        folders: all folders below, relative to it.
    """

    dataset: str
    folder: str
    lines: list[Line]
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folders: frozenset[str] = frozenset()

    @property
    def complete(self) -> bool:
        """Every verified number is met and nothing is missing; unexpected files do not count against a copy."""
        return not self.missing and not any(line.differs for line in self.lines)

    def under(self, names: Names) -> Verification:
        """The same with what stands for names of files and folders."""
        names.learn_folders(self.folders)
        return replace(
            self,
            folder=names.place(self.folder),
            missing=names.tree(self.missing),
            unexpected=[names.name(path) for path in self.unexpected],
            notes=names.tree(self.notes),
            folders=frozenset(map(names.name, self.folders)),
        )

    def __str__(self) -> str:
        width = max([len(line.part) for line in self.lines] + [5])
        out = [f"{self.dataset} in {self.folder}", "", f"{'part':<{width}}  {'found':>9}  expected"]
        for line in self.lines:
            expected = "" if line.expected is None else f"{line.expected:,}"
            if line.recalled is not None:
                expected = f"about {line.recalled:,} (not verified)"
            if line.differs:
                expected += "   differs"
            out.append(f"{line.part:<{width}}  {line.found:>9,}  {expected}".rstrip())
        if self.missing:
            out += ["", "Missing or left out:", *(f"  - {text}" for text in self.missing)]
        if self.unexpected:
            out += ["", f"Not part of the known layout ({len(self.unexpected):,} image files):"]
            out += [f"  - {name}" for name in _by_folder(self.unexpected)]
        out += [f"Note: {text}" for text in self.notes]
        complete = "This copy is complete, as far as the catalogue knows."
        return "\n".join([*out, "", complete if self.complete else "This copy differs from a complete one."])


def verify(entry: Entry, folder: str | Path) -> Verification:
    """Count what ``folder`` holds of a dataset. Only numbers that were verified are held against it.

    Raises:
        InputError: no such folder, or no image of the dataset in it.
    """
    resolved = read_dataset(entry, folder)
    records = resolved.records
    counted = [(count, _line(count, resolved)) for count in entry.counts]
    lines = [line for count, line in counted if line.found or not count.optional]
    if not any(count.of == "images" and not count.where for count in entry.counts):
        lines.insert(0, Line("images", len(records)))
    told = {tuple(sorted(count.where)) for count in entry.counts}
    for column in ("split", "label"):
        found = Counter(value for value in records.columns[column] if value is not None)
        if (column,) not in told and len(found) > 1 and len(found) <= 30:
            order = records.facts.get("classes", []) if column == "label" else ["train", "val", "test"]
            names = [name for name in order if name in found] + sorted(set(found) - set(order))
            lines += [Line(f"images, {column} {name}", found[name]) for name in names]
    for name, values in records.columns.items():
        if name.startswith("mask") and any(values) and not (name == "mask" and _counted(entry, "masks")):
            target = records.facts.get("target", "") if name == "mask" else name.removeprefix("mask_")
            lines.append(Line(f"masks, {target}" if target else "masks", sum(value is not None for value in values)))
    groups = {value for value in records.columns["group"] if value is not None}
    if groups and not _counted(entry, "groups"):
        lines.append(Line("groups (patients or studies)", len(groups)))
    return Verification(
        entry.id,
        str(folder),
        lines,
        list(records.problems),
        _unexpected(resolved),
        list(records.notes),
        frozenset(str(parent) for path in resolved.index.paths for parent in PurePosixPath(path).parents) - {"."},
    )


def _counted(entry: Entry, of: str) -> bool:
    return any(count.of == of for count in entry.counts)


def _boxes(boxes: list[Box]) -> int:
    """Among named findings those without a name are left out of the score, and of the counts that releases state."""
    return sum(box["label"] is not None for box in boxes) or len(boxes)


_NUMBER: dict[str, Callable[[dict[str, list], list[int]], int]] = {
    "images": lambda columns, rows: len(rows),
    "masks": lambda columns, rows: sum(columns["mask"][i] is not None for i in rows),
    "labelled": lambda columns, rows: sum(
        columns["label"][i] is not None or columns["labels"][i] is not None for i in rows
    ),
    "boxes": lambda columns, rows: _boxes([box for i in rows for box in columns["boxes"][i] or []]),
    "groups": lambda columns, rows: len({columns["group"][i] for i in rows} - {None}),
}


def _line(count: Count, resolved: Resolved) -> Line:
    rows = resolved.records.rows_where({name: [wanted] for name, wanted in count.where.items()})
    words = " ".join(f"{name} {wanted}" for name, wanted in count.where.items())
    part = count.of + (f", {words}" if words else "") + (f" ({count.note})" if count.note else "")
    known = count.n if count.status == "verified" else None
    return Line(part, _NUMBER[count.of](resolved.records.columns, rows), known, None if known is not None else count.n)


def _unexpected(resolved: Resolved) -> list[str]:
    """Image files that no step used, unless the entry's layout says what they are."""
    explained = [pattern(text) for text in resolved.entry.ignore]
    return [
        path
        for path in resolved.index.paths
        if path not in resolved.records.used
        and path.lower().endswith(_IMAGE_ENDINGS)
        and not any(one.match(path) is not None for one in explained)
    ]


def _by_folder(paths: list[str]) -> list[str]:
    """Counts per folder, largest first; a folder with one file is named by the file."""
    folders = Counter(path.rpartition("/")[0] for path in paths)
    lines = []
    for folder, count in folders.most_common(_SHOWN):
        first = next(path for path in paths if path.rpartition("/")[0] == folder)
        where = f"{folder}/: " if folder else ""
        lines.append(first if count == 1 else f"{where}{count:,} files, such as {first.rpartition('/')[2]}")
    if len(folders) > _SHOWN:
        lines.append(f"and {len(folders) - _SHOWN:,} more folders")
    return lines
