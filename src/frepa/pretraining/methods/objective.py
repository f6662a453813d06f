"""What pretraining minimises: the weighted sum of Frepa's terms (Eq. 11) and of the optional ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from frepa.errors import InputError, nearest
from frepa.pretraining.methods import terms
from frepa.pretraining.methods.teaching import disagreement

REDUCTIONS = ("mean", "sum")
WEIGHTS = ("rmse", "gradient", "hfl", "consistency", "focal_frequency", "adversarial")


@dataclass(frozen=True)
class ConsistencyReading:
    """How the consistency term is read (Frepa Eq. 10); the paper says neither how it is reduced nor when it starts.

    Args:
        reduction: ``"mean"`` over positions, or ``"sum"`` over positions and mean over images.
        temperature: divides the embeddings before the softmax.
        standardise: give every channel of the embeddings mean 0 and variance 1 over the batch first.
        start_epoch: epochs without the term at the start, in which an image needs one view only.

    Raises InputError for a reduction that is not known, and for numbers out of range.
    """

    reduction: str = "mean"
    temperature: float = 1.0
    standardise: bool = False
    start_epoch: int = 0

    #: Corrupted views of an image that are compared.
    views: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise InputError(
                f"The consistency's reduction {self.reduction!r} is not known. {nearest(self.reduction, REDUCTIONS)}"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"The consistency's temperature is {self.temperature}; give a number above 0.")
        _check_start(self.start_epoch)

    def __call__(self, embedding_a: Tensor, embedding_b: Tensor) -> Tensor:
        """The divergence of two views' embeddings (B, C, *s): 0-d, float32, not negative."""
        return terms.consistency(
            embedding_a,
            embedding_b,
            reduction=self.reduction,
            temperature=self.temperature,
            standardise=self.standardise,
        )


@dataclass(frozen=True)
class TeacherReading:
    """The consistency as agreement with a clean teacher: the student's one view, told by a predictor.

    Args:
        start_epoch: epochs without the term at the start.
    """

    start_epoch: int = 0

    views: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_start(self.start_epoch)

    def __call__(self, embedding_a: Tensor, embedding_b: Tensor) -> Tensor:
        """`teaching.disagreement` of what is told of the student's view and what the teacher sees."""
        return disagreement(embedding_a, embedding_b)


def _check_start(epoch: int) -> None:
    if epoch < 0:
        raise InputError(f"The consistency's start_epoch is {epoch}; give a number of 0 or more.")


@dataclass(frozen=True)
class Objective:
    """Weights of the terms; a weight of 0 switches its term off, and it is then not computed.

    The defaults are the paper's (Frepa Eq. 11). ``focal_frequency`` is for the comparison of Fig. 4, ``adversarial``
    weighs the generator loss of :class:`frepa.pretraining.methods.adversarial.Adversary`. ``reading`` says what the
    consistency is. A negative or non-finite weight, or none above zero, raises InputError.
    """

    rmse: float = 1.0
    gradient: float = 1.0
    hfl: float = 1.0
    consistency: float = 0.5
    focal_frequency: float = 0.0
    adversarial: float = 0.0
    reading: ConsistencyReading | TeacherReading = ConsistencyReading()

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in WEIGHTS}
        for name, weight in weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise InputError(f"The weight of the {name} term is {weight}; give a number of 0 (off) or more.")
        if not any(weights.values()):
            raise InputError(f"All weights of the objective are 0; give at least one of {', '.join(weights)} a weight.")
        if self.reading.start_epoch and not any(weight for name, weight in weights.items() if name != "consistency"):
            raise InputError(
                f"Before epoch {self.reading.start_epoch}, when the consistency starts, nothing is minimised; "
                "give another term a weight, or start it at 0."
            )

    def at(self, epoch: int) -> Objective:
        """The objective of this epoch, counted from 0: without the consistency before it starts."""
        early = self.consistency > 0 and epoch < self.reading.start_epoch
        return replace(self, consistency=0.0, reading=ConsistencyReading()) if early else self

    @property
    def views(self) -> int:
        """Views that an image needs: 2 for a consistency between them, else 1, which costs half as much."""
        return self.reading.views if self.consistency > 0 else 1

    def __call__(
        self,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor | None,
        embeddings: tuple[Tensor, Tensor] | None,
        generator_loss: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted total (0-d, float32, differentiable) and the detached, unweighted value of each term computed.

        ``prediction``: (V*B, C, *S), the V views one after the other. ``target``: (B, C, *S), shared by the views, or
        (V*B, C, *S); both in [0, 1] units. ``mask``: (V*B, 1, *S), nonzero where the RMSE counts, or None for
        everywhere. ``embeddings``: the two that are to agree, (B, Ce, *s) each, or None for no
        consistency term. ``generator_loss``: the adversary's, or None while it is not active. The reconstruction
        terms are averaged over views. Nothing waits for the device.
        """
        working = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
        views = prediction.unflatten(0, (-1, target.shape[0])).to(working)
        residual = (views - target.to(working)).flatten(0, 1)

        # Views are of one size, so the mean over all V*B images is the mean over views of each view's mean.
        values: dict[str, Tensor] = {}
        if self.rmse:
            values["rmse"] = terms.rmse(residual, mask)
        if self.gradient:
            values["gradient"] = terms.gradient_l1(residual)
        if self.hfl:
            values["hfl"] = terms.hfl(residual)
        if self.consistency and embeddings is not None:
            values["consistency"] = self.reading(*embeddings)
        if self.focal_frequency:
            values["focal_frequency"] = terms.focal_frequency_loss(residual)
        if self.adversarial and generator_loss is not None:
            values["adversarial"] = generator_loss(prediction)
        if not values:
            raise InputError("Nothing to minimise: every term with a weight needs two views or an active adversary.")
        total = residual.new_zeros(())
        for name, value in values.items():
            total = total + getattr(self, name) * value
        return total, {name: value.detach() for name, value in values.items()}
