"""After every epoch: the loss on images held out, and a picture of what is reconstructed."""

from __future__ import annotations

import lightning_fabric
import torch

from frepa.images.loading import Batch
from frepa.pretraining.journal import Journal
from frepa.pretraining.methods import Method, StepResult
from frepa.pretraining.run_folder import RunFolder
from frepa.report.figures import png_bytes, reconstruction_grid

# Far above any position a run reaches, so that these draws are nobody else's and the same in every epoch.
_FIRST_POSITION = 1 << 60
_SHOWN = 4


class Validation:
    """Reconstructs one fixed batch, corrupted the same way every time, so that pictures of epochs can be compared.

    Args:
        batch: as the loader gives it, ``image (B, C, *S)`` in [0, 1].
    """

    def __init__(self, batch: Batch, fabric: lightning_fabric.Fabric, run: RunFolder, journal: Journal) -> None:
        self.fabric, self.run, self.journal = fabric, run, journal
        self.image, self.grey = batch["image"], batch["grey"]

    @torch.no_grad()
    def __call__(self, method: Method, epoch: int, step: int) -> None:
        """Write the terms to ``metrics.jsonl`` and ``reconstructions/epoch-NNNN.png``."""
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
        self.run.pictures.mkdir(exist_ok=True)
        rows = _both_strategies(result.is_frequency.tolist())
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
        picture = png_bytes(reconstruction_grid(original, corrupted, prediction, guide, labels=labels), dpi=110)
        (self.run.pictures / f"epoch-{epoch:04d}.png").write_bytes(picture)


def _both_strategies(is_frequency: list[bool]) -> list[int]:
    """Rows to show: the first ones of each strategy, in turn, so that a picture shows both where both occur."""
    frequency = [row for row, chosen in enumerate(is_frequency) if chosen]
    image = [row for row, chosen in enumerate(is_frequency) if not chosen]
    pairs = [row for pair in zip(frequency, image) for row in pair]
    rest = frequency[len(pairs) // 2 :] + image[len(pairs) // 2 :]
    return (pairs + rest)[:_SHOWN]
