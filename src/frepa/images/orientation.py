"""How the axes of a volume lie in the patient, and turning them without resampling.

An orientation is written as the direction each axis of ``S`` points to, the first axis first: S(uperior), I(nferior),
A(nterior), P(osterior), L(eft), R(ight). ``"SPL"``, the canonical one, has slices from feet to head, rows from front to
back and columns from the patient's right to the left: every axial slice is shown as radiologists look at it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from nibabel import orientations

from frepa.images.scan import Header, Scan, replace_scan

CANONICAL = "SPL"
#: Orientation of a volume whose first axis runs through the planes, such that each plane is shown the usual way up.
PLANES = {"S": "SPL", "I": "SPL", "A": "PIL", "P": "PIL", "L": "LIP", "R": "LIP"}
# Volumes whose spacings differ by less have no axis that is the through-plane one by its spacing
_ISOTROPIC = 1.2


def voxel_sizes(affine: np.ndarray) -> tuple[float, ...]:
    """Millimetres per axis: the lengths of the affine's columns."""
    return tuple(float(length) for length in np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0)))


def axis_codes(affine: np.ndarray) -> str:
    """The nearest orientation, e.g. ``"SPL"``; an axis of an oblique volume goes to the direction closest to it."""
    return _codes(_directions(affine))


@lru_cache(maxsize=4096)
def _codes(directions: bytes) -> str:
    return "".join(str(code) for code in orientations.ornt2axcodes(_orientation(directions)))


def _directions(affine: np.ndarray) -> bytes:
    """What orientations depend on: the same for all slices of a volume, and for most volumes of a scanner."""
    return np.ascontiguousarray(np.asarray(affine, np.float64)[:3, :3]).tobytes()


def _orientation(directions: bytes) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.frombuffer(directions).reshape(3, 3)
    return orientations.io_orientation(affine)


def is_usable(affine: np.ndarray) -> bool:
    """Finite, and its three axes span the space."""
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        return False
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    return bool(lengths.min() > 0 and abs(np.linalg.det(matrix[:3, :3] / lengths)) > 1e-3)


def reorient_array(array: np.ndarray, affine: np.ndarray, codes: str = CANONICAL) -> tuple[np.ndarray, np.ndarray]:
    """Turn ``(C, D, H, W)`` to ``codes`` by exchanging and flipping axes.

    Returns:
        The array (a view) and its affine: every voxel keeps its value and its place in the patient.
    """
    change = _change(_directions(affine), codes)
    # nibabel turns the leading axes, so the channels go last for the moment
    turned = orientations.apply_orientation(np.moveaxis(array, 0, -1), change)
    return np.moveaxis(turned, -1, 0), _changed_affine(affine, change, array.shape[1:])


def reorient(scan: Scan, codes: str = CANONICAL) -> Scan:
    """A volume in another orientation; 2D images and volumes without affine stay as they are."""
    if scan.affine is None or len(scan.size) != 3 or axis_codes(scan.affine) == codes:
        return scan
    array, affine = reorient_array(scan.array, scan.affine, codes)
    return replace_scan(scan, array=array, affine=affine, spacing=voxel_sizes(affine))


def reorient_header(header: Header, codes: str = CANONICAL) -> Header:
    """What `reorient` does, for a volume whose voxels were not read."""
    if header.affine is None or len(header.size) != 3:
        return header
    # A volume that takes no memory
    stand_in = Scan(np.broadcast_to(np.uint8(0), (1, *header.size)), header.spacing, header.affine)
    turned = reorient(stand_in, codes)
    return replace(header, size=turned.size, affine=turned.affine, spacing=turned.spacing)


def through_plane(affine: np.ndarray | None, spacing: tuple[float, ...] | None) -> int:
    """The axis of ``S`` that slices of a volume are numbered along.

    The one with the clearly largest spacing; where voxels are about cubes, the one closest to feet-head, so that the
    slices are axial; the first where nothing is known.
    """
    if affine is not None:
        spacing = voxel_sizes(affine)
    if spacing is not None:
        order = np.argsort(spacing)
        if spacing[order[2]] > _ISOTROPIC * spacing[order[1]]:
            return int(order[2])
    if affine is None:
        return 0
    return next(axis for axis, code in enumerate(axis_codes(affine)) if code in "SI")


def plane_codes(affine: np.ndarray, axis: int) -> str:
    """The orientation in which ``axis`` comes first and planes are shown the usual way up."""
    return PLANES[axis_codes(affine)[axis]]


def permuted(affine: np.ndarray) -> np.ndarray:
    """The affine for array axes (z, y, x) from the one for file axes (x, y, z), or the other way round."""
    return np.asarray(affine, np.float64)[:, [2, 1, 0, 3]]


def same_grid(
    size: tuple[int, ...], affine: np.ndarray, other_size: tuple[int, ...], other: np.ndarray, tolerance: float = 0.1
) -> bool:
    """Whether two volumes cover the same voxels of the patient, in whatever axis order and direction.

    Args:
        tolerance: how far corresponding corners may lie apart, as a share of the smallest voxel size.
    """
    if sorted(size) != sorted(other_size):
        return False
    corners, others = (_corners(n, a) for n, a in ((size, affine), (other_size, other)))
    distance = np.linalg.norm(corners[:, None] - others[None], axis=-1)
    limit = tolerance * min(voxel_sizes(affine))
    return bool(distance.min(axis=0).max() <= limit and distance.min(axis=1).max() <= limit)


def _corners(size: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    index = np.array(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij")).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).T


@lru_cache(maxsize=4096)
def _change(directions: bytes, codes: str) -> np.ndarray:
    return orientations.ornt_transform(_orientation(directions), orientations.axcodes2ornt(tuple(codes)))


def _changed_affine(affine: np.ndarray, change: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.asarray(affine, np.float64) @ orientations.inv_ornt_aff(change, size)
