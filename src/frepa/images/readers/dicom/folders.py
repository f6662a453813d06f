"""DICOM files to records: which files are one series, whatever they are called and wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from frepa.images.finding import Found
from frepa.images.readers.dicom.header import (
    DicomHeader,
    NotAnImage,
    Plane,
    is_dicom,
    read_header,
)
from frepa.images.readers.dicom.stacks import Stack, stacks
from frepa.images.readers.pixels import check_size
from frepa.images.readers.registry import reader_at
from frepa.images.scan import UnreadableScan

#: Modalities whose single-frame files are slices of volumes.
VOLUMETRIC = {"CT", "MR", "PT", "NM", "OPT", "OCT"}
_THREADS = 8  # waiting for storage, not computing
_SINGLE = "a single slice, no volume; read it with dims 2"


def grouped(files: Iterable[Found], root: Path, dims: int, max_pixels: int) -> Iterator[Found]:
    """Replace the DICOM files among ``files`` by records: one entry per series, film or single image.

    Files are grouped by series instance UID within their folder, by the folder alone where the UID was removed, and
    then by geometry (`frepa.images.readers.dicom.stacks.stacks`). A series of which every folder holds one slice is
    put together across folders. What is no image, a localiser, larger than ``max_pixels`` or left over becomes an
    entry with a ``reason``.
    """
    for entry in _grouped(files, root, dims):
        yield entry if entry.reason else _within(entry, root, max_pixels)


def _within(entry: Found, root: Path, max_pixels: int) -> Found:
    if not entry.size_claimed:
        return entry
    try:
        check_size(root / entry.name, entry.size_claimed, max_pixels)
    except UnreadableScan as error:
        return entry.changed(reason=error.reason)
    return entry


def _grouped(files: Iterable[Found], root: Path, dims: int) -> Iterator[Found]:
    waiting: dict[str, list[Found]] = {}
    loose: dict[str, list[tuple[Found, DicomHeader]]] = {}
    for entry in files:
        if not _is_dicom_entry(entry, root):
            yield entry
            continue
        folder = os.path.dirname(entry.name)
        for done in [name for name in waiting if not _inside(folder, name)]:
            yield from _folder(done, waiting.pop(done), root, dims, loose)
        waiting.setdefault(folder, []).append(entry)
    for folder in list(waiting):
        yield from _folder(folder, waiting.pop(folder), root, dims, loose)
    for slices in loose.values():
        yield from _loose(slices, dims)


def _is_dicom_entry(entry: Found, root: Path) -> bool:
    if entry.size <= 0 or entry.member is not None:
        return False
    reader = reader_at(root / entry.name)
    return reader is not None and reader.name == "dicom" and not (root / entry.name).is_dir()


def _inside(folder: str, other: str) -> bool:
    return folder == other or other == "" or folder.startswith(other + "/")


def _folder(
    folder: str, entries: list[Found], root: Path, dims: int, loose: dict[str, list[tuple[Found, DicomHeader]]]
) -> Iterator[Found]:
    with ThreadPoolExecutor(_THREADS) as pool:
        heads = list(pool.map(lambda item: _header(root / item[1].name, item[0]), enumerate(entries)))
    series: dict[str, list[tuple[Found, DicomHeader]]] = {}
    for entry, head in zip(entries, heads):
        if isinstance(head, NotAnImage):
            series.setdefault(head.series, [])
        if isinstance(head, UnreadableScan):
            yield entry.changed(reason=head.reason)
        elif head.frames > 1:
            series.setdefault(head.series, [])
            yield entry
        elif head.code in VOLUMETRIC or head.planes[0].position is not None:
            series.setdefault(head.series, []).append((entry, head))
        elif dims == 3:
            yield entry.changed(reason="an image, not a volume; read it with dims 2")
        else:
            yield entry.changed(count=1, modality=head.modality, group=head.group or "", size_claimed=head.size)
    for number, (uid, members) in enumerate(sorted(series.items())):
        if len(members) == 1 and uid:
            loose.setdefault(uid, []).extend(members)
        elif members:
            yield from _series(folder, members, entries, dims, f"series={number}" if len(series) > 1 else "")


def _loose(slices: list[tuple[Found, DicomHeader]], dims: int) -> Iterator[Found]:
    # Numbered anew, as the files of one series
    renumbered = []
    for number, (entry, head) in enumerate(slices):
        plane = head.planes[0]._replace(file=number)
        renumbered.append((entry, DicomHeader(**{**head.__dict__, "planes": (plane,)})))
    folder = os.path.commonpath([os.path.dirname(entry.name) for entry, _ in slices])
    yield from _series(folder, renumbered, [entry for entry, _ in slices], dims, "")


def _header(path: Path, number: int) -> DicomHeader | UnreadableScan:
    try:
        return read_header(path, number)
    except UnreadableScan as error:
        return error


def _series(
    folder: str, members: list[tuple[Found, DicomHeader]], entries: list[Found], dims: int, label: str
) -> Iterator[Found]:
    first = members[0][1]
    found, left_out = stacks([head.planes[0] for _, head in members], first.step)
    for plane, reason in left_out:
        yield entries[plane.file].changed(reason=reason)
    for number, stack in enumerate(found):
        parts = tuple(entries[plane.file].name for plane in stack.planes)
        member = label
        if len(found) > 1:
            member = f"{label or 'series=0'}.{number}"
        if dims == 3 and len(parts) < 2:
            yield entries[stack.planes[0].file].changed(reason=_SINGLE)
            continue
        heads = {entries[head.planes[0].file].name: head for _, head in members}
        yield Found(
            name=parts[0] if dims == 2 else folder or ".",
            member=(member or None) if dims == 3 else None,
            size=sum(entries[plane.file].size for plane in stack.planes),
            row=entries[stack.planes[0].file].row,
            parts=parts if dims == 3 or len(parts) > 1 else (),
            count=1 if dims == 3 else len(parts),
            modality=heads[parts[0]].modality,
            group=heads[parts[0]].group or "",
            notes=stack.notes,
            size_claimed=((len(parts),) if dims == 3 else ()) + stack.planes[0].size[:2],
        )


@lru_cache(maxsize=64)
def folder_stack(folder: str, member: str | None, stamp: object) -> tuple[list[str], Stack, DicomHeader]:
    """The files of one series in a folder, its largest volume (or the one ``series=N.K`` names), its first header."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and is_dicom(Path(entry.path)))
    if not names:
        raise UnreadableScan(folder, "a folder without DICOM files; a folder in a manifest is one DICOM series")
    series: dict[str, list[DicomHeader]] = {}
    for number, name in enumerate(names):
        head = _header(Path(folder) / name, number)
        if isinstance(head, DicomHeader):
            series.setdefault(head.series, []).append(head)
        elif isinstance(head, NotAnImage):
            series.setdefault(head.series, [])
    number, part = _numbered(folder, member, len(series))
    heads = series[sorted(series)[number]]
    single = [head for head in heads if head.frames == 1]
    if not single:
        raise UnreadableScan(folder, f"series {number} holds no slices")
    planes: list[Plane] = [head.planes[0] for head in single]
    found, _ = stacks(planes, single[0].step)
    if part >= len(found):
        raise UnreadableScan(folder, f"series {number} has {len(found)} volumes, numbered from 0")
    stack = found[part]
    head = next(head for head in single if head.planes[0].file == stack.planes[0].file)
    return names, stack, head


def _numbered(folder: str, member: str | None, count: int) -> tuple[int, int]:
    if member is None:
        if count > 1:
            raise UnreadableScan(folder, f"holds {count} series; name one, e.g. {os.path.basename(folder)}#series=0")
        return 0, 0
    number, _, part = member.removeprefix("series=").partition(".")
    if not member.startswith("series=") or not number.isdigit() or not (part or "0").isdigit():
        raise UnreadableScan(folder, f"has no member {member!r}; a series is named series=0, series=1, ...")
    if int(number) >= count:
        raise UnreadableScan(folder, f"has no series {number}; it holds {count}, numbered from 0")
    return int(number), int(part or 0)
