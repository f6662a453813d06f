"""Frepa: two corrupted views of each image, reconstructed with the guide beside them (Frepa Eq. 5, 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from frepa.corruption.dual import Corrupted, Corruption
from frepa.corruption.field import lit
from frepa.corruption.sizes import check_side
from frepa.draws import Draws, sample_keys
from frepa.errors import InputError, nearest
from frepa.heads.decoder import ReconstructionDecoder
from frepa.pretraining.methods.contract import Batch, Pictures, Setting, StepResult
from frepa.pretraining.methods.objective import ConsistencyReading, Objective, TeacherReading
from frepa.pretraining.methods.reconstructing import CORRUPT, Reconstructing
from frepa.pretraining.methods.registry import register_method
from frepa.pretraining.methods.teaching import Predictor, Teacher

if TYPE_CHECKING:  # MONAI takes seconds to import, and few runs have an adversary; Fabric as long, for a help text
    import lightning_fabric

    from frepa.pretraining.methods.adversarial import AdversarialTraining


#: Where images may be masked.
FIELDS = ("whole", "scan", "lit")

# Options that say how the consistency is read, and nothing without it.
_READINGS = (
    "teacher", "consistency_reduction", "consistency_temperature", "consistency_standardise", "consistency_start_epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Frepa:
    """Frequency dual-component and histogram-equalized masking with a Hessian guide.

    Args:
        augment: random flips, rotation, affine maps and histogram shifts.
        spectrum_patch: side, in bins, of the patches masked in the spectrum; "auto" is the paper's 16 at 512 pixels and
            in proportion elsewhere.
        spectrum_cutoff: cut-off distance of masking and perturbation, as a share of the shorter side.
        noise_sigma: standard deviation of the low-frequency perturbation, as a share of the spectrum's maximum.
        noise_scaled: scale that noise with the image's size and number of axes, so that it changes every image as much
            as it does at 512 x 512 or 128^3; false takes noise_sigma as it is, as the paper does.
        noise_kind: real noise on the spectrum, which makes the perturbation point-symmetric in the image, or complex
            noise of the same variance, which does not.
        high_mask: mask the spectrum in the frequency strategy.
        mask_centre: let the spectrum patches that touch the zero frequency be masked as well, and with them the image's
            mean, as Eq. 2 has it literally.
        adaptive: multiply each spectrum patch's probability by the rank of its energy among the patches at its distance
            in the image at hand. Not in the paper.
        low_noise: perturb the low frequencies in the frequency strategy.
        image_patch: side, in pixels, of the patches masked in the image. "auto" is the paper's 32 at 512 pixels and 16
            at 128 voxels: in proportion elsewhere with --fit resize, down to a quarter of the side with --fit crop.
        mask_ratio: share of the image patches masked in the image strategy.
        mask_exact: mask exactly that share of the patches of every image, instead of each with that probability.
        mask_noise: what a masked image patch becomes: gaussian (its mean and variance), permute (its own pixels
            shuffled) or zero.
        fov: where images are masked, perturbed and scored: whole, anywhere; scan, not in what was added around an image
            to fill the frame, nor outside its field of view where the source gives one; lit, nor where it gives none in
            the dark surround, below a tenth of the range. Not in the paper.
        frequency_probability: how often a view is corrupted in the spectrum rather than in the image.
        rmse_weight: weight of the RMSE.
        gradient_weight: weight of the gradient loss.
        hfl_weight: weight of the hierarchical frequency-to-spatial loss.
        consistency_weight: weight of the consistency between the two views' embeddings; 0 trains on one view, in half
            the time. The paper has 0.5, and so has --preset paper; measured here it did not help.
        consistency_reduction: mean over positions, or sum over positions and mean over images.
        consistency_temperature: divides the embeddings before the softmax.
        consistency_standardise: give every channel of the embeddings mean 0 and variance 1 over the batch first.
        consistency_start_epoch: epochs without the consistency at the start, in which an image needs one view only.
        teacher: let the consistency be the agreement of the one corrupted view with what an average of the encoder sees
            of the clean image, told by a predictor; reduction, temperature and standardise are then not asked. Not in
            the paper.
        teacher_decay: of that average, at each step.
        focal_frequency_weight: weight of the focal frequency loss, for comparison.
        adversarial_weight: weight of an optional patch discriminator.
        adversarial_start_epoch: epochs before the discriminator takes part.
    """

    augment: bool = True
    spectrum_patch: int | Literal["auto"] = "auto"
    spectrum_cutoff: float = 0.2
    noise_sigma: float = 0.002
    noise_scaled: bool = True
    noise_kind: Literal["real", "complex"] = "real"
    high_mask: bool = True
    mask_centre: bool = False
    adaptive: bool = False
    low_noise: bool = True
    image_patch: int | Literal["auto"] = "auto"
    mask_ratio: float = 0.7
    mask_exact: bool = False
    mask_noise: Literal["gaussian", "permute", "zero"] = "gaussian"
    fov: Literal["whole", "scan", "lit"] = "whole"
    frequency_probability: float = 0.5
    rmse_weight: float = 1.0
    gradient_weight: float = 1.0
    hfl_weight: float = 1.0
    consistency_weight: float = 0.0
    consistency_reduction: Literal["mean", "sum"] = "mean"
    consistency_temperature: float = 1.0
    consistency_standardise: bool = False
    consistency_start_epoch: int = 0
    teacher: bool = False
    teacher_decay: float = 0.996
    focal_frequency_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start_epoch: int = 5

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "epochs": 100,
            "lr": 1e-4,
            "schedule": "constant",
            "guide": "frangi",
            "method": {
                "augment": True,
                "spectrum_patch": "auto",
                "spectrum_cutoff": 0.2,
                "noise_sigma": 0.002,
                "noise_kind": "real",
                "adaptive": False,
                "image_patch": "auto",
                "mask_ratio": 0.7,
                "mask_noise": "gaussian",
                "frequency_probability": 0.5,
                "rmse_weight": 1.0,
                "gradient_weight": 1.0,
                "hfl_weight": 1.0,
                "consistency_weight": 0.5,
            },
        }
    }

    def __post_init__(self) -> None:
        if self.adversarial_start_epoch < 0:
            raise InputError(f"--method.adversarial-start-epoch {self.adversarial_start_epoch}: expected 0 or more.")
        if self.fov not in FIELDS:
            raise InputError(f"--method.fov {self.fov}: not known. {nearest(self.fov, FIELDS)}")
        if not self.consistency_weight:
            for name in _READINGS:
                if getattr(self, name) != getattr(type(self), name):
                    raise InputError(
                        f"--method.{name.replace('_', '-')}: with --method.consistency-weight 0, the default, there is "
                        "nothing to agree on. Add --method.consistency-weight 0.5, the paper's."
                    )

    def corruption(self, fit: str) -> Corruption:
        """Both strategies, of images that came to their size by ``fit``. Raises InputError for options out of range."""
        check_side("--method.spectrum-patch ", self.spectrum_patch)
        check_side("--method.image-patch ", self.image_patch)
        return Corruption(
            frequency_patch=self.spectrum_patch,
            cutoff=self.spectrum_cutoff,
            sigma=self.noise_sigma,
            high_mask=self.high_mask,
            low_noise=self.low_noise,
            mask_centre=self.mask_centre,
            scale_sigma=self.noise_scaled,
            perturbation=self.noise_kind,
            adaptive=self.adaptive,
            patch=self.image_patch,
            fit=cast(Any, fit),
            mask_ratio=self.mask_ratio,
            exact=self.mask_exact,
            noise=self.mask_noise,
            frequency_probability=self.frequency_probability,
        )

    @property
    def objective(self) -> Objective:
        """What is minimised. Raises InputError for weights out of range."""
        return Objective(
            rmse=self.rmse_weight,
            gradient=self.gradient_weight,
            hfl=self.hfl_weight,
            consistency=self.consistency_weight,
            focal_frequency=self.focal_frequency_weight,
            adversarial=self.adversarial_weight,
            reading=TeacherReading(start_epoch=self.consistency_start_epoch)
            if self.teacher
            else ConsistencyReading(
                reduction=self.consistency_reduction,
                temperature=self.consistency_temperature,
                standardise=self.consistency_standardise,
                start_epoch=self.consistency_start_epoch,
            ),
        )


@register_method("frepa", Frepa)
class FrepaMethod(Reconstructing):
    """Encoder and light decoder trained to undo the dual corruption."""

    shows = "corrupted in the spectrum or in the image, the same way each time, and reconstructed"

    def __init__(self, options: Frepa, setting: Setting) -> None:
        super().__init__(setting, augment=options.augment)
        encoder = self.encoder
        self.decoder = ReconstructionDecoder(encoder.channels, encoder.stride, self.outputs, encoder.dims)
        self.corruption = options.corruption(setting.fit)
        self.corruption.check_size(setting.shape)
        self.fov = options.fov
        self.wants_inside = options.fov != "whole"
        self.objective = options.objective
        self.teacher = Teacher(encoder, options.teacher_decay) if options.teacher else None
        self.predictor = Predictor(encoder.embedding_channels) if options.teacher else None
        self.beside: AdversarialTraining | None = None
        if options.adversarial_weight:
            from frepa.pretraining.methods.adversarial import AdversarialTraining

            self.beside = AdversarialTraining(
                encoder.dims, setting.channels, start_epoch=options.adversarial_start_epoch
            )

    def forward(self, batch: Batch) -> StepResult:
        image, guide = self.clean(batch)
        count = len(image)
        objective = self.objective.at(batch.epoch)
        views = objective.views
        with torch.no_grad():
            field = self._field(image, batch)
            made = [self._corrupt(image, batch.grey, batch.positions, view, field) for view in range(views)]
            corrupted, mask, is_frequency = (torch.cat(parts) for parts in zip(*made))
            inputs = self.encoder.prepare_input(corrupted, guide.repeat(views, *[1] * (guide.ndim - 1)))
        features = self.encoder(inputs)
        whole = self.decoder(features.dense, tuple(image.shape[2:]))
        prediction = whole[:, : self.channels]
        pair = (features.embedding[:count], features.embedding[count:]) if views == 2 else None
        if self.teacher is not None and self.predictor is not None:
            # Asked before the term begins too: in distributed training every parameter takes part in every step.
            pair = self.predictor(features.embedding), self.teacher(self.encoder.prepare_input(image, guide))
        judged = self.beside.of_generator(batch.epoch) if self.beside is not None and self.training else None
        loss, terms = objective(prediction, image, mask, pair, judged)
        if pair is not None and not objective.consistency:
            loss = loss + 0 * pair[0].sum()
        loss, terms = self.with_guide(loss, terms, whole, guide)
        if self.beside is not None and judged is not None:
            self.beside.remember(image.repeat(views, *[1] * (image.ndim - 1)), prediction.detach())
        pictures = _pictures(image, corrupted, prediction, guide, is_frequency, batch.shown) if batch.shown else None
        return StepResult(loss, terms, pictures)

    def to(self, *args: Any, **kwargs: Any) -> FrepaMethod:
        """As of any module; discriminator and teacher go along."""
        if self.teacher is not None:
            self.teacher.average.to(*args, **kwargs)
        if self.beside is not None:
            self.beside.adversary.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def states(self) -> Mapping[str, Any]:
        own = {} if self.teacher is None else self.teacher.states()
        return own if self.beside is None else own | self.beside.states()

    def setup(self, fabric: lightning_fabric.Fabric) -> None:
        if self.beside is not None:
            self.beside.setup(fabric)

    def after_step(self, step: int, lr: float) -> dict[str, Tensor]:
        if self.teacher is not None:
            self.teacher.follow(self.encoder)
        return {} if self.beside is None else self.beside.train(lr)

    def positions_to_show(self, start: int, count: int) -> list[int]:
        """Positions at which the first view is corrupted in the spectrum and in the image by turns."""
        wanted = [row % 2 == 0 for row in range(count)]
        chosen: list[int] = []
        for position in range(start, start + 64 * count):
            in_frequency = self.corruption.in_frequency(Draws(sample_keys(self.seed, [position], CORRUPT)))[0]
            if in_frequency == wanted[len(chosen)]:
                chosen.append(position)
                if len(chosen) == count:
                    return chosen
        return super().positions_to_show(start, count)

    def _field(self, image: Tensor, batch: Batch) -> Tensor | None:
        """Where an augmented batch may be masked; None for everywhere."""
        if batch.inside is None:
            return None
        inside = batch.inside
        if batch.augment and self.augmentation is not None:
            inside = self.augmentation.follow(inside, self.augmenting(batch))
        if self.fov != "lit":
            return inside
        guessed = inside & lit(image)
        if batch.told is None:
            return guessed
        told = batch.told.to(image.device, non_blocking=True).view(-1, *[1] * (image.ndim - 1))
        return torch.where(told, inside, guessed)

    def _corrupt(self, image: Tensor, grey: Tensor, positions: list[int], view: int, field: Tensor | None) -> Corrupted:
        """Corrupt every row; grey rows of a colour batch are corrupted once and replicated, as grey images are."""
        draws = Draws(sample_keys(self.seed, positions, CORRUPT + view), image.device)
        if image.shape[1] == 1 or not bool(grey.any()):  # grey lives on the CPU: no device sync
            return self.corruption(image, draws, field)
        result = Corrupted(
            torch.empty_like(image),
            image.new_empty(image.shape[0], 1, *image.shape[2:]),
            torch.empty(image.shape[0], dtype=torch.bool, device=image.device),
        )
        for is_grey in (True, False):
            rows = torch.nonzero(grey == is_grey).flatten().tolist()
            if rows:
                seen = None if field is None else field[rows]
                part = self.corruption(image[rows, :1] if is_grey else image[rows], draws.select(rows), seen)
                for whole, piece in zip(result, part):
                    whole[rows] = piece
        return result


def _pictures(
    image: Tensor, corrupted: Tensor, prediction: Tensor, guide: Tensor, is_frequency: Tensor, count: int
) -> Pictures:
    """Rows of each strategy in turn, so that a picture shows both where both occur."""
    chosen = is_frequency.tolist()
    frequency = [row for row, value in enumerate(chosen) if value]
    masked = [row for row, value in enumerate(chosen) if not value]
    pairs = [row for pair in zip(frequency, masked) for row in pair]
    rest = frequency[len(pairs) // 2 :] + masked[len(pairs) // 2 :]
    rows = (pairs + rest)[:count]
    images = [row % len(image) for row in rows]
    labels = ["frequency" if chosen[row] else "image" for row in rows]
    return Pictures(image[images], corrupted[rows], prediction[rows], guide[images], images, labels)
