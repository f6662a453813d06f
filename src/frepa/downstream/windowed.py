"""What a segmenter and a detector have in common: a frozen encoder's dense map of windows of an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frepa.downstream.crops import CropPlan
from frepa.downstream.frozen import HeadOnFrozen
from frepa.downstream.options import TaskOptions, check_share
from frepa.encoders.contract import Encoder, per_axis
from frepa.encoders.feature_cache import FeatureCache
from frepa.errors import InputError
from frepa.heads.standardise import Moments, constant_channels
from frepa.images.geometry import placement
from frepa.images.intensity import Window
from frepa.images.readers.pixels import check_extent
from frepa.memory import check_batch


@dataclass(frozen=True, kw_only=True)
class WindowOptions(TaskOptions):
    """What the verbs are told whose heads see windows of an image.

    Attributes:
        mask_threshold: mask values above it are foreground; None looks at the values.
        crop_size: side of crops and windows in pixels, or one per axis as a list or "8,48,48"; None is the default.
        foreground: share of the training crops that show something of what is looked for.
        overlap: share of a window that its neighbour covers too, at prediction.
    """

    mask_threshold: float | None
    crop_size: int | list[int] | str | None
    foreground: float
    overlap: float

    @property
    def batch_size(self) -> int:
        """Crops per step, and windows per forward pass."""
        return self.fit.batch_size or WindowSettings.batch_size

    def check(self) -> None:
        """Raise InputError for values out of range."""
        super().check()
        for side in _sides(self.crop_size) if self.crop_size is not None else ():
            check_extent("crop_size", side, 2)
        check_share(foreground=self.foreground)
        check_share(overlap=self.overlap, whole=False)


@dataclass(frozen=True)
class WindowSettings:
    """How an image is brought before the network; training and prediction use the same.

    Attributes:
        crop: window per axis, in pixels.
        image_size: longer side the image is resized to (aspect kept); None keeps its own resolution.
        window: CT window (``frepa.images.intensity.to_unit``).
        overlap: share of a window that its neighbour covers too, [0, 1).
        batch_size: windows per forward pass.
    """

    crop: tuple[int, ...]
    image_size: int | None = None
    window: Window = None
    overlap: float = 0.5
    batch_size: int = 8


def read_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a head file holds them, with tuples where JSON has lists."""
    settings = dict(values)
    settings["crop"] = tuple(settings["crop"])
    if isinstance(settings["window"], list):
        settings["window"] = tuple(settings["window"])
    return settings


