"""The images of an analysis: parts of equal size, to fit on and to look at, the same for every encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from frepa.analysis.contract import Study
from frepa.corruption.guide import luminance
from frepa.datasets.opening import annotations_of, open_source, wrong_axes
from frepa.datasets.stacks import BY_PATIENT
from frepa.downstream.division import divide, groups_of
from frepa.downstream.fitting import read_ahead
from frepa.downstream.sharing import content
from frepa.encoders.contract import per_axis
from frepa.errors import InputError
from frepa.images.geometry import placement, resize
from frepa.images.intensity import to_unit
from frepa.images.scan import Scan, UnreadableScan
from frepa.images.source import Source

Item = TypeVar("Item")

#: Side of the parts that are looked at, in pixels, unless the user says otherwise.
CROP = {2: 128, 3: 48}
# Of an image no more parts than this: many images say more than many parts of one.
_MOST_PARTS = 16
# Standard deviation below which a part shows nothing: beside a field of view, say.
_EMPTY = 0.005
# Headers that are looked at to know how large images are.
_HEADERS = 64


@dataclass(frozen=True)
class Views:
    """Parts of images.

    Attributes:
        fit, test: batches (B, C, *S) float32 in [0, 1], all of one size; of different images, and of different
            patients where they are known.
        names: the image each part of ``test`` is of.
        size: S.
    """

    fit: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    names: tuple[str, ...]
    size: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, int]:
        """Parts to fit on, and to look at."""
        return sum(map(len, self.fit)), sum(map(len, self.test))


def open_views(study: Study, *, fit: int = 200, test: int = 100, least: int = 1, crop: int | None = None) -> Views:
    """Read the parts of images that an analysis looks at.

    Where nothing is fitted all images are looked at. Else the source's training (and validation) part is for fitting
    and its test part is looked at; a source without parts is divided by patient. Of each image as many non-overlapping
    parts as needed, evenly spread over it. Images smaller than a part are continued by their mirror image, so that no
    edge is made.

    Args:
        study: with its encoders, whose strides divide the parts' size.
        fit, test: most parts of each, unless the study says how many; 0 to fit on are none, whatever it says.
        crop: side of the parts, unless the study says so; by default `CROP`.
        least: fewest to fit on that will do; to look at, one will.

    Raises:
        InputError: nothing there, images of another number of axes, or too few of them.
    """
    source = _opened(study)
    study.names.learn(source)
    fitting, looking = _divided(source, study) if fit else (np.empty(0, int), np.arange(len(source)))
    size = _size(source, study, study.crop_size or crop or CROP[study.dims])
    channels = source.channels
    found: list[list[Tensor]] = []
    names: list[str] = []
    unreadable = empty = 0
    for records, most in ((fitting, (study.images or fit) if fit else 0), (looking, study.images or test)):
        parts: list[np.ndarray] = []
        own: list[str] = []
        if not most:
            found.append([])
            continue
        wanted = min(_MOST_PARTS, max(1, -(-most // max(1, len(records)))))
        chosen = spread(records.tolist(), most)
        reading = read_ahead(lambda record: _read(source, record), chosen, study.num_workers)
        for record, scan in zip(chosen, study.each(reading, "Reading", len(chosen))):
            if scan is None or len(parts) >= most:
                unreadable += scan is None
                continue
            unit = to_unit(scan, window=study.window)
            cut = parts_of(_sized(unit, study.image_size), size, min(wanted, most - len(parts)))
            shown = [part for part in cut if part.std() > _EMPTY]
            empty += len(cut) - len(shown)
            parts += [_channels(part, channels) for part in shown]
            own += [source.name(record)] * len(shown)
        needed = 1 if found else least
        if len(parts) < needed:
            raise InputError(
                f"{study.source}: {len(parts)} readable images (or parts of images) are left "
                f"{'to look at' if found else 'to fit on'}, and at least {needed} are needed. Name a source with more."
            )
        stacked = torch.from_numpy(np.stack(parts)).to(study.device)
        found.append(list(stacked.split(study.batch_size)))
        names = own
    if unreadable:
        study.notes.append(f"{unreadable:,} images cannot be read and are left out; frepa check says why.")
    if empty:
        study.notes.append(f"{empty:,} parts of images show nothing (all of one value) and are left out.")
    views = Views(tuple(found[0]), tuple(found[1]), tuple(names), size)
    study.parts.know(views.size, [content(images) for images in (*views.fit, *views.test)])
    study.inputs["views"] = {"size": list(size), "fit": views.counts[0], "test": views.counts[1], "channels": channels}
    return views


def spread(items: Sequence[Item], most: int | None) -> list[Item]:
    """At most so many of the items, evenly spread: the first ones are often all of one class, or of one patient."""
    if most is None or most >= len(items):
        return list(items)
    return [items[place] for place in np.linspace(0, len(items) - 1, most).round().astype(int)]


def parts_of(image: np.ndarray, size: Sequence[int], most: int) -> list[np.ndarray]:
    """Non-overlapping parts (C, *size) of an image (C, *S), at most so many, evenly spread; a single one is central."""
    missing = [max(0, to - n) for n, to in zip(image.shape[1:], size)]
    if any(missing):
        image = np.pad(image, [(0, 0), *((0, n) for n in missing)], mode="symmetric")
    counts = [n // to for n, to in zip(image.shape[1:], size)]
    while math.prod(counts) > most:  # fewer along the axis that has most
        counts[int(np.argmax(counts))] -= 1
    found = []
    for place in np.ndindex(*counts):
        # Equal gaps before, between and after the parts
        starts = [
            round((number + 1) * (n - count * to) / (count + 1)) + number * to
            for number, n, to, count in zip(place, image.shape[1:], size, counts)
        ]
        found.append(image[(slice(None), *(slice(start, start + to) for start, to in zip(starts, size)))])
    return found


def _opened(study: Study) -> Source:
    try:
        return open_source(study.source, dims=study.dims)
    except InputError as error:
        try:
            open_source(study.source, dims=5 - study.dims)
        except InputError:
            raise error from None
        raise InputError(f"{study.source}: {wrong_axes(study.dims)}") from None


def _divided(source: Source, study: Study) -> tuple[np.ndarray, np.ndarray]:
    """Records to fit on, and to look at."""
    known = annotations_of(source)
    splits = known.splits if None not in known.splits else [None] * len(source)
    groups, grouped = groups_of(known, range(len(source)))
    parts, note, _ = divide(study.source, splits, groups, BY_PATIENT, study.seed, grouped=grouped)
    study.inputs["split"] = note
    looked = np.asarray([part == "test" for part in parts])
    return np.flatnonzero(~looked), np.flatnonzero(looked)


def _size(source: Source, study: Study, asked: int) -> tuple[int, ...]:
    """Extent of the parts: as asked, no more than the images, and whole positions of every encoder."""
    sizes: list[Sequence[int]] = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), _HEADERS)).astype(int)).tolist():
        try:
            extent = source.header(index).size
        except UnreadableScan:
            continue
        sizes.append(extent if study.image_size is None else placement(extent, [study.image_size] * study.dims).inner)
    middle = np.median(np.asarray(sizes or [[asked] * study.dims]), axis=0).astype(int).tolist()
    steps = [1] * study.dims
    for subject in study.subjects:
        own = zip(*(per_axis(value, study.dims) for value in (subject.encoder.stride, subject.encoder.size_multiple)))
        steps = [math.lcm(step, *both) for step, both in zip(steps, own)]
    size = tuple(max(step, min(asked, n) // step * step) for n, step in zip(middle, steps))
    if any(n > 4 * asked for n in size):
        raise InputError(
            f"The encoders' positions have no size of less than {' x '.join(map(str, steps))} pixels in common, and "
            f"parts of {asked} were asked for. Look at them one by one, or give a larger --crop-size."
        )
    return size


def _read(source: Source, record: int) -> Scan | None:
    try:
        return source.read(record)
    except UnreadableScan:
        return None


def _channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey repeated, or colour as its luminance, to so many channels."""
    if image.shape[0] > channels:
        image = luminance(torch.from_numpy(np.ascontiguousarray(image))[None]).numpy()
    return np.broadcast_to(image, (channels, *image.shape[1:]))


def _sized(image: np.ndarray, side: int | None) -> np.ndarray:
    """An image (C, *S) with that longer side."""
    if side is None:
        return image
    return resize(image, placement(image.shape[1:], [side] * (image.ndim - 1)).inner)
