"""Width of the vessel, and size of the lesion, that each pixel is in; and what of each was found."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize


@dataclass(frozen=True)
class Counts:
    """Of each range: pixels that are true, of these found; and pixels predicted whose nearest true one is of it."""

    true: np.ndarray
    found: np.ndarray
    predicted: np.ndarray


def widths(mask: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Width of what each pixel of a bool mask (*S), 2D or 3D, belongs to; 0 outside: (*S) float64.

    In pixels, or in the unit of ``spacing``, the extent of a pixel along each axis. Twice the distance from the centre
    line to the nearest pixel outside, less one pixel as it is long in that direction. Exact for straight tubes of an
    odd number of pixels along an axis; one pixel less for even ones, whose centre line is off the centre. A tube that
    leaves the image is taken to go on as it was at the border.
    """
    mask = np.asarray(mask, dtype=bool)
    sampling = (1.0,) * mask.ndim if spacing is None else tuple(spacing)
    if not mask.any():
        return np.zeros(mask.shape)
    if mask.all():
        return np.full(mask.shape, min(n * step for n, step in zip(mask.shape, sampling)))
    # Beyond the border a tube goes on as it left the image, so that its centre line does not turn there.
    margin = int(np.ceil(ndimage.distance_transform_edt(mask).max())) + 2
    solid = np.pad(mask, margin, mode="edge")
    line = (skeletonize(solid) > 0) & solid
    if not line.any():
        line = solid
    distance, outside = ndimage.distance_transform_edt(solid, sampling, return_indices=True)
    there = np.nonzero(line)
    steps = np.sqrt(sum((to[there] - own) ** 2 for to, own in zip(outside, there)))
    along = np.zeros(solid.shape)
    along[there] = 2 * distance[there] - distance[there] / steps
    nearest = ndimage.distance_transform_edt(~line, sampling, return_distances=False, return_indices=True)
    found = along[tuple(nearest)]
    return np.where(mask, found[(slice(margin, -margin),) * mask.ndim], 0.0)


def sizes(mask: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Size of the connected component that each pixel of a bool mask (*S) is in; 0 outside.

    In pixels, or in the square (cube) of the unit of ``spacing``.
    """
    labels, count_ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    number = np.bincount(labels.ravel(), minlength=count_ + 1)[labels] * np.asarray(mask, dtype=bool).astype(float)
    return number * pixel_size(spacing)


def components(truth: np.ndarray, found: np.ndarray) -> list[tuple[float, float]]:
    """Size in pixels, and share that was found, of every connected component of the truth."""
    labels, count_ = ndimage.label(truth, np.ones((3,) * truth.ndim))
    size = np.bincount(labels.ravel(), minlength=count_ + 1)[1:]
    hit = np.bincount(labels.ravel(), weights=found.ravel().astype(float), minlength=count_ + 1)[1:]
    return [(float(n), float(h / n)) for n, h in zip(size, hit)]


def pixel_size(spacing: Sequence[float] | None) -> float:
    """Area or volume of a pixel: 1 where nothing says what it is."""
    return 1.0 if spacing is None else float(np.prod(spacing))


def attributed(values: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Everywhere the value of the nearest pixel that has one (above 0): ``(*S)``; 0 where there is none at all."""
    if not (values > 0).any():
        return np.zeros(values.shape)
    nearest = ndimage.distance_transform_edt(values <= 0, spacing, return_distances=False, return_indices=True)
    return np.asarray(values[tuple(nearest)])


def placed(values: np.ndarray, edges: Sequence[float], spacing: Sequence[float] | None = None) -> np.ndarray:
    """Which range the `attributed` value of every pixel is in, uint8 (see `places_of`)."""
    return places_of(attributed(values, spacing), edges).astype(np.uint8)


def places_of(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Which of the ranges that ``edges`` part each value is in; an edge begins one."""
    # By more than rounding: three pixels of 0.1 mm are 0.3 mm wide, and not a little less; and headers keep float32.
    return np.digitize(values * (1 + 1e-6), edges)


def count(truth: np.ndarray, found: np.ndarray, places: np.ndarray, ranges_: int) -> Counts:
    """Pixels of each of so many ranges by their `placed`: a false alarm counts for what it lies next to."""
    true, hit, predicted = (np.bincount(places[mask], minlength=ranges_) for mask in (truth, truth & found, found))
    return Counts(true, hit, predicted)


def ranges(edges: Sequence[float]) -> list[str]:
    """Names of the ranges that ``edges`` part: "below 2", "2 to 4", ..., "from 13"."""
    inner = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    return [f"below {edges[0]:g}", *inner, f"from {edges[-1]:g}"]


#: What a structure is measured by, to the function that gives it for every pixel of a mask.
MEASURES = {"width": widths, "size": sizes}