class WindowedHead(HeadOnFrozen):
    """Encoder (frozen, always in evaluation mode) and a head on its dense map.

    Only ``trained_parameters()`` train: the head's, and of a slice transfer its blocks'. ``cache`` keeps what the 2D
    encoder of a slice transfer makes of each window; None keeps nothing.
    """

    head: Any  # with ``standardise`` and ``before``, of heads.standardise
    settings: WindowSettings

    def __init__(
        self, encoder: Encoder, head: nn.Module, settings: WindowSettings, *, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder.freeze()
        self.head = head
        self.settings = settings
        self.autocast = autocast
        self.cache: FeatureCache | None = None
        self.eval()

    def check_batch(self, batch: int) -> None:
        """Raise InputError where so many windows and their maps cannot be held at once."""
        crop, encoder = self.settings.crop, self.encoder
        maps = math.prod(-(-side // step) for side, step in zip(crop, per_axis(encoder.stride, encoder.dims)))
        check_batch(batch, math.prod(crop) * encoder.in_channels + maps * encoder.channels, self.device)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the head answers to a batch (B, in_channels, *S) as ``encoder.prepare_input`` makes it."""
        with torch.autocast(inputs.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.head(self.dense(inputs), tuple(inputs.shape[2:]))

    def dense(self, inputs: Tensor) -> Tensor:
        """The encoder's map of a batch of inputs, with gradients only for what of the encoder trains."""
        frozen, before = self.frozen(inputs), self.head.before
        return self.encoder.transform(frozen if before is None else before(frozen)).dense

    def frozen(self, inputs: Tensor) -> Tensor:
        """What the encoder makes of a batch: its dense map, or that of its frozen part."""
        return self.recalled((), [inputs], lambda: [self._frozen(inputs)])[0]

    def _frozen(self, inputs: Tensor) -> Tensor:
        with self.through_encoder():
            if self.cache is not None:
                return torch.stack([self.cache.features(window) for window in inputs]).to(inputs.device)
            return self.encoder.encode_frozen(inputs).dense

    @torch.no_grad()
    def standardise_by(self, windows: Iterable[Tensor]) -> list[str]:
        """Take the statistics of these windows' features into the head, inputs (B, in_channels, *crop) each.

        Returns:
            Sentences for the user, where channels have no variance.
        """
        layer = self.head.standardise if self.head.before is None else self.head.before
        moments = Moments(len(layer.mean), self.device)
        self.eval()
        for inputs in windows:
            with torch.autocast(inputs.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                moments.add(self.frozen(inputs))
        layer.set(moments.mean, moments.std)
        return constant_channels([layer])

    def by_windows(
        self, inputs: Tensor, answer: Callable[[Tensor], Tensor], overlap: float | tuple[float, ...]
    ) -> Tensor:
        """``answer(windows (B, in_channels, *crop)) -> (B, K, *s)`` over the whole of ``inputs`` (1, in_channels, *S).

        Where windows overlap their answers are averaged with Gaussian weights: (1, K, *S), or in the answers' scale.
        """
        # The import takes seconds, and whoever gave wrong input should not wait for them.
        from monai.inferers import sliding_window_inference

        crop, batch = self.settings.crop, self.settings.batch_size
        found = sliding_window_inference(inputs, crop, batch, answer, overlap=overlap, mode="gaussian")
        assert isinstance(found, Tensor)
        return found

    def working_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Extent an image of ``size`` is worked on at."""
        if self.settings.image_size is None:
            return tuple(size)
        return placement(size, (self.settings.image_size,) * len(size)).inner

    def window_count(self, size: tuple[int, ...], overlap: float | None = None) -> int:
        """Windows of an image of ``size``, with the settings' overlap or another."""
        overlap = self.settings.overlap if overlap is None else overlap
        steps = [max(1, int(to * (1 - overlap))) for to in self.settings.crop]
        return math.prod(max(0, -(-(n - to) // step)) + 1 for n, to, step in zip(size, self.settings.crop, steps))

    def guide(self, image: Tensor) -> Tensor:
        """Guide channel (1, *S) of a whole clean image (C, *S) in [0, 1], by the encoder's own kind."""
        return self.encoder.make_guide(image[None].float())[0]


def crop_sides(crop_size: int | list[int] | str, dims: int) -> tuple[int, ...]:
    """``--crop-size`` per axis.

    Raises:
        InputError: neither one side nor one per axis.
    """
    sides = _sides(crop_size)
    if len(sides) not in (1, dims):
        several = "three (slices, rows, columns) such as 8,48,48" if dims == 3 else "two (rows, columns) such as 64,96"
        raise InputError(f"--crop-size {crop_size}: expected one number, or {several}.")
    return per_axis(sides[0] if len(sides) == 1 else sides, dims)


def _sides(crop_size: int | list[int] | str) -> tuple[int, ...]:
    parts = crop_size.split(",") if isinstance(crop_size, str) else crop_size
    try:
        return tuple(int(part) for part in (parts if isinstance(parts, list | tuple) else [parts]))
    except (TypeError, ValueError):
        raise InputError(f"--crop-size {crop_size}: expected a number of pixels, or one per axis: 8,48,48.") from None


def fitted_crop(
    asked: tuple[int, ...],
    sizes: Iterable[tuple[int, ...]],
    multiple: int | tuple[int, ...],
    dims: int,
    *,
    needed_by: float = 1.0,
) -> tuple[int, ...]:
    """``asked``, but along no axis larger than the images need: it would be padding only.

    Args:
        asked: pixels per axis.
        sizes: extents of all images, as they are worked on.
        multiple: the window's extent is a multiple of it where it is smaller than ``asked``.
        dims: 2 or 3.
        needed_by: share of the images that shall fit along an axis; the largest does by default.
    """
    extents = np.percentile(np.asarray(list(sizes)), 100 * needed_by, axis=0, method="higher")
    needed = (-(-int(extent) // step) * step for extent, step in zip(extents, per_axis(multiple, dims)))
    return tuple(min(side, most) for side, most in zip(asked, needed))


def check_cacheable(plan: CropPlan, sizes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Raise InputError where no two epochs would look at the same window: a cache of features would only grow.

    ``sizes``: name and working size of every image.
    """
    if plan.augment:
        raise InputError("--feature-cache: augmented crops are never the same twice. Add --no-augment.")
    for name, size in sizes:
        if any(n > to for n, to in zip(size, plan.size)):
            shown, crop = (" x ".join(map(str, extent)) for extent in (size, plan.size))
            raise InputError(
                f"--feature-cache: crops of {crop} are drawn at random from volumes such as {name} ({shown}), so no "
                f"two epochs see the same one. Give --crop-size {max(size)} or more, so that a crop is the whole "
                "volume, or leave the option out."
            )
