"""What of an encoder a head reads: its last map, all its maps, or these and the image; brought to one grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from frepa.encoders.contract import Encoder, StageShape, pad_to_multiple, per_axis
from frepa.errors import InputError, nearest

#: ``last`` is the encoder's dense map alone, for comparisons of encoders; the others are for the best result.
FEATURES = ("last", "pyramid", "pyramid+image")
_MODE = {2: "bilinear", 3: "trilinear"}


def check_features(features: str) -> None:
    """Raise InputError unless ``features`` is one of ``FEATURES``."""
    if features not in FEATURES:
        raise InputError(f"--features {features}: not known. {nearest(features, FEATURES)}")


def map_shapes(encoder: Encoder, features: str) -> tuple[StageShape, ...]:
    """Channels and strides of what :func:`read_maps` gives; the encoder's last map comes last."""
    if features == "last":
        return encoder.stage_shapes[-1:]
    image = (StageShape(encoder.in_channels, (1,) * encoder.dims),) if features == "pyramid+image" else ()
    return (*image, *encoder.stage_shapes)


def read_maps(encoder: Encoder, inputs: Tensor, features: str) -> list[Tensor]:
    """Maps of inputs (B, in_channels, *S) as ``encoder.prepare_input`` makes them; all cover the padded input.

    Of stacks the one map is what the frozen part makes of every slice.
    """
    if features == "last":
        return [encoder.encode_frozen(inputs).dense]
    maps = encoder.stages(inputs)
    if features == "pyramid+image":
        maps = [pad_to_multiple(inputs, per_axis(encoder.size_multiple, encoder.dims)), *maps]
    return maps


def default_features(encoder: Encoder) -> str:
    """What a head reads unless it is told: everything where the last map is coarse, else the last map.

    A map of full resolution comes from a U-shaped trunk, which has joined its stages in it already.
    """
    coarse = max(encoder.stage_shapes[-1].stride) > 1
    return "pyramid+image" if coarse and not encoder.stacks else "last"


def fitting(shapes: Sequence[StageShape], most: int) -> tuple[int, ...]:
    """Places of the maps whose features on the last grid are at most ``most`` together, the last map always.

    Maps are taken from the last to the first; one that does not fit any more is left out.
    """
    kept, used = [len(shapes) - 1], grid_channels(shapes[-1:])
    for place in range(len(shapes) - 2, -1, -1):
        more = grid_channels([shapes[place], shapes[-1]]) - grid_channels(shapes[-1:])
        if used + more <= most:
            kept.append(place)
            used += more
    return tuple(sorted(kept))


def grid_channels(shapes: Sequence[StageShape]) -> int:
    """Channels of :func:`on_last_grid`."""
    last = shapes[-1].stride
    return sum(shape.channels * math.prod(_finer(shape.stride, last)) for shape in shapes)


def on_last_grid(maps: Sequence[Tensor], shapes: Sequence[StageShape]) -> Tensor:
    """All maps on the last one's grid, (B, grid_channels, *s): nothing of a finer map is lost.

    A finer map gives each position all of its own positions there, side by side as channels; a coarser one is
    interpolated.
    """
    size, last = maps[-1].shape[2:], shapes[-1].stride
    found = []
    for item, shape in zip(maps, shapes):
        parts = _finer(shape.stride, last)
        if math.prod(parts) > 1:
            for axis, (n, part) in enumerate(zip(size, parts), start=2):
                item = item.narrow(axis, 0, n * part)
            item = to_depth(item, parts)
        if item.shape[2:] != size:
            item = F.interpolate(item, size=size, mode=_MODE[len(size)], align_corners=False)
        found.append(item)
    return torch.cat(found, dim=1) if len(found) > 1 else found[0]


def to_depth(x: Tensor, factor: Sequence[int]) -> Tensor:
    """(B, C, *S) to (B, C * prod(factor), *(S / factor)): each cell's positions become channels, C slowest."""
    axes = x.ndim - 2
    for axis, part in enumerate(factor):
        x = x.unflatten(2 + 2 * axis, (-1, part))
    order = [0, 1, *range(3, 3 + 2 * axes, 2), *range(2, 2 + 2 * axes, 2)]
    return x.permute(order).flatten(1, 1 + axes)


def from_depth(x: Tensor, factor: Sequence[int]) -> Tensor:
    """The inverse of :func:`to_depth`."""
    axes = x.ndim - 2
    x = x.unflatten(1, (-1, *factor))
    order = [0, 1, *(place for axis in range(axes) for place in (2 + axes + axis, 2 + axis))]
    x = x.permute(order)
    for axis in range(axes):
        x = x.flatten(2 + axis, 3 + axis)
    return x


def fitted(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, *s) cut at the end of each axis to ``size``, or grown to it by its last values.

    Trunks round a map's extent up, so that it may reach further than the last map's blocks together; an odd volume is
    no whole number of cells.
    """
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, 0, min(length, x.shape[axis]))
    missing = [to - n for n, to in zip(x.shape[2:], size)]
    if not any(missing):
        return x
    return F.pad(x, [n for after in reversed(missing) for n in (0, after)], mode="replicate")


def channels_last(x: Tensor) -> Tensor:
    """(B, C, *S) with the channels of a position side by side where a convolution is faster for it: on a CPU.

    In bfloat16 that holds for volumes only; what a GPU is given stays as it is.
    """
    if x.device.type != "cpu" or (x.ndim == 4 and torch.is_autocast_enabled("cpu")):
        return x
    return x.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)


def _finer(stride: Sequence[int], last: Sequence[int]) -> tuple[int, ...]:
    """Positions of a map per position of the last, per axis; 1 where it is coarser, or does not divide."""
    return tuple(to // own if to % own == 0 else 1 for own, to in zip(stride, last))
