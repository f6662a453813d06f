"""DICOM files to records: which files are one series, whatever they are called and wherever they lie."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from time import perf_counter, thread_time
from typing import TypeVar

from frepa.images.finding import Found, dicom_by_content
from frepa.images.guards import check_memory
from frepa.images.readers.dicom.described import remember
from frepa.images.readers.dicom.header import DicomHeader, Plane, Unusable, read_header
from frepa.images.readers.dicom.opening import SERIES, read_tags, series_of
from frepa.images.readers.dicom.stacks import Stack, stacks
from frepa.images.readers.pixels import check_size
from frepa.images.readers.registry import reader_at, reader_for
from frepa.images.scan import Note, UnreadableScan

#: Modalities whose single-frame files are slices of volumes.
VOLUMETRIC = {"CT", "MR", "PT", "NM", "OPT", "OCT"}
_THREADS = 8
# Seconds and share of waiting after which a storage is one to wait for; a processor that others use makes one wait too
_WAITED, _SHARE = 0.05, 0.8
_SINGLE = "a single slice, no volume; read it with dims 2"
_NAMED = 5  # unreadable slices that a note names
#: Kinds of trouble of files that are no slices, so that nothing is missing without them.
NO_SLICE = ("left out", "other dims")

Header = DicomHeader | UnreadableScan
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class _Reading:
    """Work on many files, by threads once the storage makes one wait: where they compute they hinder each other."""

    def __init__(self) -> None:
        self._waits = False

    def each(self, work: Callable[[_Item], _Answer], items: Iterable[_Item]) -> list[_Answer]:
        """``work`` of every item, in order."""
        queue = list(items)
        done: list[_Answer] = []
        start, computed = perf_counter(), thread_time()
        while queue and not self._waits:
            done.append(work(queue[len(done)]))
            if len(done) == len(queue):
                return done
            whole = perf_counter() - start
            self._waits = whole - (thread_time() - computed) > max(_WAITED, _SHARE * whole)
        with ThreadPoolExecutor(_THREADS) as pool:
            return done + list(pool.map(work, queue[len(done) :]))


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
        check_memory(root / entry.name, math.prod(entry.size_claimed))
    except UnreadableScan as error:
        return entry.changed(reason=error.reason, trouble=error.kind)
    return entry


def _grouped(files: Iterable[Found], root: Path, dims: int) -> Iterator[Found]:
    waiting: dict[str, list[Found]] = {}
    reading = _Reading()
    loose: dict[str, list[tuple[Found, DicomHeader]]] = {}
    for entry in files:
        if not _is_dicom_entry(entry, root):
            yield entry
            continue
        folder = os.path.dirname(entry.name)
        for done in [name for name in waiting if not _inside(folder, name)]:
            yield from _folder(done, waiting.pop(done), root, dims, loose, reading)
        waiting.setdefault(folder, []).append(entry)
    for folder in list(waiting):
        yield from _folder(folder, waiting.pop(folder), root, dims, loose, reading)
    for slices in loose.values():
        yield from _loose(slices, root, dims)


def _is_dicom_entry(entry: Found, root: Path) -> bool:
    if entry.member is not None:
        return False
    if entry.reason or entry.size <= 0:  # a slice that is lost, named as one
        name = os.path.basename(entry.name)
        return name != "" and (_named_dicom(name) or (reader_for(name) is None and bool(entry.reason)))
    reader = reader_at(root / entry.name)
    return reader is not None and reader.name == "dicom" and not (root / entry.name).is_dir()


def _inside(folder: str, other: str) -> bool:
    return folder == other or other == "" or folder.startswith(other + "/")


def _folder(
    folder: str,
    entries: list[Found],
    root: Path,
    dims: int,
    loose: dict[str, list[tuple[Found, DicomHeader]]],
    reading: _Reading,
) -> Iterator[Found]:
    heads = reading.each(lambda item: _header(root / item[1].name, item[0], item[1]), enumerate(entries))
    series: dict[str, list[tuple[Found, DicomHeader]]] = {}
    for entry, head in zip(entries, heads):
        if isinstance(head, UnreadableScan):
            yield entry.changed(reason=head.reason, trouble=head.kind)
        elif head.frames > 1:
            yield entry
        elif head.code in VOLUMETRIC or head.planes[0].position is not None:
            series.setdefault(head.series, []).append((entry, head))
        elif dims == 3:
            yield entry.changed(reason="an image, not a volume; read it with dims 2", trouble="other dims")
        else:
            yield entry.changed(count=1, modality=head.modality, group=head.group or "", size_claimed=head.size)
    lost = _lost({os.path.basename(entry.name): head for entry, head in zip(entries, heads)})
    numbers = _numbers(root / folder, entries, heads)
    for uid, members in sorted(series.items()):
        if len(members) == 1 and uid:
            loose.setdefault(uid, []).extend(members)
        else:
            label = f"series={numbers[uid]}" if len(numbers) > 1 else ""
            notes = _lost_notes(lost.get(uid, []) + lost.get(None, []))
            yield from _series(folder, members, entries, root, dims, label, notes)


def _lost(heads: dict[str, Header]) -> dict[str | None, list[str]]:
    """Names of files that should be slices and cannot be read, by series; None for those of which nothing is known."""
    lost: dict[str | None, list[str]] = {}
    for name, head in heads.items():
        if isinstance(head, UnreadableScan) and head.kind not in NO_SLICE:
            lost.setdefault(head.series if isinstance(head, Unusable) else None, []).append(name)
    return lost


def _lost_notes(names: list[str]) -> tuple[Note, ...]:
    if not names:
        return ()
    files = "1 file" if len(names) == 1 else f"{len(names)} files"
    more = ", ..." if len(names) > _NAMED else ""
    text = f"{files} of this folder cannot be read, and their slices are not in the volume: {', '.join(names[:_NAMED])}"
    return (Note(text + more, "slices unreadable"),)


def _numbers(folder: Path, entries: list[Found], heads: list[Header]) -> dict[str, int]:
    """Series instance UID to the number by which ``folder#series=N`` names it: over all of the folder's DICOM files."""
    uids = {os.path.basename(entry.name): _uid(head) for entry, head in zip(entries, heads)}
    found = set(uids.values()) - {None}
    if len(found) > 1:
        found |= set(uids_of(folder, [name for name in dicom_names(folder)[0] if name not in uids]).values())
    return {uid: number for number, uid in enumerate(sorted(uid for uid in found if uid is not None))}


