"""Records to batches. A worker reads, scales and resizes or crops; augmentation and corruption run later, on device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from frepa.errors import InputError, nearest
from frepa.images.geometry import crop_at, crop_starts, resize_pad
from frepa.images.intensity import ANY_WINDOW, PERCENTILES, Window, bounds, check_window, needs_pixels, scale
from frepa.images.readers.pixels import luminance
from frepa.images.sampling import Stream, uniform
from frepa.images.scan import Scan, Skipped, UnreadableScan, replace_scan
from frepa.images.source import Source

MODES = ("resize", "crop")
# Streams of `sampling.uniform`: one number per purpose
_WINDOW_STREAM, _CROP_STREAM = 1, 2


class Batch(TypedDict):
    """What the loader yields. A record that cannot be read leaves no row: ``B`` is then smaller, and may be 0.

    image: ``(B, C, *size)`` float32 in [0, 1]; C is the loader's ``channels``.
    grey: ``(B,)`` bool: the record has one channel; with three, it is repeated.
    position: place of each row in the run's sample stream.
    index: record of the source of each row.
    skipped: records that would have been in this batch, with the reason.
    """

    image: torch.Tensor
    grey: torch.Tensor
    position: list[int]
    index: list[int]
    skipped: list[Skipped]


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
    ) -> None:
        if mode not in MODES:
            raise InputError(f"Unknown mode {mode!r} for fitting images to a size. {nearest(mode, MODES)}")
        check_window(window)
        self.size = (size,) * source.dims if isinstance(size, int) else tuple(int(n) for n in size)
        if len(self.size) != source.dims or min(self.size) < 1:
            raise InputError(f"The image size {self.size} must be {source.dims} positive numbers, or one for all axes.")
        if channels not in (None, 1, 3):
            raise InputError(f"channels is {channels}, expected 1 (grey) or 3 (colour).")
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise InputError(f"percentiles {tuple(percentiles)} must be two numbers from 0 to 100, the lower first.")
        self.source, self.mode, self.window, self.percentiles = source, mode, window, percentiles
        self.channels = source.channels if channels is None else channels
        self.seed, self.centre = int(seed), centre

    def one(self, index: int, position: int) -> np.ndarray:
        """``(1 | 3, *size)`` float32 in [0, 1]; one channel for a grey record. Raises `UnreadableScan`."""
        draw = float(uniform(self.seed, position, _WINDOW_STREAM))
        if self.mode == "crop":
            scan, limits = self._cut(index, self._where(position), draw)
        else:
            scan = self.source.read(index)
            limits = bounds(scan, window=self.window, percentiles=self.percentiles, draw=draw)
        unit = scale(scan.array, limits, padding=scan.padding)
        if self.channels == 1:
            unit = luminance(unit)
        return crop_at(unit, self.size, (0.5,) * len(self.size)) if self.mode == "crop" else resize_pad(unit, self.size)

    def _where(self, position: int) -> Sequence[float]:
        """Place of the crop per axis, in [0, 1)."""
        if self.centre:
            return (0.5,) * len(self.size)
        return [float(uniform(self.seed, position, axis + _CROP_STREAM)) for axis in range(len(self.size))]

    def _cut(self, index: int, where: Sequence[float], draw: float) -> tuple[Scan, tuple[float, float]]:
        """The part of a record inside the crop, and the bounds of the whole record.

        What lies outside the image is added after scaling, so that it stays 0.
        """
        options: dict[str, Any] = {"window": self.window, "percentiles": self.percentiles}
        known = self.source.describe(index)
        if known is not None and not needs_pixels(known, **options):
            size = [min(n, to) for n, to in zip(known.size, self.size)]
            scan = self.source.read_crop(index, crop_starts(known.size, size, where), size)
            return scan, bounds(known, draw=draw, **options)
        scan = self.source.read(index)
        size = [min(n, to) for n, to in zip(scan.size, self.size)]
        return replace_scan(scan, array=crop_at(scan.array, size, where)), bounds(scan, draw=draw, **options)

    def batch(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """Records at ``indices`` as one batch, without those that cannot be read."""
        images = torch.empty(len(indices), self.channels, *self.size)
        rows = images.numpy()
        kept: list[int] = []
        grey: list[bool] = []
        skipped: list[Skipped] = []
        for place, (index, position) in enumerate(zip(indices, positions)):
            try:
                unit = self.one(index, position)
            except UnreadableScan as error:
                skipped.append(error.skipped(self.source.name(index)))
                continue
            rows[len(kept)] = unit  # one channel is repeated by broadcasting
            grey.append(unit.shape[0] == 1)
            kept.append(place)
        return Batch(
            image=images[: len(kept)],
            grey=torch.tensor(grey, dtype=torch.bool),
            position=[int(positions[place]) for place in kept],
            index=[int(indices[place]) for place in kept],
            skipped=skipped,
        )


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
    mode: str = "resize",
    window: Window = ANY_WINDOW,
    percentiles: tuple[float, float] = PERCENTILES,
    channels: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    seed: int = 0,
    pin_memory: bool = False,
    drop_last: bool = True,
    prefetch_factor: int = 4,
) -> DataLoader[Batch]:
    """A loader of `Batch` over positions ``[start_position, stop_position)`` of ``stream``.

    The batches depend on source, stream, seed and positions alone: not on ``num_workers``, and resuming at a batch's
    first position gives the same batches as never having stopped. See `Preparation` and `PositionBatches`.
    """
    preparation = Preparation(
        source, size, mode=mode, window=window, percentiles=percentiles, channels=channels, seed=seed
    )
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
        **options,
    )


def _as_is(batch: Any) -> Any:
    return batch


def load_images(
    source: Source,
    indices: Sequence[int],
    *,
    size: int | Sequence[int],
    mode: str = "resize",
    window: Window = ANY_WINDOW,
    percentiles: tuple[float, float] = PERCENTILES,
    channels: int | None = None,
    seed: int = 0,
) -> Batch:
    """Records at ``indices`` as one batch, prepared as for training but cropped at the centre; ``position = index``."""
    preparation = Preparation(
        source, size, mode=mode, window=window, percentiles=percentiles, channels=channels, seed=seed, centre=True
    )
    return preparation.batch([int(index) for index in indices], [int(index) for index in indices])
