"""Boxes around findings: what they are, and where they lie when an image's axes are turned. 2D and 3D alike.

Their sides are parallel to the axes, in continuous pixel coordinates, in which pixel i covers [i, i + 1): a mask of
rows 3 to 7 has a box from 3.0 to 8.0. The centre of pixel i is i + 0.5; an affine maps the index i to that same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: The class of a finding that is left out of every count: neither hit nor miss, nor is a mark on it a false alarm.
IGNORED = -1
#: Millimetres where a finding's diameter is unknown, as LUNA16's official evaluation takes it.
UNKNOWN_DIAMETER = 10.0
# A turn by exchanged and flipped axes is computed through an inverse: what is this close to whole numbers is whole
_WHOLE = 1e-6


class Boxes(NamedTuple):
    """True boxes of one image.

    Attributes:
        corners: ``(n, 2 * dims)`` float64 in pixels: the lower corner in the axis order of ``S``, then the upper one.
        classes: ``(n,)`` int64, 0 .. K - 1, or ``IGNORED``.
    """

    corners: np.ndarray
    classes: np.ndarray

    @classmethod
    def empty(cls, dims: int) -> Boxes:
        """No box in an image of ``dims`` axes."""
        return cls(np.zeros((0, 2 * dims)), np.zeros(0, np.int64))


class Detections(NamedTuple):
    """Found boxes of one image: ``corners`` and ``classes`` as in `Boxes`, ``scores`` ``(n,)`` float64 in [0, 1]."""

    corners: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    @classmethod
    def empty(cls, dims: int) -> Detections:
        """Nothing found in an image of ``dims`` axes."""
        return cls(*Boxes.empty(dims), np.zeros(0))


def extents(corners: np.ndarray) -> np.ndarray:
    """``(n, 2 * dims)`` to ``(n, dims)``: pixels per axis."""
    dims = corners.shape[1] // 2
    return corners[:, dims:] - corners[:, :dims]


def centres(corners: np.ndarray) -> np.ndarray:
    """``(n, 2 * dims)`` to ``(n, dims)``, in continuous pixel coordinates."""
    dims = corners.shape[1] // 2
    return (corners[:, :dims] + corners[:, dims:]) / 2


def clipped(corners: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The part of each box inside an image of extent ``size``: ``(n, 2 * dims)``; without area if nothing is inside."""
    return np.clip(corners, 0.0, np.tile(np.asarray(size, np.float64), 2))


def turned(corners: np.ndarray, affine: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The same boxes on another grid of the same patient, for example in the axes of the file.

    Where the two grids differ by exchanged and flipped axes the result is exact and turning back gives the same boxes.
    On other grids it is the smallest box of that grid around the box.

    Args:
        corners: ``(n, 2 * dims)`` on the grid of ``affine``.
        affine: ``(dims + 1, dims + 1)``, index in the axis order of ``S`` to a common space (RAS millimetres).
        to: the other grid's, to the same space.

    Returns:
        ``(n, 2 * dims)`` float64, lower corner first.
    """
    dims = corners.shape[1] // 2
    change = np.linalg.solve(np.asarray(to, np.float64), np.asarray(affine, np.float64))
    linear, shift = change[:dims, :dims], change[:dims, dims]
    # From indices to continuous coordinates, on both sides
    shift = shift - 0.5 * linear.sum(axis=1) + 0.5
    if np.abs(linear - np.rint(linear)).max(initial=0.0) < _WHOLE and np.all(np.abs(np.rint(linear)).sum(axis=1) == 1):
        order = np.abs(linear).argmax(axis=1)
        signs = np.sign(linear[np.arange(dims), order])
        near = np.abs(shift - np.rint(shift)) < _WHOLE * (1 + np.abs(shift))
        shift = np.where(near, np.rint(shift), shift)
        low, high = (side[:, order] * signs + shift for side in (corners[:, :dims], corners[:, dims:]))
        return np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=1)
    middle = centres(corners) @ linear.T + shift
    half = extents(corners) / 2 @ np.abs(linear).T
    return np.concatenate([middle - half, middle + half], axis=1)


def around(places: np.ndarray, diameters: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The smallest boxes around spheres; a sphere is then the ellipsoid inscribed in its box.

    Args:
        places: ``(n, 3)`` centres in RAS millimetres.
        diameters: ``(n,)`` in millimetres; below 0 means unknown, and ``UNKNOWN_DIAMETER`` is taken.
        affine: ``(4, 4)``, voxel index in the axis order of ``S`` to RAS millimetres.

    Returns:
        ``(n, 6)`` float64 corners in voxels; they may reach out of the volume.
    """
    inverse = np.linalg.inv(np.asarray(affine, np.float64))
    linear = inverse[:3, :3]
    middle = np.asarray(places, np.float64).reshape(-1, 3) @ linear.T + inverse[:3, 3] + 0.5
    # A sphere of radius r reaches r times the length of the gradient of a voxel coordinate
    sizes = np.asarray(diameters, np.float64).reshape(-1, 1)
    half = np.where(sizes < 0, UNKNOWN_DIAMETER, sizes) / 2 * np.linalg.norm(linear, axis=1)
    return np.concatenate([middle - half, middle + half], axis=1)


def of_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The box of every connected component of every value of a mask.

    Pixels are connected through faces, edges and corners; touching components of different values stay apart.

    Args:
        mask: ``(*S)`` whole numbers of any type, 0 is background.

    Returns:
        ``(n, 2 * dims)`` float64 corners and ``(n,)`` int64 values, in the order of each component's first pixel.
    """
    from scipy import ndimage
    from skimage import measure

    values = np.asarray(mask)
    if values.dtype.kind not in "iub":
        values = np.asarray(values, np.int64)
    components = measure.label(values, background=0, connectivity=values.ndim)
    corners, found = [], []
    for number, place in enumerate(ndimage.find_objects(components), start=1):
        corners.append([*(side.start for side in place), *(side.stop for side in place)])
        found.append(values[place][components[place] == number][0])
    return np.array(corners, np.float64).reshape(-1, 2 * values.ndim), np.array(found, np.int64)