def _uid(head: Header) -> str | None:
    return head.series if isinstance(head, DicomHeader | Unusable) else None


def uids_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Series instance UID of each file of a folder that is DICOM, "" where it was removed."""

    def one(name: str) -> tuple[str, str | None]:
        try:
            return name, series_of(read_tags(folder / name, [SERIES]))
        except Exception:  # whatever is wrong with it is told when it is read
            return name, None

    return {name: uid for name, uid in _Reading().each(one, names) if uid is not None}


def series_numbers(folder: Path) -> dict[str, int]:
    """Series instance UID to its number N in ``folder#series=N``."""
    return {uid: number for number, uid in enumerate(sorted(set(uids_of(folder, dicom_names(folder)[0]).values())))}


def dicom_names(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Names of a folder's DICOM files, as finding the files of a source names them, and of files that are lost."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())
    by_content = dicom_by_content(folder, names)
    known = [name for name in names if by_content.get(name) == "" or _named_dicom(name)]
    return known, {name: reason for name, reason in by_content.items() if reason}


def _named_dicom(name: str) -> bool:
    reader = reader_for(name)
    return reader is not None and reader.name == "dicom"


def _loose(slices: list[tuple[Found, DicomHeader]], root: Path, dims: int) -> Iterator[Found]:
    # Numbered anew, as the files of one series
    renumbered = []
    for number, (entry, head) in enumerate(slices):
        plane = head.planes[0]._replace(file=number)
        renumbered.append((entry, DicomHeader(**{**head.__dict__, "planes": (plane,)})))
    folder = os.path.commonpath([os.path.dirname(entry.name) for entry, _ in slices])
    yield from _series(folder, renumbered, [entry for entry, _ in slices], root, dims, "", ())


def _header(path: Path, number: int, entry: Found | None = None) -> Header:
    if entry is not None and entry.reason:
        return UnreadableScan(str(path), entry.reason, entry.trouble)
    if entry is not None and entry.size == 0:
        return UnreadableScan(str(path), "empty file (0 bytes)", kind="empty")
    try:
        return read_header(path, number)
    except UnreadableScan as error:
        return error


def _series(
    folder: str,
    members: list[tuple[Found, DicomHeader]],
    entries: list[Found],
    root: Path,
    dims: int,
    label: str,
    notes: tuple[Note, ...],
) -> Iterator[Found]:
    first = members[0][1]
    found, left_out = stacks([head.planes[0] for _, head in members], first.step)
    for plane, reason in left_out:
        yield entries[plane.file].changed(reason=reason, trouble="left out")
    for number, stack in enumerate(found):
        parts = tuple(entries[plane.file].name for plane in stack.planes)
        member = label
        if len(found) > 1:
            member = f"{label or 'series=0'}.{number}"
        if dims == 3 and len(parts) < 2:
            yield entries[stack.planes[0].file].changed(reason=_SINGLE, trouble="other dims")
            continue
        heads = {entries[head.planes[0].file].name: head for _, head in members}
        if len(found) == 1 and not left_out and len(parts) > 1 and heads[parts[0]].step == first.step:
            remember([str(root / part) for part in parts], stack, heads[parts[0]])
        yield Found(
            name=parts[0] if dims == 2 else folder or ".",
            member=(member or None) if dims == 3 else None,
            size=sum(entries[plane.file].size for plane in stack.planes),
            row=entries[stack.planes[0].file].row,
            parts=parts if dims == 3 or len(parts) > 1 else (),
            count=1 if dims == 3 else len(parts),
            modality=heads[parts[0]].modality,
            group=heads[parts[0]].group or "",
            notes=(*notes, *stack.notes),
            size_claimed=((len(parts),) if dims == 3 else ()) + stack.planes[0].size[:2],
        )


@lru_cache(maxsize=64)
def folder_stack(folder: str, member: str | None, stamp: object) -> tuple[tuple[str, ...], Stack, DicomHeader]:
    """Paths of the files of one series in a folder, its largest volume (or that of ``series=N.K``), first header."""
    names, lost_files = dicom_names(Path(folder))
    if not names:
        raise UnreadableScan(folder, "a folder without DICOM files; a folder in a manifest is one DICOM series")
    heads = _Reading().each(lambda item: _header(Path(folder) / item[1], item[0]), enumerate(names))
    uids = sorted({uid for uid in map(_uid, heads) if uid is not None})
    if not uids:
        first = next(head for head in heads if isinstance(head, UnreadableScan))
        raise UnreadableScan(folder, f"none of its {len(names)} DICOM files can be read: {first.reason}", first.kind)
    number, part = _numbered(folder, member, len(uids))
    single = [h for h in heads if isinstance(h, DicomHeader) and h.series == uids[number] and h.frames == 1]
    if not single:
        raise UnreadableScan(folder, f"series {number} holds no slices", kind="left out")
    planes: list[Plane] = [head.planes[0] for head in single]
    found, repeated = stacks(planes, single[0].step)
    if part >= len(found):
        raise UnreadableScan(folder, f"series {number} has {len(found)} volumes, numbered from 0")
    lost = _lost(dict(zip(names, heads)))
    notes = list(_lost_notes(lost.get(uids[number], []) + lost.get(None, []) + sorted(lost_files)))
    if repeated:
        notes.append(Note(f"{len(repeated)} second images of the same place are left out", "geometry"))
    stack = found[part]._replace(notes=(*notes, *found[part].notes))
    head = next(head for head in single if head.planes[0].file == stack.planes[0].file)
    return tuple(str(Path(folder) / name) for name in names), stack, head


def _numbered(folder: str, member: str | None, count: int) -> tuple[int, int]:
    if member is None:
        if count > 1:
            raise UnreadableScan(
                folder,
                f"holds {count} series; name one, e.g. {os.path.basename(folder)}#series=0",
                kind="several arrays",
            )
        return 0, 0
    number, _, part = member.removeprefix("series=").partition(".")
    if not member.startswith("series=") or not number.isdigit() or not (part or "0").isdigit():
        raise UnreadableScan(folder, f"has no member {member!r}; a series is named series=0, series=1, ...")
    if int(number) >= count:
        raise UnreadableScan(folder, f"has no series {number}; it holds {count}, numbered from 0")
    return int(number), int(part or 0)
