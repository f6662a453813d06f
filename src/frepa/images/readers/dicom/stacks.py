"""Planes to volumes: which images of a series lie on top of each other, in which order, and how far apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from frepa.images.orientation import is_usable, voxel_sizes
from frepa.images.readers.dicom.header import Plane, normal
from frepa.images.scan import Note

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Two planes of one orientation: their normals differ by less than 2.5 degrees
_PARALLEL = 0.999
# Planes that lie closer are at one place
_SAME_PLACE = 0.01
# Slices missing: one step is this many times the usual one
_GAP = 1.5
_UNEVEN = 0.05


class Stack(NamedTuple):
    """One volume.

    Attributes:
        planes: in the order of the first axis of ``S``, towards superior, posterior or left.
        affine: voxel index in the order of ``S`` to RAS mm; None where positions or orientation are missing.
        spacing: millimetres per axis of ``S``, or None.
        notes: what is odd about it, one sentence each.
    """

    planes: tuple[Plane, ...]
    affine: np.ndarray | None
    spacing: tuple[float, ...] | None
    notes: tuple[Note, ...] = ()


def stacks(planes: Sequence[Plane], step: float | None = None) -> tuple[list[Stack], list[tuple[Plane, str]]]:
    """Volumes among the planes of one series, the largest first, and planes left out with the reason.

    Planes of another size, colour or orientation are another volume. Where every place is covered k times, by echo,
    time, diffusion weighting or simply repeated, there are k volumes; where only some places are, the first image of
    each place is kept.

    Args:
        planes: of one series.
        step: slice spacing as the header states it, for planes without positions and for single ones.
    """
    found: list[Stack] = []
    left_out: list[tuple[Plane, str]] = []
    clusters = _clusters(planes)
    for cluster in clusters:
        if _axis(cluster[0]) is None:
            found.append(_unplaced(cluster, step))
            continue
        volumes, repeated = _one_per_place(cluster)
        found.extend(_placed(volume, step, len(volumes)) for volume in volumes)
        left_out.extend((plane, "a second image of the same place, left out") for plane in repeated)
    if len(clusters) > 1:
        text = f"the series holds images of {len(clusters)} orientations or sizes, read as volumes of their own"
        note = Note(text, "geometry")
        found = [stack._replace(notes=(*stack.notes, note)) for stack in found]
    return sorted(found, key=lambda stack: -len(stack.planes)), left_out


def _axis(plane: Plane) -> tuple[float, float, float] | None:
    if plane.position is None or plane.orientation is None:
        return None
    return normal(plane.orientation)


def _clusters(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Planes of one size and one orientation; the planes without orientation are together."""
    clusters: list[tuple[tuple[object, ...], np.ndarray | None, list[Plane]]] = []
    for plane in sorted(planes, key=lambda plane: plane.order):
        axis = _axis(plane)
        spacing = None if plane.spacing is None else tuple(round(value, 3) for value in plane.spacing)
        key = (plane.size, spacing, axis is None)
        directions = None if axis is None else np.array([plane.orientation[:3], plane.orientation[3:]])  # type: ignore[index]
        for known, other, members in clusters:
            if known == key and (directions is None or _parallel(directions, other)):
                members.append(plane)
                break
        else:
            clusters.append((key, directions, [plane]))
    return [members for _, _, members in clusters]


def _parallel(one: np.ndarray, other: np.ndarray | None) -> bool:
    return other is not None and bool((np.sum(one * other, axis=1) > _PARALLEL).all())


def _one_per_place(planes: list[Plane]) -> tuple[list[list[Plane]], list[Plane]]:
    """Volumes in which every place occurs once, and the planes that fit into none."""
    places = _places(planes)
    counts = {len(place) for place in places}
    if counts == {1}:
        return [planes], []
    if len(counts) == 1:
        # Sorted alike at every place, so that the i-th of each belong together
        ranked = [sorted(place, key=lambda plane: (plane.kind, plane.order)) for place in places]
        return [list(volume) for volume in zip(*ranked)], []
    kinds: dict[tuple[float, ...], list[Plane]] = {}
    for plane in planes:
        kinds.setdefault(plane.kind, []).append(plane)
    if len(kinds) > 1:
        split = [_one_per_place(kinds[kind]) for kind in sorted(kinds)]
        volumes = [volume for found, _ in split for volume in found]
        if max(len(volume) for volume in volumes) > 1:
            return volumes, [plane for _, left in split for plane in left]
    first = [min(place, key=lambda plane: plane.order) for place in places]
    kept = {(plane.file, plane.frame) for plane in first}
    return [first], [plane for plane in planes if (plane.file, plane.frame) not in kept]


