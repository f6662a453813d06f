"""After every epoch: the loss on images held out, and what is reconstructed as a picture and as files for a viewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning_fabric
import numpy as np
import torch

from frepa.files import write_bytes
from frepa.images.loading import Batch
from frepa.images.orientation import voxel_sizes
from frepa.images.writing import write_nifti
from frepa.pretraining.journal import Journal
from frepa.pretraining.methods.contract import Method, StepResult
from frepa.pretraining.run_folder import RunFolder
from frepa.report.figures import png_bytes, reconstruction_grid

# Far above any position a run reaches, so that these draws are nobody else's and the same in every epoch.
_FIRST_POSITION = 1 << 60
# Images, or volumes of three planes each.
_SHOWN = {2: 4, 3: 2}
#: The planes of volumes in the orientation that sources turn them to.
_VIEWS = ("axial", "coronal", "sagittal")


class Validation:
    """Reconstructs one fixed batch, corrupted the same way every time, so that pictures of epochs can be compared.

    Args:
        batch: as the loader gives it, ``image (B, C, *S)`` in [0, 1].
    """

    def __init__(self, batch: Batch, fabric: lightning_fabric.Fabric, run: RunFolder, journal: Journal) -> None:
        self.fabric, self.run, self.journal = fabric, run, journal
        self.image, self.grey, self.affine = batch["image"], batch["grey"], batch["affine"]

    @torch.no_grad()
    def __call__(self, method: Method, epoch: int, step: int) -> None:
        """Write the terms to ``metrics.jsonl``, ``reconstructions/epoch-NNNN.png``, and of volumes ``volumes/``."""
        if not len(self.image):
            return
        method.eval()
        with self.fabric.autocast():
            result: StepResult = method(
                self.image.to(self.fabric.device),
                self.grey,
                method.positions_to_show(_FIRST_POSITION, len(self.image)),
                augment=False,
            )
        method.train()
        terms = {f"val_{name}": float(value) for name, value in {"loss": result.loss, **result.terms}.items()}
        self.journal.record({"step": step, "epoch": epoch, **terms})
        dims = self.image.ndim - 2
        rows = _both_strategies(result.is_frequency.tolist(), _SHOWN[dims])
        images = [row % len(self.image) for row in rows]
        original, corrupted, prediction, guide = (
            part[index].float().cpu().numpy()
            for part, index in (
                (result.target, images),
                (result.corrupted, rows),
                (result.prediction, rows),
                (result.guide, images),
            )
        )
        labels = ["frequency" if result.is_frequency[row] else "image" for row in rows]
        known = [self.affine[image] for image in images]
        shape: dict[str, Any] = {}
        if dims == 3:
            shape["voxels"] = [None if affine is None else voxel_sizes(affine) for affine in known]
            if all(affine is not None for affine in known):
                shape["views"] = _VIEWS
            parts = {"original": original, "corrupted": corrupted, "reconstruction": prediction, "guide": guide}
            self._write_volumes(parts, labels, known)
        self.run.pictures.mkdir(exist_ok=True)
        figure = reconstruction_grid(original, corrupted, prediction, guide, labels=labels, **shape)
        write_bytes(self.run.pictures / f"epoch-{epoch:04d}.png", png_bytes(figure, dpi=110))

    def _write_volumes(
        self, parts: dict[str, np.ndarray], labels: list[str], affines: Sequence[np.ndarray | None]
    ) -> None:
        """The first crop of each strategy for a viewer, in the place of the epoch before: they are large."""
        for strategy in dict.fromkeys(labels):
            row = labels.index(strategy)
            folder = self.run.volumes / strategy
            folder.mkdir(parents=True, exist_ok=True)
            for name, volumes in parts.items():
                write_nifti(folder / f"{name}.nii.gz", volumes[row, 0], affines[row])


def _both_strategies(is_frequency: list[bool], count: int) -> list[int]:
    """Rows to show: the first ones of each strategy, in turn, so that a picture shows both where both occur."""
    frequency = [row for row, chosen in enumerate(is_frequency) if chosen]
    image = [row for row, chosen in enumerate(is_frequency) if not chosen]
    pairs = [row for pair in zip(frequency, image) for row in pair]
    rest = frequency[len(pairs) // 2 :] + image[len(pairs) // 2 :]
    return (pairs + rest)[:count]
