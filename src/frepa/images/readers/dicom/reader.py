"""DICOM through pydicom: single images, films, enhanced multi-frame files and series.

A series is a folder, ``folder#series=N`` where it holds several (numbered in the order of their series instance UIDs,
``N.K`` for the K-th volume of one), or a list of files that `frepa.images.readers.dicom.folders` has sorted. In 2D
every frame is a record, in the order of the volume it belongs to and turned the usual way up; in 3D every volume
is one.

CT becomes Hounsfield units by its rescale slope and intercept. Names, identifiers, dates and private fields of the
header go nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from frepa.images.guards import check_memory
from frepa.images.orientation import plane_codes, reorient, reorient_array, reorient_header, voxel_sizes
from frepa.images.readers.dicom.described import described
from frepa.images.readers.dicom.folders import VOLUMETRIC, folder_stack
from frepa.images.readers.dicom.header import DicomHeader, Plane, header_of, read_header
from frepa.images.readers.dicom.pixels import Frame, declared_frames, frame_values, read_pixels
from frepa.images.readers.dicom.stacks import Stack, stacks
from frepa.images.readers.pixels import check_size
from frepa.images.scan import ARBITRARY, Header, Note, Scan, UnreadableScan
from frepa.images.volumes import CACHE_BYTES, VolumeStatistics, file_key

#: Slices of the volume whose statistics were taken last, by file, frame and options.
_held: dict[tuple[Any, int, bool], Frame] = {}


def header(path: Path, member: str | None, *, dims: int, max_pixels: int) -> Header:
    """Size, spacing, modality, anonymous group and number of records of a file, or of a series in a folder."""
    if path.is_dir():
        _, stack, first = folder_stack(str(path), member, _stamp(path))
        return _series_header(path, first, stack, dims, max_pixels)
    _no_member(path, member)
    head = read_header(path)
    volumes = _volumes(head)
    if dims == 3:
        _check_volume(path, head, volumes)
        whole = _series_header(path, head, volumes[0], 3, max_pixels)
        return _with(whole, count=len(volumes))
    count = sum(len(volume.planes) for volume in volumes)
    return _with(_series_header(path, head, volumes[0], 2, max_pixels), count=count)


def read(path: Path, member: str | None, row: int, *, dims: int, max_pixels: int, voi: bool = False) -> Scan:
    """Record ``row`` of a file or of a series in a folder: ``(1 | 3, H, W)`` or ``(1 | 3, D, H, W)``.

    Args:
        path: a file or a folder.
        member: ``series=N`` of a folder, None otherwise.
        row: number of the frame (2D) or volume (3D).
        dims: 2 or 3.
        max_pixels: limit of positions in a record.
        voi: apply the VOI LUT or window to values that are not Hounsfield units, for display images (X-ray).
    """
    if path.is_dir():
        paths, stack, first = folder_stack(str(path), member, _stamp(path))
        return read_stack(paths, stack, first, row, dims, max_pixels, voi)
    _no_member(path, member)
    head, volumes = _file_volumes(path, file_key(path))
    if dims == 3:
        _check_volume(path, head, volumes)
        return read_stack((str(path),), volumes[row], head, 0, 3, max_pixels, voi)
    for volume in volumes:
        if row < len(volume.planes):
            return read_stack((str(path),), volume, head, row, 2, max_pixels, voi)
        row -= len(volume.planes)
    raise UnreadableScan(str(path), f"has no frame {row}")


def read_series(
    paths: Sequence[str], row: int, *, dims: int, max_pixels: int, voi: bool = False, canonical: bool = True
) -> Scan:
    """A volume, or slice ``row`` of it, from files already in the order of its slices."""
    stack, head = described(paths)
    scan = read_stack(paths, stack, head, row, dims, max_pixels, voi)
    return reorient(scan) if canonical else scan


def series_header(paths: Sequence[str], *, dims: int, max_pixels: int, canonical: bool = True) -> Header:
    """The header of what `read_series` gives."""
    stack, head = described(paths)
    found = _series_header(Path(paths[0]), head, stack, dims, max_pixels)
    return reorient_header(found) if canonical else found


def record_planes(
    path: Path, member: str | None, parts: Sequence[Path] | None, row: int, *, dims: int
) -> tuple[tuple[tuple[Path, int], ...], np.ndarray | None]:
    """File and frame of every slice of a record, in order, and its affine in the axes of the files.

    Args:
        path, member: as in `read`; ``parts`` as in `read_series`, or None.
        row: number of the record. dims: 2 or 3; in 2D the affine is that of the one slice, as a volume.
    """
    if parts is not None:
        paths, found = list(parts), [described(tuple(map(str, parts)))[0]]
    elif path.is_dir():
        names, stack, _ = folder_stack(str(path), member, _stamp(path))
        paths, found = list(map(Path, names)), [stack]
    else:
        paths, found = [path], _file_volumes(path, file_key(path))[1]
    if dims == 3:
        stack = found[row if len(found) > 1 else 0]
        return tuple((paths[plane.file], plane.frame) for plane in stack.planes), stack.affine
    for stack in found:
        if row < len(stack.planes):
            plane, affine = stack.planes[row], stack.affine
            if affine is not None:
                affine = affine.copy()
                affine[:3, 3] += row * affine[:3, 0]
            return ((paths[plane.file], plane.frame),), affine
        row -= len(stack.planes)
    raise UnreadableScan(str(path), f"has no frame {row}")


@lru_cache(maxsize=64)
def _file_volumes(path: Path, stamp: object) -> tuple[DicomHeader, list[Stack]]:
    try:
        head = header_of(path, _dataset(path, stamp))  # which is read in any case, for the pixels
    except UnreadableScan:
        head = read_header(path)  # what is wrong with the pixels is told when they are asked for
    return head, _volumes(head)


@lru_cache(maxsize=1)
def _dataset(path: Path, stamp: object):  # type: ignore[no-untyped-def]
    return read_pixels(path)


def _stamp(path: Path) -> object:
    return path.stat().st_mtime_ns


def _no_member(path: Path, member: str | None) -> None:
    if member is not None:
        raise UnreadableScan(str(path), f"frames have numbers, not names; it has no member {member!r}")


def _volumes(head: DicomHeader) -> list[Stack]:
    """The volumes of a file; a film or single image is one without affine unless its frames have positions."""
    placed = len({plane.position for plane in head.planes}) > 1
    if not placed and (head.in_time or head.code not in VOLUMETRIC):
        return [Stack(head.planes, None, None)]
    return stacks(head.planes, head.step)[0]


def _check_volume(path: Path, head: DicomHeader, volumes: list[Stack]) -> None:
    if head.frames == 1:
        if head.code in VOLUMETRIC:
            raise UnreadableScan(
                str(path), "one slice of a series; in 3D a series is named by its folder", kind="other dims"
            )
        raise UnreadableScan(str(path), "an image, not a volume; read it with dims 2", kind="other dims")
    if volumes[0].affine is None and (head.in_time or head.step is None):
        raise UnreadableScan(
            str(path), f"{head.frames} frames of a film, not a volume; read it with dims 2", kind="other dims"
        )
    if len(volumes[0].planes) < 2:
        raise UnreadableScan(
            str(path), f"{head.frames} frames that do not form a volume; read it with dims 2", kind="other dims"
        )


def _with(header: Header, **changes: object) -> Header:
    return Header(**{**header.__dict__, **changes})


def _series_header(path: Path, head: DicomHeader, stack: Stack, dims: int, max_pixels: int) -> Header:
    depth, (rows, columns, _) = len(stack.planes), stack.planes[0].size
    check_size(path, (depth, rows, columns) if dims == 3 else (rows, columns), max_pixels)
    check_memory(path, (depth if dims == 3 else 1) * rows * columns * head.channels * head.depth)
    whole = Header(
        head.channels,
        (depth, rows, columns),
        spacing=stack.spacing,
        affine=stack.affine,
        modality=head.modality or None,
        group=head.group,
        notes=stack.notes,
    )
    if dims == 3:
        return whole
    if stack.affine is not None:
        turned = reorient_header(whole, plane_codes(stack.affine, 0))
        return _with(whole, count=depth, size=turned.size[1:], spacing=(turned.spacing or ())[1:], affine=None)
    return _with(whole, count=depth, size=(rows, columns), spacing=stack.planes[0].spacing, affine=None)


def read_stack(
    paths: Sequence[str], stack: Stack, head: DicomHeader, row: int, dims: int, max_pixels: int, voi: bool
) -> Scan:
    """A volume, or slice ``row`` of it; ``plane.file`` counts within ``paths``."""
    first = Path(paths[0])
    rows, columns, _ = stack.planes[0].size
    depth = len(stack.planes)
    check_size(first, (depth, rows, columns) if dims == 3 else (rows, columns), max_pixels)
    check_memory(first, (depth if dims == 3 else 1) * rows * columns * head.channels * head.depth)
    if dims == 3:
        return _volume(paths, stack, head, voi)
    frame = _frame(paths, stack.planes[row], voi)
    whole = None
    if depth > 1 and stack.affine is not None:
        entry = (file_key(first), tuple(paths), stack.planes[0].frame, depth, voi)
        whole = VolumeStatistics(entry, lambda: _volume(paths, stack, head, voi, readable=True))
    array, affine = frame.array, None
    spacing: tuple[float, ...] | None = stack.planes[row].spacing
    if stack.affine is not None:
        moved = stack.affine.copy()
        moved[:3, 3] += row * moved[:3, 0]
        turned, affine = reorient_array(array[:, None], moved, plane_codes(moved, 0))
        array, affine = np.ascontiguousarray(turned[:, 0]), affine[:, [1, 2, 0, 3]]
        spacing = voxel_sizes(affine)[:2]
    return Scan(
        array,
        spacing,
        affine,
        modality=head.modality or None,
        unit=frame.unit,
        group=head.group,
        padding=frame.padding,
        whole=whole,
        notes=(*stack.notes, *frame.notes),
    )


def _frame(paths: Sequence[str], plane: Plane, voi: bool, *, keep: bool = False) -> Frame:
    path = Path(paths[plane.file])
    try:
        key = file_key(path)
    except FileNotFoundError:
        raise UnreadableScan(str(path), "file not found", kind="empty") from None
    # In one step each: threads may read slices at the same time
    held = (_held.get if keep else _held.pop)((key, plane.frame, voi), None)
    if held is not None and keep:
        return held
    if held is not None:
        return held._replace(array=held.array.copy())  # not a view, which would keep its whole volume
    data = _dataset(path, key)
    frame = frame_values(path, data, plane.frame, declared_frames(data), voi=voi)
    if frame.array.shape[1:] != plane.size[:2]:
        raise UnreadableScan(
            str(path), f"decodes to {frame.array.shape[1:]} pixels, the header says {plane.size[:2]}", kind="damaged"
        )
    return frame


def _volume(paths: Sequence[str], stack: Stack, head: DicomHeader, voi: bool, *, readable: bool = False) -> Scan:
    """A volume; with ``readable`` of the slices that can be read, whose statistics must not fail with one of them.

    The slices that such statistics were taken of are held: most likely they are asked for next, one by one.
    """
    array: np.ndarray | None = None
    kept: list[int] = []
    frames: dict[tuple[Any, int, bool], tuple[int, Frame]] = {}
    if readable and not {str(key[0][0]) for key in list(_held)} & set(paths):
        _held.clear()
    units, paddings, notes = set(), set(), list(stack.notes)
    for place, plane in enumerate(stack.planes):
        try:
            frame = _frame(paths, plane, voi, keep=readable)
        except UnreadableScan as error:
            if readable:
                continue
            reason = f"slice {place + 1} of {len(stack.planes)}: {error.reason}"
            raise UnreadableScan(error.path, reason, error.kind) from None
        kept.append(place)
        pixels = frame.array
        if readable:
            frames[file_key(Path(paths[plane.file])), plane.frame, voi] = place, frame._replace(array=pixels[:, :0])
        if array is None:
            array = np.empty((pixels.shape[0], len(stack.planes), *pixels.shape[1:]), pixels.dtype)
        if pixels.shape[0] > array.shape[0]:  # grey slices came first
            array = np.repeat(array, pixels.shape[0], axis=0)
        kind = np.result_type(array.dtype, pixels.dtype)
        array = array.astype(np.float32 if kind.kind == "f" else kind, copy=False)
        array[:, place] = pixels
        units.add(frame.unit)
        paddings.add(frame.padding)
        notes += [note for note in frame.notes if note not in notes]
    if readable and array is not None and array.nbytes <= CACHE_BYTES:
        _held.clear()
        for key, (place, frame) in frames.items():
            if frame.array.dtype == array.dtype and frame.array.shape[0] == array.shape[0]:
                _held[key] = frame._replace(array=array[:, place])
    if array is None:
        raise UnreadableScan(str(paths[0]), "none of its slices can be read", kind="truncated")
    if len(kept) < len(stack.planes):
        array = array[:, kept]
    if len(units) > 1:
        notes.append(
            Note("some slices are in Hounsfield units and some are not; scaled by percentiles", "ct without hu")
        )
    return Scan(
        array,
        stack.spacing,
        stack.affine,
        modality=head.modality or None,
        unit=units.pop() if len(units) == 1 else ARBITRARY,
        group=head.group,
        padding=paddings.pop() if len(paddings) == 1 else None,
        notes=tuple(notes),
    )
