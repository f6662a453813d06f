"""After every epoch: the loss on images held out, and what is reconstructed as a picture and as files for a viewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning_fabric
import numpy as np
import torch

from frepa.files import write_bytes
from frepa.images.loading import Batch as Loaded
from frepa.images.orientation import voxel_sizes
from frepa.images.writing import write_nifti
from frepa.pretraining.journal import Journal
from frepa.pretraining.loop import Columns
from frepa.pretraining.methods.contract import Batch, Method, Pictures
from frepa.pretraining.run_folder import RunFolder
from frepa.report.figures import png_bytes, reconstruction_grid

# Far above any position a run reaches, so that these draws are nobody else's and the same in every epoch.
_FIRST_POSITION = 1 << 60
# Images, or volumes of three planes each.
_SHOWN = {2: 4, 3: 2}
#: The planes of volumes in the orientation that sources turn them to.
_VIEWS = ("axial", "coronal", "sagittal")


class Validation:
    """Gives the method one fixed batch with the same draws every time, so that epochs can be compared.

    Args:
        batch: as the loader gives it, ``image (B, C, *S)`` in [0, 1].
        columns: what the source knows about its images beside them.
    """

    def __init__(
        self,
        batch: Loaded,
        fabric: lightning_fabric.Fabric,
        run: RunFolder,
        journal: Journal,
        columns: Columns | None = None,
    ) -> None:
        self.fabric, self.run, self.journal = fabric, run, journal
        self.labels, self.texts = columns(batch) if columns is not None else (None, None)
        self.image, self.grey, self.affine = batch["image"], batch["grey"], batch["affine"]
        self.inside, self.told = batch["inside"], batch["told"]

    @torch.no_grad()
    def __call__(self, method: Method, epoch: int, step: int) -> None:
        """Write the terms to ``metrics.jsonl``, ``reconstructions/epoch-NNNN.png``, and of volumes ``volumes/``."""
        if not len(self.image):
            return
        dims = self.image.ndim - 2
        method.eval()
        with self.fabric.autocast():
            result = method(
                Batch(
                    self.image.to(self.fabric.device),
                    self.grey,
                    method.positions_to_show(_FIRST_POSITION, len(self.image)),
                    step=step,
                    epoch=epoch,
                    augment=False,
                    shown=_SHOWN[dims],
                    labels=self.labels,
                    texts=self.texts,
                    inside=None if self.inside is None else self.inside.to(self.fabric.device),
                    told=self.told,
                )
            )
        method.train()
        terms = {f"val_{name}": float(value) for name, value in {"loss": result.loss, **result.terms}.items()}
        self.journal.record({"step": step, "epoch": epoch, **terms})
        if result.pictures is not None:
            self._draw(result.pictures, epoch)

    def _draw(self, pictures: Pictures, epoch: int) -> None:
        dims, labels = self.image.ndim - 2, pictures.labels
        parts = {
            name: part.float().cpu().numpy()
            for name in ("original", "corrupted", "reconstruction", "guide")
            if (part := getattr(pictures, name)) is not None
        }
        known = [self.affine[row] for row in pictures.rows]
        shape: dict[str, Any] = {}
        if dims == 3:
            shape["voxels"] = [None if affine is None else voxel_sizes(affine) for affine in known]
            if all(affine is not None for affine in known):
                shape["views"] = _VIEWS
            self._write_volumes(parts, labels, known)
        self.run.pictures.mkdir(exist_ok=True)
        figure = reconstruction_grid(**parts, labels=labels, **shape)
        write_bytes(self.run.pictures / f"epoch-{epoch:04d}.png", png_bytes(figure, dpi=110))

    def _write_volumes(
        self, parts: dict[str, np.ndarray], labels: list[str], affines: Sequence[np.ndarray | None]
    ) -> None:
        """The first crop of each label for a viewer, in the place of the epoch before: they are large."""
        for label in dict.fromkeys(labels):
            row = labels.index(label)
            folder = self.run.volumes / label
            folder.mkdir(parents=True, exist_ok=True)
            for name, volumes in parts.items():
                write_nifti(folder / f"{name}.nii.gz", volumes[row, 0], affines[row])
