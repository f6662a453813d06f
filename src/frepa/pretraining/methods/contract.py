"""What a pretraining method is: a module that makes a loss of clean images, and owns all that is particular to it.

A method has its options (a frozen dataclass, whose docstring explains each), its corruption and augmentation, its
parameter groups, what it trains beside the encoder, and what its pictures show. Loop and run know none of these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from frepa.encoders.contract import Encoder

if TYPE_CHECKING:  # seconds to import, and help texts need none of it
    import lightning_fabric


class Batch(NamedTuple):
    """What a method is given for one step.

    images: ``(B, C, *S)`` float32 in [0, 1], on the device; C is 1 in a grey source, else 3.
    grey: ``(B,)`` bool on the CPU; rows whose three channels are equal because the file was grey.
    positions: B positions in the run's stream of samples; every random draw is keyed by them.
    step, epoch: of the run, counted from 0.
    augment: off for validation.
    shown: how many images the step's ``pictures`` are to show; 0 for none.
    labels: class of each image, ``(B,)`` int64 on the CPU, -1 where there is none; None where the source has no labels.
    texts: a text for each image; None where the source has none.
    inside: ``(B, 1, *S)`` bool on the device, False where a scan recorded nothing (`frepa.images.loading.Batch`); None
        unless the method ``wants_inside``.
    told: ``(B,)`` bool on the CPU: the field of view is known and ``inside`` is in it; None like ``inside``.
    """

    images: Tensor
    grey: Tensor
    positions: list[int]
    step: int = 0
    epoch: int = 0
    augment: bool = True
    shown: int = 0
    labels: Tensor | None = None
    texts: list[str] | None = None
    inside: Tensor | None = None
    told: Tensor | None = None


class Pictures(NamedTuple):
    """What a step did to some images, for people to look at.

    original, corrupted, reconstruction: ``(R, C, *S)``, intensities in [0, 1] but for what a method makes of them.
    guide: ``(R, 1, *S)``, or None where the method has none.
    rows: which image of the batch each of the R is. labels: a word for each, such as the strategy it was corrupted by.
    """

    original: Tensor
    corrupted: Tensor
    reconstruction: Tensor
    guide: Tensor | None
    rows: list[int]
    labels: list[str]


class StepResult(NamedTuple):
    """What a method gives the loop for one batch.

    loss: 0-d tensor with gradient. terms: detached 0-d tensors by name, logged as they are. pictures: where the batch
    asks for them.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    pictures: Pictures | None = None


@dataclass(frozen=True)
class Setting:
    """What a method is built for.

    encoder: what the run is for. channels: image channels of the source, 1 or 3. image_size: side of the images.
    fit: how they came to that size, "resize" or "crop". seed: of the run; with a sample's position it decides all that
    the sample is subjected to. classes: names of the source's classes, by number; () where it has none. guide_target:
    the guide that is to be told beside the image, "none" for none; the encoder has no guide then.
    """

    encoder: Encoder
    channels: int
    image_size: int
    fit: str
    seed: int
    classes: Sequence[str] = ()
    guide_target: str = "none"

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the images."""
        return (self.image_size,) * self.encoder.dims


class Method(nn.Module, ABC):
    """Base of all methods, built as ``Method(options, setting)``.

    ``encoder`` is what the run is for; everything else is dropped afterwards. ``needs`` names the columns of the source
    that the method cannot do without, "labels" or "texts". ``wants_inside`` asks for ``Batch.inside``. ``shows`` says
    what its pictures are, behind "Held-out images, ".
    """

    encoder: Encoder
    needs: tuple[str, ...] = ()
    wants_inside: bool = False
    shows: str = "corrupted the same way each time and reconstructed"

    @abstractmethod
    def forward(self, batch: Batch) -> StepResult:
        """Loss and terms of one batch; nothing in it waits for the device unless pictures are asked for."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, as torch takes them; ``lr_scale`` in a group multiplies the run's learning rate."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def states(self) -> Mapping[str, Any]:
        """What else changes from step to step, by name: objects with ``state_dict`` and ``load_state_dict``.

        They are part of a checkpoint, so that a resumed run ends as one that never stopped.
        """
        return {}

    def setup(self, fabric: lightning_fabric.Fabric) -> None:
        """Called once on the device, after a state was restored: prepare what is trained beside the method."""

    def after_step(self, step: int, lr: float) -> dict[str, Tensor]:
        """Called after the optimizer's step; returns more terms to log."""
        return {}

    def positions_to_show(self, start: int, count: int) -> list[int]:
        """Positions from ``start`` on to corrupt ``count`` validation images by, so that a picture shows every case."""
        return list(range(start, start + count))
