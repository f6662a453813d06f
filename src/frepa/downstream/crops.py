"""Random crops of labelled images: keyed by seed and position, so that a run is the same however it is executed."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frepa.datasets.reading import LabelledImage
from frepa.draws import Draws, sample_keys
from frepa.images.sampling import SampleStream

_CROPS = 0  # view number of the draws
_POINTS_PER_CLASS = 2048


class WorkingCase(NamedTuple):
    """A case at working size, on the device.

    planes: ``(C + 3, *S)`` float32: image channels in [0, 1], guide, class, 1. points: per class that occurs, without
    the background, positions ``(n, axes)`` int64 on the host, at most 2048 of them evenly picked.
    """

    planes: Tensor
    points: list[np.ndarray]

    @property
    def nbytes(self) -> int:
        return self.planes.nbytes

    @property
    def image(self) -> Tensor:
        return self.planes[:-3]

    @property
    def guide(self) -> Tensor:
        return self.planes[-3:-2]

    @property
    def classes(self) -> Tensor:
        return self.planes[-2]


def working_case(labelled: LabelledImage, guide: Callable[[Tensor], Tensor], device: torch.device) -> WorkingCase:
    """Move a case to the device and compute its guide there."""
    image = torch.from_numpy(labelled.image).to(device)
    classes = torch.from_numpy(labelled.classes).to(device, torch.float32)
    planes = torch.cat([image, guide(image), classes[None], torch.ones_like(classes[None])])
    points = []
    flat = labelled.classes.ravel()
    for value in np.flatnonzero(np.bincount(flat)):
        if value == 0:
            continue
        where = np.flatnonzero(flat == value)
        where = where[np.linspace(0, len(where) - 1, min(len(where), _POINTS_PER_CLASS)).astype(np.int64)]
        points.append(np.stack(np.unravel_index(where, labelled.classes.shape), axis=1))
    return WorkingCase(planes, points)


class Sized(Protocol):
    """What a cache can hold: it knows its size in bytes."""

    @property
    def nbytes(self) -> int: ...


Raw = TypeVar("Raw")
Ready = TypeVar("Ready", bound=Sized)


class CaseCache(Generic[Raw, Ready]):
    """Cases read by threads ahead of need and kept while they fit into ``limit`` bytes (least recently used go first).

    ``read(index)`` runs in a thread, ``finish(what it returned)`` where the case is asked for.
    """

    def __init__(
        self,
        read: Callable[[int], Raw],
        finish: Callable[[Raw], Ready],
        *,
        limit: int,
        workers: int,
    ) -> None:
        self._read, self._finish, self._limit = read, finish, limit
        self._pool = ThreadPoolExecutor(workers) if workers > 0 else None
        self._pending: dict[int, Future[Raw]] = {}
        self._kept: OrderedDict[int, Ready] = OrderedDict()
        self._bytes = 0

    def ahead(self, indices: Iterable[int]) -> None:
        """Start reading what is not there yet."""
        if self._pool is not None:
            for index in dict.fromkeys(indices):
                if index not in self._kept and index not in self._pending:
                    self._pending[index] = self._pool.submit(self._read, index)

    def __getitem__(self, index: int) -> Ready:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        pending = self._pending.pop(index, None)
        case = self._finish(pending.result() if pending is not None else self._read(index))
        self._kept[index] = case
        self._bytes += case.nbytes
        while self._bytes > self._limit and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
        return case

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class CropPlan:
    """How crops are drawn.

    size: per axis, in pixels. foreground: share of crops centred on a labelled pixel of a class drawn evenly among the
    case's. augment: flips along every axis, and quarter turns of the last two where they are equally long.
    """

    size: tuple[int, ...]
    seed: int
    foreground: float = 1 / 3
    augment: bool = True


class CropStream:
    """Which case each position of the run names: every case as often per epoch as crops are needed to cover it once."""

    def __init__(self, sizes: Sequence[tuple[int, ...]], crop: tuple[int, ...], seed: int) -> None:
        needed = [max(1, round(float(np.prod(size)) / float(np.prod(crop)))) for size in sizes]
        self._ends = np.cumsum(needed)
        self.length = int(self._ends[-1])
        self._stream = SampleStream(self.length, seed)

    def cases(self, positions: Sequence[int]) -> list[int]:
        """Index of the case at each position, any non-negative positions."""
        return np.searchsorted(self._ends, self._stream.at(positions), side="right").tolist()


class Crops(NamedTuple):
    """A batch: image is a list, since grey and colour cases may meet in it.

    image: B tensors ``(C, *crop)`` in [0, 1]. guide: ``(B, 1, *crop)``. classes: ``(B, *crop)`` float32 whole numbers.
    valid: ``(B, *crop)`` bool.
    """

    image: list[Tensor]
    guide: Tensor
    classes: Tensor
    valid: Tensor


class Place(NamedTuple):
    """Where a crop lies and how it is turned: first pixel per axis, axes that are flipped, quarter turns.

    Quarter turns go from the last axis but one towards the last, as ``torch.rot90(x, k, (-2, -1))`` makes them, after
    the flips.
    """

    starts: tuple[int, ...]
    flips: tuple[int, ...]
    quarters: int


def place_crops(
    sizes: Sequence[tuple[int, ...]],
    points: Sequence[list[np.ndarray]],
    positions: Sequence[int],
    plan: CropPlan,
    *,
    anywhere: bool = False,
) -> list[Place]:
    """Draw the place of the crop at each position of the run.

    Args:
        sizes: extent of each image.
        points: per image and class that occurs in it, pixels ``(n, axes)`` a crop can be laid on.
        positions: of the run; with the seed they decide everything.
        plan: how crops are drawn.
        anywhere: a point comes to lie anywhere in its crop, not at its centre.
    """
    draws = Draws(sample_keys(plan.seed, positions, _CROPS))
    axes = len(plan.size)
    where = [draws.host_uniform(f"crop.{axis}") for axis in range(axes)]
    centred, which, point = (draws.host_uniform(f"crop.{name}") for name in ("centred", "class", "point"))
    flips = [draws.host_uniform(f"crop.flip.{axis}") for axis in range(axes)]
    turns = draws.host_uniform("crop.turn")
    turnable = plan.size[-1] == plan.size[-2]
    places = []
    for row, (size, own) in enumerate(zip(sizes, points)):
        spare = [max(0, n - to) for n, to in zip(size, plan.size)]
        if centred[row] < plan.foreground and own:
            among = own[int(which[row] * len(own))]
            centre = among[int(point[row] * len(among))]
            before = [int(u[row] * to) for u, to in zip(where, plan.size)] if anywhere else [n // 2 for n in plan.size]
            starts = [min(max(0, int(c) - b), room) for c, b, room in zip(centre, before, spare)]
        else:
            starts = [min(int(u[row] * (room + 1)), room) for u, room in zip(where, spare)]
        turned = tuple(axis for axis in range(axes) if plan.augment and flips[axis][row] < 0.5)
        quarters = int(turns[row] * 4) if plan.augment and turnable else 0
        places.append(Place(tuple(starts), turned, quarters))
    return places


def cut(planes: Tensor, place: Place, size: tuple[int, ...]) -> Tensor:
    """The crop ``(C, *size)`` of ``(C, *S)`` at a place; zeros follow where the image ends before the crop does."""
    crop = planes[(slice(None), *(slice(start, start + to) for start, to in zip(place.starts, size)))]
    missing = [to - n for n, to in zip(crop.shape[1:], size)]
    if any(missing):
        crop = F.pad(crop, [n for after in reversed(missing) for n in (0, after)])
    if place.flips:
        crop = crop.flip([axis + 1 for axis in place.flips])
    return crop.rot90(place.quarters, (-2, -1)) if place.quarters else crop


def cover(planes: Tensor, crop: tuple[int, ...], view: int) -> Iterator[Tensor]:
    """Windows ``(C, *crop)`` that cover ``(C, *S)`` once, placed and turned in way number ``view``; 0 is as it lies.

    Views go through the flips of all axes and the quarter turns of the last two, and begin at other pixels, so that a
    detail comes to lie elsewhere in a window. Nothing is drawn at random.
    """
    axes = len(crop)
    flips = tuple(axis for axis in range(axes) if view >> axis & 1)
    quarters = (view >> axes) % 4 if crop[-1] == crop[-2] else 0
    starts = [_spread(n, to, view) for n, to in zip(planes.shape[1:], crop)]
    for place in np.ndindex(*(len(each) for each in starts)):
        chosen = tuple(each[at] for each, at in zip(starts, place))
        yield cut(planes, Place(chosen, flips, quarters), crop)


def _spread(size: int, crop: int, view: int) -> list[int]:
    """First pixels of as few windows as cover an axis; views begin at other pixels where there is room."""
    count = max(1, math.ceil(size / crop))
    spare = count * crop - size
    # The golden ratio spreads the beginnings of any number of views.
    first = -int(spare * ((view * 0.618034) % 1))
    return sorted({min(max(0, first + at * crop), max(0, size - crop)) for at in range(count)})


def draw_crops(cases: Sequence[WorkingCase], positions: Sequence[int], plan: CropPlan) -> Crops:
    """One crop of each case; where the case is smaller than the crop, zeros follow it and are not valid."""
    sizes = [tuple(case.planes.shape[1:]) for case in cases]
    places = place_crops(sizes, [case.points for case in cases], positions, plan)
    crops = [cut(case.planes, place, plan.size) for case, place in zip(cases, places)]
    rest = torch.stack([crop[-3:] for crop in crops])
    return Crops([crop[:-3] for crop in crops], rest[:, :1], rest[:, 1], rest[:, 2] > 0.5)
