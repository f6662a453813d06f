"""Optional adversarial training: a patch discriminator on the reconstructions.

The paper says that adversarial training starts after the first five epochs (Frepa 3.2) and does not define it. This
is the plain choice: MONAI's patch discriminator with least-squares losses (Isola et al. 2017, Mao et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

from frepa.errors import InputError
from frepa.optimizers import adam

if TYPE_CHECKING:  # seconds to import, and help texts need none of it
    import lightning_fabric


class Adversary(nn.Module):
    """A patch discriminator and its two losses, in 2D and 3D; the caller owns the optimizer.

    ``dims``: 2 or 3. ``channels``: of the images. ``features``: filters of the first layer. ``layers``: strided
    layers after the first less one, which set the patch each score sees. ``start_epoch``: the first epoch, counted
    from 0, in which it takes part. The images' sides must be at least ``smallest_size`` pixels.

    Instance normalisation without running statistics is used: an image's score does not depend on its batch, and there
    are no buffers to synchronise or restore.
    """

    def __init__(self, dims: int, channels: int, *, features: int = 64, layers: int = 3, start_epoch: int = 5) -> None:
        super().__init__()
        self.start_epoch = start_epoch
        # Each strided layer halves; the last two, of kernel 4 and stride 1, take one pixel each.
        self.smallest_size = 3 * 2**layers
        self.discriminator = PatchDiscriminator(dims, features, channels, num_layers_d=layers, norm="INSTANCE")

    def active(self, epoch: int) -> bool:
        """Whether the adversary takes part in this epoch, counted from 0."""
        return epoch >= self.start_epoch

    def generator_loss(self, fake: Tensor) -> Tensor:
        """How far the scores of ``fake`` (B, C, *S) are from those of real images: mean ``(D(fake) - 1)^2``, 0-d.

        Gradients flow to ``fake`` and not to the discriminator. Call it on this module and not on a distributed
        wrapper: no parameter of it takes part. Raises InputError for images smaller than ``smallest_size``.
        """
        weights = self.discriminator.state_dict()  # detached
        scores = torch.func.functional_call(self.discriminator, weights, (self._checked(fake),))[-1]
        return (scores.float() - 1).square().mean()

    def discriminator_step_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss: half of mean ``(D(real) - 1)^2`` plus mean ``D(fake)^2``, 0-d float32.

        ``real``, ``fake``: (B, C, *S) in [0, 1] units; no gradient flows to either.
        """
        real_scores = self.discriminator(self._checked(real.detach()))[-1]
        fake_scores = self.discriminator(self._checked(fake.detach()))[-1]
        return 0.5 * ((real_scores.float() - 1).square().mean() + fake_scores.float().square().mean())

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """:meth:`discriminator_step_loss`, so that a distributed wrapper synchronises its gradients."""
        return self.discriminator_step_loss(real, fake)

    def _checked(self, images: Tensor) -> Tensor:
        if min(images.shape[2:]) < self.smallest_size:
            raise InputError(
                f"The adversarial term needs images of at least {self.smallest_size} pixels a side, found "
                f"{tuple(images.shape[2:])}: use larger images, or give its weight 0."
            )
        # Under true half precision the wrapper would cast, and generator_loss goes round it.
        return images.to(next(self.discriminator.parameters()).dtype)


class AdversarialTraining:
    """The adversary of a run and its optimizer, trained on the last reconstructions after each step of the encoder.

    Not a part of the method's module: its parameters take no part in the method's gradients.
    """

    def __init__(self, dims: int, channels: int, *, start_epoch: int) -> None:
        self.adversary = Adversary(dims, channels, start_epoch=start_epoch)
        self.optimizer = adam(self.adversary.parameters(), lr=0.0)  # the run says the rate of every step
        self._judge: Any = self.adversary
        self._stepper: Any = self.optimizer
        self._fabric: lightning_fabric.Fabric | None = None
        self._seen: tuple[Tensor, Tensor] | None = None

    def states(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"adversary": self.adversary, "adversary_optimizer": self.optimizer}

    def setup(self, fabric: lightning_fabric.Fabric) -> None:
        """Share its gradients between devices."""
        self._fabric = fabric
        self._judge, self._stepper = fabric.setup(self.adversary, self.optimizer)

    def of_generator(self, epoch: int) -> Callable[[Tensor], Tensor] | None:
        """The loss of a reconstruction, or None while the adversary takes no part."""
        return self.adversary.generator_loss if self.adversary.active(epoch) else None

    def remember(self, real: Tensor, fake: Tensor) -> None:
        """What it is trained on after this step: ``(V * B, C, *S)`` each, without gradient."""
        self._seen = real, fake

    def train(self, lr: float) -> dict[str, Tensor]:
        """One step on what was remembered; its loss by name, nothing where it took no part."""
        if self._seen is None or self._fabric is None:
            return {}
        for group in self._stepper.param_groups:
            group["lr"] = lr
        (real, fake), self._seen = self._seen, None
        loss = self._judge(real, fake)
        self._fabric.backward(loss)
        self._stepper.step()
        self._stepper.zero_grad()
        return {"discriminator": loss.detach()}
