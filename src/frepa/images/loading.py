"""Records to batches. A worker reads, scales and resizes or crops; augmentation and corruption run later, on device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from frepa.errors import InputError, nearest
from frepa.images.geometry import crop_at, per_axis, placement, resampled_affine, resize_pad
from frepa.images.intensity import ANY_WINDOW, PERCENTILES, Window, bounds, check_window, needs_pixels, scale
from frepa.images.placing import (
    check_foreground,
    crop_first,
    foreground_level,
    grid_of,
    make_crop,
    shifted_affine,
)
from frepa.images.readers.pixels import luminance
from frepa.images.sampling import Stream, uniform
from frepa.images.scan import Scan, Skipped, UnreadableScan, replace_scan
from frepa.images.source import Source
from frepa.stopping import end_with_parent

#: Gives the field of view of a record, ``(1, *S)`` bool on the record's grid, or None where it is not known.
Field = Callable[[Source, int], np.ndarray | None]
MODES = ("resize", "crop")
# Streams of `sampling.uniform`: one number per purpose
_WINDOW_STREAM, _CROP_STREAM = 1, 2


class Batch(TypedDict):
    """What the loader yields. A record that cannot be read leaves no row: ``B`` is then smaller, and may be 0.

    image: ``(B, C, *size)`` float32 in [0, 1]; C is the loader's ``channels``.
    grey: ``(B,)`` bool: the record has one channel; with three, it is repeated.
    position: place of each row in the run's sample stream.
    index: record of the source of each row.
    affine: ``(4, 4)`` of each row, indices of the row's own axes to RAS millimetres, or None where the file has none.
    inside: ``(B, 1, *size)`` bool, False where nothing was recorded: what was added around a record to fill the frame,
        its padding value, and what lies outside its field of view where that is known; None unless asked for.
    told: ``(B,)`` bool: the field of view is known, so that nobody needs to estimate it; None like ``inside``.
    skipped: records that would have been in this batch, with the reason.
    """

    image: torch.Tensor
    grey: torch.Tensor
    position: list[int]
    index: list[int]
    affine: list[np.ndarray | None]
    inside: torch.Tensor | None
    told: torch.Tensor | None
    skipped: list[Skipped]


class Row(NamedTuple):
    """A record as it is seen: ``unit (1 | 3, *size)`` float32 in [0, 1], one channel where it is grey; its affine or
    None; and ``inside (1, *size)`` bool and ``told`` as in `Batch`, or None and False.
    """

    unit: np.ndarray
    affine: np.ndarray | None
    inside: np.ndarray | None
    told: bool = False


class Preparation:
    """How a record becomes ``(C, *size)``: what `ImageDataset` and `load_images` share.

    Args:
        source: where records come from.
        size: extent per axis, or one number for all.
        mode: ``"resize"``: aspect kept, zero padding. ``"crop"``: native resolution.
        window: as in `frepa.images.intensity.bounds`; ``"any"`` draws one of the CT windows per sample.
        percentiles: as there.
        channels: 1 or 3; None takes the source's. Colour becomes luminance when it is 1.
        seed: of crop places and drawn windows, together with the position.
        centre: crop the centre instead of a drawn place.
        spacing: millimetres that scans are brought to, one number or one per axis, None for as they are. The scaled
            values are resampled over the same field of view: cubic, low-passed along axes that shrink (see
            `frepa.images.placing`). For "resize" it decides the proportions alone, and there is one resampling. A
            scan whose own spacing is unknown is left out.
        foreground: share of the crops centred on a foreground voxel, see `frepa.images.placing.crop_first`.
        inside: tell of each pixel whether it was recorded, and where the field of view is known, whether it is in it.
        field: where fields of view are known from; they are asked for with ``inside`` alone.
    """

    def __init__(
        self,
        source: Source,
        size: int | Sequence[int],
        *,
        mode: str = "resize",
        window: Window = ANY_WINDOW,
        percentiles: tuple[float, float] = PERCENTILES,
        channels: int | None = None,
        seed: int = 0,
        centre: bool = False,
        spacing: float | Sequence[float] | None = None,
        foreground: float = 0.0,
        inside: bool = False,
        field: Field | None = None,
    ) -> None:
        if mode not in MODES:
            raise InputError(f"Unknown mode {mode!r} for fitting images to a size. {nearest(mode, MODES)}")
        check_window(window)
        check_foreground(foreground, mode)
        self.size = (size,) * source.dims if isinstance(size, int) else tuple(int(n) for n in size)
        if len(self.size) != source.dims or min(self.size) < 1:
            raise InputError(f"The image size {self.size} must be {source.dims} positive numbers, or one for all axes.")
        if channels not in (None, 1, 3):
            raise InputError(f"channels is {channels}, expected 1 (grey) or 3 (colour).")
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise InputError(f"percentiles {tuple(percentiles)} must be two numbers from 0 to 100, the lower first.")
        self.source, self.mode = source, mode
        self.scaling: dict[str, Any] = {"window": window, "percentiles": percentiles}
        self.channels = source.channels if channels is None else channels
        self.seed, self.centre = int(seed), centre
        self.spacing = None if spacing is None else per_axis(spacing, source.dims)
        self.foreground = 0.0 if centre else foreground
        self.inside, self.field = inside, field

    def one(self, index: int, position: int) -> Row:
        """The record at ``index`` as it is seen at a position of the run. Raises `UnreadableScan`."""
        draw = float(uniform(self.seed, position, _WINDOW_STREAM))
        return self._crop(index, position, draw) if self.mode == "crop" else self._whole(index, draw)

    def _whole(self, index: int, draw: float) -> Row:
        scan = self.source.read(index)
        grid = self._grid(scan, index)
        unit = self._unit(scan, bounds(scan, draw=draw, **self.scaling))
        affine = scan.affine
        if affine is not None:
            place = placement(grid, self.size)
            affine = resampled_affine(affine, scan.size, place.inner)
            affine = shifted_affine(affine, [-first for first in place.offset])
        inside, field = None, self._field(index)
        if self.inside:
            inside = resize_pad(_recorded(scan, field), self.size, "nearest", proportions=grid) > 0
        return Row(resize_pad(unit, self.size, proportions=grid), affine, inside, field is not None)

    def _crop(self, index: int, position: int, draw: float) -> Row:
        """Only what the crop needs is read, where that is enough to know the bounds of the whole record."""
        known = self.source.describe(index)
        scan = None
        if known is None or needs_pixels(known, **self.scaling):
            scan = known = self.source.read(index)
        limits = bounds(known, draw=draw, **self.scaling)
        grid = self._grid(known, index)

        def read(start: Sequence[int], size: Sequence[int]) -> np.ndarray:
            if scan is None:
                return self.source.read_crop(index, start, size).array
            return scan.array[(slice(None), *(slice(first, first + n) for first, n in zip(start, size)))]

        first = crop_first(
            known,
            grid,
            self.size,
            self._where(position),
            foreground=self.foreground,
            level=foreground_level(known, limits),
            key=(self.seed, position),
            read=read,
        )
        crop = make_crop(known.size, grid, self.size, first)
        part = replace_scan(known, array=read(crop.start, crop.size))
        # What lies outside the scan is added after scaling, so that it stays 0
        middle = (0.5,) * len(self.size)
        unit = crop_at(crop.resample(self._unit(part, limits)), self.size, middle)
        affine = None if known.affine is None else crop.affine(known.affine, self.size)
        field = self._field(index)
        place = (slice(None), *(slice(first, first + n) for first, n in zip(crop.start, crop.size)))
        seen = None if field is None else field[place]
        inside = crop_at(crop.resample(_recorded(part, seen)) > 0.5, self.size, middle) if self.inside else None
        return Row(unit, affine, inside, field is not None)

    def _unit(self, scan: Scan, limits: tuple[float, float]) -> np.ndarray:
        unit = scale(scan.array, limits, padding=scan.padding)
        return luminance(unit) if self.channels == 1 else unit

    def _grid(self, scan: Scan, index: int) -> tuple[int, ...]:
        try:
            return grid_of(scan, self.spacing)
        except ValueError as error:
            raise UnreadableScan(self.source.name(index), str(error)) from None

    def _field(self, index: int) -> np.ndarray | None:
        return self.field(self.source, index) if self.inside and self.field is not None else None

    def _where(self, position: int) -> Sequence[float]:
        """Place of the crop per axis, in [0, 1)."""
        if self.centre:
            return (0.5,) * len(self.size)
        return [float(uniform(self.seed, position, axis + _CROP_STREAM)) for axis in range(len(self.size))]

    def batch(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """Records at ``indices`` as one batch, without those that cannot be read."""
        images = torch.empty(len(indices), self.channels, *self.size)
        rows = images.numpy()
        kept: list[int] = []
        grey: list[bool] = []
        affines: list[np.ndarray | None] = []
        inside = torch.empty(len(indices), 1, *self.size, dtype=torch.bool) if self.inside else None
        told = torch.zeros(len(indices), dtype=torch.bool)
        skipped: list[Skipped] = []
        for place, (index, position) in enumerate(zip(indices, positions)):
            try:
                unit, affine, recorded, known = self.one(index, position)
            except UnreadableScan as error:
                skipped.append(error.skipped(self.source.name(index)))
                continue
            rows[len(kept)] = unit  # one channel is repeated by broadcasting
            if inside is not None and recorded is not None:
                inside[len(kept)] = torch.from_numpy(recorded)
            told[len(kept)] = known
            grey.append(unit.shape[0] == 1)
            affines.append(affine)
            kept.append(place)
        return Batch(
            image=images[: len(kept)],
            grey=torch.tensor(grey, dtype=torch.bool),
            position=[int(positions[place]) for place in kept],
            index=[int(indices[place]) for place in kept],
            affine=affines,
            inside=None if inside is None else inside[: len(kept)],
            told=None if inside is None else told[: len(kept)],
            skipped=skipped,
        )


def _recorded(scan: Scan, field: np.ndarray | None) -> np.ndarray:
    """``(1, *S)`` float32, 1 where the scan has a value, not its padding value alone, and the field of view is."""
    seen = np.ones((1, *scan.array.shape[1:]), bool) if field is None else field
    if scan.padding is not None:
        seen = seen & (scan.array != scan.padding).any(axis=0, keepdims=True)
    return seen.astype(np.float32)


class ImageDataset(Dataset[Batch]):
    """Map-style dataset whose keys are positions of the sample stream, taken a batch at a time."""

    def __init__(self, preparation: Preparation, stream: Stream) -> None:
        if stream.length != len(preparation.source):
            raise ValueError(f"a stream over {stream.length} records for a source of {len(preparation.source)}")
        self.preparation, self.stream = preparation, stream

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: list[int]) -> Batch:
        # PyTorch hands the whole batch over, so rows are written where they stay
        return self.preparation.batch(self.stream.at(positions).tolist(), positions)


class PositionBatches(Sampler[list[int]]):
    """Positions of each batch of one process.

    Global batch ``b`` is positions ``start + b*B*W .. start + (b+1)*B*W - 1`` for batch size B and W processes;
    process r takes the r-th B of them. With ``drop_last`` (needed when W > 1) an incomplete last batch is left out.
    """

    def __init__(
        self,
        start_position: int,
        stop_position: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"The batch size is {batch_size}, expected 1 or more.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes")
        if world_size > 1 and not drop_last:
            raise ValueError("processes need batches of one size: drop_last=False works with world_size 1 only")
        self.start, self.stop, self.batch_size = start_position, max(start_position, stop_position), batch_size
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(self.stop - self.start, self.batch_size * self.world_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(len(self)):
            first = self.start + (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(first, min(first + self.batch_size, self.stop)))


def make_loader(
    source: Source,
    *,
    size: int | Sequence[int],
    batch_size: int,
    stream: Stream,
    stop_position: int,
    start_position: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
    drop_last: bool = True,
    prefetch_factor: int = 4,
    **how: Any,
) -> DataLoader[Batch]:
    """A loader of `Batch` over positions ``[start_position, stop_position)`` of ``stream``.

    The batches depend on source, stream, seed and positions alone: not on ``num_workers``, and resuming at a batch's
    first position gives the same batches as never having stopped. ``how`` are options of `Preparation`; see also
    `PositionBatches`.
    """
    preparation = Preparation(source, size, **how)
    options: dict[str, Any] = {"prefetch_factor": prefetch_factor} if num_workers > 0 else {}
    return DataLoader(
        ImageDataset(preparation, stream),
        batch_sampler=PositionBatches(
            start_position, stop_position, batch_size, rank=rank, world_size=world_size, drop_last=drop_last
        ),
        collate_fn=_as_is,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # Otherwise starting a loader draws from the global generator, which would make resuming inexact
        generator=torch.Generator(),
        worker_init_fn=end_with_parent,
        **options,
    )


def _as_is(batch: Any) -> Any:
    return batch


def load_images(source: Source, indices: Sequence[int], *, size: int | Sequence[int], **how: Any) -> Batch:
    """Records at ``indices`` as one batch, prepared as for training but cropped at the centre; ``position = index``.

    ``how`` are options of `Preparation`.
    """
    preparation = Preparation(source, size, centre=True, **how)
    return preparation.batch([int(index) for index in indices], [int(index) for index in indices])