def _places(planes: list[Plane]) -> list[list[Plane]]:
    """Planes by place along their common normal, in ascending order."""
    along = _along(planes)
    order = np.argsort(along, kind="stable")
    places: list[list[Plane]] = []
    last = -np.inf
    for i in order:
        if along[i] - last > _SAME_PLACE:
            places.append([])
            last = along[i]
        places[-1].append(planes[i])
    return places


def _along(planes: Sequence[Plane]) -> np.ndarray:
    return np.array([plane.position for plane in planes], np.float64) @ _upwards(planes[0])


def _upwards(plane: Plane) -> np.ndarray:
    """The normal, in the sense that points to superior, posterior or left, whichever it is closest to."""
    axis = np.array(_axis(plane))
    return axis * (1.0 if axis[np.abs(axis).argmax()] >= 0 else -1.0)


def _placed(planes: list[Plane], step: float | None, of: int) -> Stack:
    planes = [planes[i] for i in np.argsort(_along(planes), kind="stable")]
    along = _along(planes)
    first, last = planes[0], planes[-1]
    upwards = _upwards(first)
    origin = np.array(first.position)
    if len(planes) > 1:
        across = (np.array(last.position) - origin) / (len(planes) - 1)
    else:
        across = upwards * (step or 1.0)
    notes = _step_notes(np.diff(along), across, upwards)
    if of > 1:
        notes.append(Note(f"one of {of} volumes of the same place in one series", "geometry"))
    orientation, spacing = np.array(first.orientation), first.spacing
    if spacing is None:
        return Stack(tuple(planes), None, None, (*notes, Note("the header gives no pixel spacing", "geometry")))
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 3] = across, origin
    lps[:3, 1], lps[:3, 2] = orientation[3:] * spacing[0], orientation[:3] * spacing[1]
    affine = _LPS_TO_RAS @ lps
    if not is_usable(affine):
        return Stack(tuple(planes), None, None, (*notes, Note("the header's geometry makes no sense", "geometry")))
    sizes = voxel_sizes(affine)
    if len(planes) == 1 and step is None:
        return Stack(tuple(planes), affine, sizes, (*notes, Note("a single image of unknown thickness", "geometry")))
    return Stack(tuple(planes), affine, sizes, tuple(notes))


def _step_notes(steps: np.ndarray, across: np.ndarray, upwards: np.ndarray) -> list[Note]:
    if len(steps) == 0:
        return []
    notes: list[Note] = []
    usual = float(np.median(steps))
    gaps = steps > _GAP * usual
    if gaps.any():
        missing = int(np.maximum(np.rint(steps[gaps] / usual) - 1, 1).sum())
        slices, places = ("slice" if missing == 1 else "slices"), ("place" if gaps.sum() == 1 else "places")
        text = f"{missing} {slices} missing in {int(gaps.sum())} {places}, by the positions of the others"
        notes.append(Note(text, "slices missing"))
    elif np.abs(steps - usual).max() > _UNEVEN * usual:
        notes.append(Note(f"slices are unevenly spaced, {steps.min():.3g} to {steps.max():.3g} mm", "geometry"))
    if abs(across @ upwards) < 0.9998 * np.linalg.norm(across):
        notes.append(Note("slices are shifted against each other (tilted gantry); the affine says so", "geometry"))
    return notes


def _unplaced(planes: list[Plane], step: float | None) -> Stack:
    planes = sorted(planes, key=lambda plane: (plane.order, plane.file, plane.frame))
    spacing = planes[0].spacing
    sizes = None if spacing is None or step is None else (step, *spacing)
    if len(planes) == 1:
        return Stack(tuple(planes), None, sizes)
    text = "without positions: slices are in the order of their numbers, and how they lie in the patient is unknown"
    return Stack(tuple(planes), None, sizes, (Note(text, "geometry"), *_number_notes(planes)))


def _number_notes(planes: Sequence[Plane]) -> list[Note]:
    """Gaps in the numbers of the images, where positions cannot tell."""
    numbers = sorted({int(plane.order[1]) for plane in planes if plane.order[1] > 0})
    if len(numbers) < 2 or len(planes) != len(numbers):
        return []
    steps = np.diff(numbers)
    usual = int(np.median(steps))
    missing = int((steps[steps > usual] // usual - 1).sum())
    if not 0 < missing < len(numbers):
        return []
    words = "1 slice is" if missing == 1 else f"{missing} slices are"
    return [Note(f"{words} missing, by the numbers of the others", "slices missing")]
