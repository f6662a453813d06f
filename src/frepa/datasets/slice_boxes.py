"""Boxes of volumes on the slices of these: each slice has the part of every box that crosses it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from frepa.datasets.annotations import Annotations, Findings
from frepa.images import boxes
from frepa.images.files import FileSource
from frepa.images.orientation import plane_codes, reorient_header, through_plane
from frepa.images.scan import Header, UnreadableScan


def boxes_on_slices(slices: FileSource, volumes: Annotations) -> list[list[dict[str, Any]] | None]:
    """What the table's column ``boxes`` holds for every record of ``slices``; None where nobody looked at its volume.

    A sphere (an ellipsoid in its box) has on each slice the box of its largest section there.

    Args:
        slices: the files read as 2D images.
        volumes: the same files as volumes, axes as stored, and what is marked in them.
    """
    numbered: dict[str, list[int]] = defaultdict(list)
    for record in range(len(slices)):
        if slices.is_stack(record):
            numbered[slices.file(record)].append(record)
    taken: dict[str, int] = defaultdict(int)
    column: list[list[dict[str, Any]] | None] = [None] * len(slices)
    for volume, marked in enumerate(volumes.findings):
        file = volumes.source.file(volume)
        rows = numbered.get(file, [])
        try:
            header = volumes.source.header(volume)
        except UnreadableScan:  # told when its turn comes
            continue
        # Files of DICOM are read a frame at a time, in the axes they are stored in
        as_stored = bool(rows) and slices.origin(rows[0]).reader == "dicom"
        axis = 0 if as_stored else through_plane(header.affine, header.spacing)
        first = taken[file]
        taken[file] += header.size[axis]
        if marked is None:
            continue
        corners = _in_planes(marked, header, axis, volumes.spheres, turn=not as_stored)
        for place, record in enumerate(rows[first : taken[file]]):
            column[record] = [
                {"label": label, "coordinates": part}
                for corner, label in zip(corners, marked.labels)
                if (part := _section(corner, place, volumes.spheres)) is not None
            ]
    return column


def _in_planes(marked: Findings, header: Header, axis: int, spheres: bool, *, turn: bool) -> np.ndarray:
    """Corners ``(n, 6)`` on the grid whose first axis numbers the slices and whose others are theirs."""
    affine = header.affine
    if affine is None:
        order = [axis, *(other for other in range(3) if other != axis)]
        return marked.values[:, [*order, *(3 + other for other in order)]]
    to = reorient_header(header, plane_codes(affine, axis)).affine if turn else affine
    assert to is not None
    if spheres:
        return boxes.around(marked.values[:, :3], marked.values[:, 3], to)
    return boxes.turned(marked.values, affine, to)


def _section(corner: np.ndarray, place: int, sphere: bool) -> list[float] | None:
    """Lower and upper corner on a slice; None where the box does not cross it."""
    low, high = corner[:3], corner[3:]
    if high[0] <= place or low[0] >= place + 1:
        return None
    share = 1.0
    if sphere:
        middle, radius = (low + high) / 2, (high - low) / 2
        away = max(0.0, abs(place + 0.5 - middle[0]) - 0.5) / radius[0]
        share = float(np.sqrt(max(0.0, 1 - away**2)))
        low, high = middle - share * radius, middle + share * radius
    return [*low[1:].tolist(), *high[1:].tolist()] if share > 0 else None
