"""Where a record lies in its file: what was found in a scan as it was read, brought onto the file's own grid.

Scans are read in the orientation that people look at them in. What is written beside a file has to lie on the file:
in its axes, in its directions, with its voxel sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from frepa.images.boxes import turned
from frepa.images.files import FileSource, Origin
from frepa.images.orientation import axis_codes, plane_codes, reorient_array, through_plane, voxel_sizes
from frepa.images.readers.pixels import MAX_PIXELS
from frepa.images.readers.registry import READERS
from frepa.images.scan import Scan
from frepa.images.source import Source

#: Readers of volumes, whose files are no images for a 2D encoder when they hold more than one slice.
OF_VOLUMES = ("nifti", "simpleitk", "dicom")


class Filed(NamedTuple):
    """The grid of a record in the axes of its file.

    Attributes:
        size: extent per axis: (H, W), or (D, H, W) of volumes and of single slices that lie in a patient.
        affine: ``(4, 4)``, index in the order of ``size`` to RAS millimetres; None where the file does not say.
        spacing: millimetres per axis of ``size``; None where the file does not say.
        slices: of DICOM the file and the frame in it of every slice, in the order of the first axis; None of others.
    """

    size: tuple[int, ...]
    affine: np.ndarray | None
    spacing: tuple[float, ...] | None = None
    slices: tuple[tuple[Path, int], ...] | None = None


def filed(source: Source, index: int, scan: Scan) -> Filed:
    """The grid of record ``index`` of a source opened with ``canonical=False``, as which ``scan`` was read.

    Of a store it is that of the scan as it was packed.

    Raises:
        UnreadableScan: the header cannot be read any more.
    """
    as_read = Filed(scan.size, scan.affine if len(scan.size) == 3 else None, scan.spacing)
    if not isinstance(source, FileSource):
        return as_read
    origin = source.origin(index)
    if origin.reader == "dicom":
        return _dicom(origin, as_read, source.dims)
    if len(scan.size) == 3 or scan.affine is None or origin.reader not in OF_VOLUMES:
        return as_read
    reader = next(reader for reader in READERS if reader.name == origin.reader)
    whole = reader.header(origin.path, origin.member, dims=3, max_pixels=MAX_PIXELS[3], canonical=False)
    if whole.affine is None or whole.size[through_plane(whole.affine, whole.spacing)] != 1:
        return as_read
    return Filed(tuple(whole.size), whole.affine, whole.spacing)


def _dicom(origin: Origin, as_read: Filed, dims: int) -> Filed:
    from frepa.images.readers.dicom.reader import record_planes

    slices, affine = record_planes(origin.path, origin.member, origin.parts, origin.row, dims=dims)
    if dims == 3:
        return as_read._replace(slices=slices)
    if affine is None:
        return as_read._replace(slices=slices)
    size = as_read.size
    # Turned or not: the slice as it is stored, of which the plane's own axes come second and third
    stored = size if _keeps_axes(affine) else size[::-1]
    return Filed((1, *stored), affine, voxel_sizes(affine), slices)


def _keeps_axes(affine: np.ndarray) -> bool:
    there, wanted = axis_codes(affine), plane_codes(affine, 0)
    pairs = [{"S", "I"}, {"A", "P"}, {"L", "R"}]
    return all(any({one, other} <= pair for pair in pairs) for one, other in zip(there, wanted))


def on_file(array: np.ndarray, affine: np.ndarray | None, grid: Filed) -> np.ndarray:
    """``(C, *S)`` in the axes that ``affine`` belongs to, in those of the file: ``(C, *grid.size)``; a copy.

    ``affine`` of a slice has its two axes first, then the direction through it (see `frepa.images.scan.Scan`).
    """
    if affine is None or grid.affine is None:
        return array
    if array.ndim == 3:
        array, affine = array[:, None], affine[:, [2, 0, 1, 3]]
    return np.ascontiguousarray(reorient_array(array, affine, axis_codes(grid.affine))[0])


def boxes_on_file(corners: np.ndarray, affine: np.ndarray | None, grid: Filed) -> np.ndarray:
    """Corners ``(n, 2 * dims)`` in the axes that ``affine`` belongs to, in those of the file (or its plane)."""
    if affine is None or grid.affine is None:
        return corners
    if corners.shape[1] == 6:
        return turned(corners, affine, grid.affine)
    low, high = np.zeros((len(corners), 1)), np.ones((len(corners), 1))
    solid = np.concatenate([low, corners[:, :2], high, corners[:, 2:]], axis=1)
    moved = turned(solid, affine[:, [2, 0, 1, 3]], grid.affine)
    across = grid.size.index(1)
    kept = [axis for axis in range(3) if axis != across]
    return moved[:, [*kept, *(axis + 3 for axis in kept)]]
