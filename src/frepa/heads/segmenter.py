"""Segmentation heads on frozen maps: a linear one in closed form, and a convolutional one that starts from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepa.encoders.contract import StageShape
from frepa.errors import InputError
from frepa.heads.networks import UNetBody
from frepa.heads.reading import channels_last, fitted, fitting, from_depth, grid_channels, on_last_grid, to_depth
from frepa.heads.ridge import Ridge
from frepa.heads.standardise import Standardise

#: ``linear`` is the closed-form probe; ``conv`` adds trained convolutions to it, and ``unet`` a network on the pixels.
HEADS = ("conv", "linear", "unet")
#: Features of a position that the linear part reads at most: the sums of its regression are this number squared.
MOST_FEATURES = 4096
_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_LINEAR_MODE = {2: "bilinear", 3: "trilinear"}
# Where the linear part reads several maps, what trains on top has to overrule it where it is wrong, which the Dice
# loss allows only while answers are soft: a probability of 1 has at most this logit.
_SOFT = 2.0
#: The linear part's rate then, as a share of the rate of the rest: one step of Adam moves the answer of a linear map by
#: the rate times its inputs, which are thousands, and threw it about (docs/results/heads.md).
DIRECT_SHARE = 0.02
# Channels of the first level of the U-Net on lifted planes.
_WIDTH = 16
_MAX_WIDTH = 256
# Statistics are taken over at least this many channels: with fewer, the norm would wash out the image's brightness.
_CHANNELS_PER_NORM_GROUP = 8


class BlockMap(nn.Module):
    """One affine map from a position, or from it and its neighbours, to its block of pixels: (B, C, *s) to (B, K, *S).

    Args:
        channels: C.
        stride: pixels of a block, per axis.
        outputs: K.
        reach: positions per axis that are looked at, odd; beyond the border is the border.
    """

    def __init__(self, channels: int, stride: Sequence[int], outputs: int, *, reach: int = 1) -> None:
        super().__init__()
        self.stride, self.outputs, self.reach = tuple(stride), outputs, reach
        dims, block = len(self.stride), math.prod(self.stride)
        self.weight = nn.Parameter(torch.zeros(outputs * block, channels, *(reach,) * dims))
        self.bias = nn.Parameter(torch.zeros(outputs * block))

    @torch.no_grad()
    def set(self, weight: Tensor, bias: Tensor) -> None:
        """Take a regression's weight (reach^axes * C, K * block), as ``ridge.neighbourhood`` orders it, and bias."""
        dims = len(self.stride)
        own = weight.view(*(self.reach,) * dims, -1, weight.shape[1])
        self.weight.copy_(own.permute(dims + 1, dims, *range(dims)))
        self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *s) to (B, K, *(s * stride))."""
        dims, side = len(self.stride), self.reach // 2
        if side:
            x = F.pad(x, (side,) * (2 * dims), mode="replicate")
        apply: Any = F.conv2d if dims == 2 else F.conv3d
        return from_depth(apply(x, self.weight, self.bias), self.stride)


class SegmentationHead(nn.Module):
    """Frozen maps to class scores: ``head(maps, size) -> logits (B, classes, *size)``.

    Maps are standardised by the training part's statistics. ``direct`` reads every position linearly, from as many maps
    as give at most ``MOST_FEATURES`` features together (see ``reading.fitting``); ``conv`` adds to it convolutions that
    go up from the last map, and a U-Net on planes lifted from all maps (see ``Body``); ``unet`` a U-Net on maps of full
    resolution. Either starts at zero, so that the head starts as the linear one.

    Args:
        shapes: of the maps, the last map last (see ``reading.map_shapes``).
        classes: number of classes, background included.
        kind: one of ``HEADS``.
        reach: positions per axis the linear map looks at.
        before: channels of what is standardised before blocks that train with the head make the map (``before``); the
            map itself is then taken as it is.
        width: channels at full resolution; None is 16, or 8 in volumes but for the U-Net of ``conv``.
        planes: that ``conv`` lifts each coarse map to.
        multiple: see ``networks.UNetBody``.
    """

    def __init__(
        self,
        shapes: Sequence[StageShape],
        classes: int,
        *,
        kind: str = "conv",
        reach: int = 1,
        before: int | None = None,
        width: int | None = None,
        planes: int = 8,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.before = None if before is None else Standardise(before)
        self.shapes = tuple(StageShape(int(n), tuple(int(step) for step in stride)) for n, stride in shapes)
        self.classes, self.kind, self.reach, self.width, self.planes = classes, kind, reach, width, planes
        self.multiple = multiple
        self.stride = self.shapes[-1].stride
        self.standardise = nn.ModuleList([Standardise(shape.channels) for shape in self.shapes])
        self.read = fitting(self.shapes, MOST_FEATURES // reach ** len(self.stride))
        self.direct = BlockMap(grid_channels(self.read_shapes), self.stride, classes, reach=reach)
        self.body: Body | UNetBody | None = None
        if kind == "conv":
            self.body = Body(self.shapes, classes, planes=planes, width=width, multiple=multiple)
        elif kind == "unet":
            if any(max(shape.stride) > 1 for shape in self.shapes):
                raise InputError(
                    "--head unet is a network of its own that needs every pixel: give --encoder pixels:2d (or "
                    "pixels:3d), or another encoder whose map has full resolution; or --head conv."
                )
            channels = sum(shape.channels for shape in self.shapes)
            self.body = UNetBody(channels, classes, len(self.stride), width=width, multiple=multiple)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build it again; plain JSON values."""
        before = None if self.before is None else len(self.before.mean)
        shapes = [[shape.channels, list(shape.stride)] for shape in self.shapes]
        return {
            "shapes": shapes, "classes": self.classes, "kind": self.kind, "reach": self.reach, "before": before,
            "width": self.width, "planes": self.planes, "multiple": self.multiple,
        }  # fmt: skip

    @property
    def read_shapes(self) -> list[StageShape]:
        """Shapes of the maps that the linear part reads."""
        return [self.shapes[place] for place in self.read]

    def grid(self, maps: Sequence[Tensor]) -> Tensor:
        """What the linear part reads of all maps, on the last one's grid."""
        return on_last_grid([maps[place] for place in self.read], self.read_shapes)

    @property
    def statistics(self) -> list[Standardise]:
        """What standardises each map."""
        return [layer for layer in self.standardise if isinstance(layer, Standardise)]

    def standardised(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps with mean 0 and deviation 1 per channel over the training part."""
        return [layer(item) for layer, item in zip(self.standardise, maps)]

    def forward(self, maps: Sequence[Tensor], size: tuple[int, ...]) -> Tensor:
        """Maps of a batch to logits (B, classes, *size); ``size`` is the input's, before the encoder padded it."""
        full = tuple(n * step for n, step in zip(maps[-1].shape[2:], self.stride))
        if len(size) != len(full) or any(asked > there for asked, there in zip(size, full)):
            raise InputError(
                f"a dense map of {tuple(maps[-1].shape[2:])} positions at stride {self.stride} covers {full} pixels, "
                f"and an output of {tuple(size)} is asked for."
            )
        own = self.standardised(maps)
        scores = self.direct(self.grid(own))
        if isinstance(self.body, Body):
            scores = scores + self.body(own, scores)
        elif self.body is not None:
            scores = scores + self.body(own)
        return scores[(..., *(slice(0, length) for length in size))]

    @property
    def overruled(self) -> bool:
        """The linear part was solved on several maps, and something trains on top: it is softened, and moves slowly."""
        return self.body is not None and self.before is None and len(self.shapes) > 1

    def kernels(self) -> list[nn.Parameter]:
        """Weights of what trains on top, but for the maps that lift planes.

        They are the largest matrices and would take two fifths of Muon's time, and learn as well by Adam.
        """
        if self.body is None:
            return []
        lifts = (layer for layer in self.body.modules() if isinstance(layer, BlockMap))
        left = {id(weight) for lift in lifts for weight in lift.parameters()}
        return [weight for weight in self.body.parameters() if id(weight) not in left]

    def linear_state(self) -> dict[str, Tensor]:
        """The tensors that the closed form decides: statistics and the linear part, by name; copies."""
        return {
            name: t.clone() for name, t in self.state_dict().items() if name.startswith(("standardise.", "direct."))
        }

    def start_from(self, ridge: Ridge, offsets: Tensor) -> float:
        """Let the linear part answer what a ridge regression of the foreground classes does, as logits.

        Returns the logit that a probability of 1 has.

        Args:
            ridge: outputs are (classes - 1) * block, the probability of each foreground class.
            offsets: (classes,) added to the probabilities before the largest is taken; 0 for the background.
        """
        block = math.prod(self.stride)
        weight = ridge.weight.unflatten(1, (self.classes - 1, block))
        bias = ridge.bias.unflatten(0, (self.classes - 1, block))
        weight = torch.cat([-weight.sum(1, keepdim=True), weight], 1)
        bias = torch.cat([1 - bias.sum(0, keepdim=True), bias], 0) + offsets.to(bias)[:, None]
        # Under two normal classes of equal spread the log odds are the regression's answer over its residual variance.
        residual = ridge.residual.unflatten(0, (self.classes - 1, block)).mean(1)
        mean = float((residual.sum() + residual.mean()) / self.classes)
        scale = 1 / (2 * max(mean, 1e-4))
        self.direct.set((weight * scale).flatten(1), (bias * scale).flatten())
        return scale

    @torch.no_grad()
    def soften(self, scale: float) -> None:
        """Make the answers of what is `overruled` soft; the classes of pixels stay the same.

        ``scale`` is what ``start_from`` returned.
        """
        for parameter in self.direct.parameters():
            parameter.mul_(min(1.0, _SOFT / scale))


class Body(nn.Module):
    """What ``conv`` trains: a way up from the coarse map, and a way across at full resolution; their sum.

    The first learns soon what follows from what lies around (where in an organ a voxel is), and very slowly where
    inside a position a fine detail lies; the second is the other way round (docs/results/heads.md).
    """

    def __init__(
        self, shapes: Sequence[StageShape], classes: int, *, planes: int, width: int | None = None, multiple: int = 1
    ) -> None:
        super().__init__()
        self.rising = Rising(shapes, classes, width=width)
        self.lifted = Lifted(shapes, classes, planes=planes, width=width, multiple=multiple)

    def forward(self, maps: Sequence[Tensor], scores: Tensor) -> Tensor:
        """Standardised maps and the linear part's scores (B, classes, *S) to what is added to these."""
        return self.rising(maps) + self.lifted(maps, scores)


class Rising(nn.Module):
    """Convolutions that go up from standardised maps to full resolution; the last one starts at zero.

    The last map, and those no finer, are projected together; one upsampling per factor 2 of the stride, a 3 x 3
    convolution in each; a finer map joins where the resolution is its own. A stride that is no power of two ends with a
    linear interpolation.
    """

    def __init__(self, shapes: Sequence[StageShape], classes: int, *, width: int | None = None) -> None:
        super().__init__()
        stride = shapes[-1].stride
        self.stride, dims = stride, len(stride)
        halvings = [step.bit_length() - 1 for step in stride]
        count = max(halvings)
        if width is None:
            width = 8 if dims == 3 and count else 16
        widths = [min(_MAX_WIDTH, width * 2**level) for level in range(count, -1, -1)]
        # An axis with fewer factors of two joins in the last stages, where the map is finest.
        self.factors = [tuple(2 if count - index <= steps else 1 for steps in halvings) for index in range(count)]
        self.joins = _joins([shape.stride for shape in shapes], stride, self.factors)
        self.lateral = nn.ModuleList(
            _CONV[dims](shape.channels, widths[at], 1) for shape, at in zip(shapes, self.joins)
        )
        # Of a volume the convolutions end a step short of full resolution, where nothing joins: they would cost there
        # more than all others together.
        short = dims == 3 and count > 0 and count not in self.joins
        self.refine = nn.ModuleList(
            nn.Identity() if short and level == count else _refine(dims, one) for level, one in enumerate(widths)
        )
        self.up = nn.ModuleList(_CONV[dims](wide, narrow, 1) for wide, narrow in itertools.pairwise(widths))
        self.output = _CONV[dims](widths[-1], classes, 3, padding=1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Standardised maps to (B, classes, *(last map's size * stride))."""
        mode = _LINEAR_MODE[len(self.stride)]
        size, x = tuple(maps[-1].shape[2:]), torch.zeros((), device=maps[-1].device)
        for level, refine in enumerate(self.refine):
            if level:
                size = tuple(n * factor for n, factor in zip(size, self.factors[level - 1]))
                x = F.interpolate(channels_last(self.up[level - 1](x)), size=size, mode="nearest")
            for item, lateral, at in zip(maps, self.lateral, self.joins):
                if at == level:
                    own = lateral(item)
                    if own.shape[2:] != size:
                        own = F.interpolate(own, size=size, mode=mode, align_corners=False)
                    x = x + own
            x = refine(channels_last(x))
        full = tuple(n * step for n, step in zip(maps[-1].shape[2:], self.stride))
        if size != full:
            x = F.interpolate(x, size=full, mode=mode, align_corners=False)
        return self.output(x)


def _joins(strides: Sequence[tuple[int, ...]], last: tuple[int, ...], factors: Sequence[tuple[int, ...]]) -> list[int]:
    """Level of the body at which each map joins: the first whose positions are no larger than the map's."""
    levels = [tuple(float(step) for step in last)]
    for factor in factors:
        levels.append(tuple(step / part for step, part in zip(levels[-1], factor)))
    return [
        next((at for at, level in enumerate(levels) if max(a / b for a, b in zip(level, own)) <= 1), len(factors))
        for own in strides
    ]


def _refine(dims: int, width: int) -> nn.Sequential:
    norm = nn.GroupNorm(max(1, width // _CHANNELS_PER_NORM_GROUP), width)
    return nn.Sequential(nn.GELU(), _CONV[dims](width, width, 3, padding=1), norm, nn.GELU())


class Lifted(nn.Module):
    """A U-Net on planes lifted from standardised maps: (B, classes, *S), nothing at first.

    A coarse map is lifted by one linear map from a position to its block of each plane; what has every pixel already
    joins as it is, and so do the scores of the linear part. A U-Net on these finds fine structures within hundreds of
    steps.

    In volumes the planes have half the resolution along every axis whose strides allow it, and the voxels of a cell are
    channels: at full resolution the U-Net would cost several times as much.
    """

    def __init__(
        self, shapes: Sequence[StageShape], classes: int, *, planes: int, width: int | None = None, multiple: int = 1
    ) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        dims = len(shapes[-1].stride)
        coarse = [shape.stride for shape in shapes if max(shape.stride) > 1]
        even = (all(stride[axis] % 2 == 0 for stride in coarse) for axis in range(dims))
        self.cell = tuple(2 if dims == 3 and fits else 1 for fits in even)
        self.lift = nn.ModuleList()
        channels = classes * math.prod(self.cell)
        for shape in shapes:
            if all(own <= to for own, to in zip(shape.stride, self.cell)):
                self.lift.append(nn.Identity())
                channels += shape.channels * math.prod(to // own for own, to in zip(shape.stride, self.cell))
                continue
            lift = BlockMap(shape.channels, [own // to for own, to in zip(shape.stride, self.cell)], planes)
            # Planes of variance 1, of features of variance 1.
            nn.init.normal_(lift.weight, std=shape.channels**-0.5)
            self.lift.append(lift)
            channels += planes
        wide = classes * math.prod(self.cell)
        self.network = UNetBody(channels, wide, dims, width=width or _WIDTH, multiple=multiple)

    def forward(self, maps: Sequence[Tensor], scores: Tensor) -> Tensor:
        """Standardised maps and the linear part's scores (B, classes, *S) to what is added to these."""
        size = tuple(scores.shape[2:])
        grid = tuple(-(-n // to) for n, to in zip(size, self.cell))
        whole = [n * to for n, to in zip(grid, self.cell)]
        planes = [to_depth(fitted(scores, whole), self.cell)]
        for shape, item, lift in zip(self.shapes, maps, self.lift):
            if isinstance(lift, BlockMap):
                planes.append(fitted(lift(item), grid))
            else:
                parts = [to // step for step, to in zip(shape.stride, self.cell)]
                planes.append(to_depth(fitted(item, [n * part for n, part in zip(grid, parts)]), parts))
        return fitted(from_depth(self.network(planes), self.cell), size)
