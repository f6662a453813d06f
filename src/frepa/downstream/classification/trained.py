"""A trained classifier on new scans: the probability of every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from frepa.downstream.classification.model import TASK, Classifier, load_classifier
from frepa.downstream.trained import Answer, TrainedHead
from frepa.encoders.contract import Encoder
from frepa.images.filed import Filed
from frepa.report.canvas import bare, new_figure, plane


@dataclass(frozen=True, repr=False)
class ClassifiedScan(Answer):
    """Classes.

    Attributes:
        probabilities: of every class by name, in [0, 1]; they sum to 1 unless classes do not exclude each other.
        said: the most probable class; where classes do not exclude each other, those above 0.5.
    """

    probabilities: dict[str, float]
    said: tuple[str, ...]

    @property
    def row(self) -> dict[str, Any]:
        """What is said, and the probability of every class."""
        return {"predicted": "|".join(self.said)} | {f"p_{name}": p for name, p in self.probabilities.items()}

    def picture(self) -> Figure:
        """The image under what is said of it."""
        picture = np.clip(plane(self.image), 0, 1)
        scale = 4.6 / max(picture.shape[:2])
        figure = new_figure(picture.shape[1] * scale + 0.2, picture.shape[0] * scale + 0.5)
        axes = figure.subplots()
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(", ".join(f"{name} {self.probabilities[name]:.2f}" for name in self.said) or "none", fontsize=10)
        bare(axes)
        return figure


class TrainedClassifier(TrainedHead[Classifier]):
    """The classifiers of a run; their probabilities are averaged."""

    task = TASK
    has_sizes = False
    evaluation = "frepa.downstream.classification.evaluation:ClassificationEvaluation"

    @classmethod
    def load(cls, file: Path, encoder: str | Encoder | None, device: torch.device) -> Classifier:
        """See `load_classifier`."""
        return load_classifier(file, encoder=encoder, device=device)

    def classify(self, image: np.ndarray) -> np.ndarray:
        """Probabilities ``(K,)`` float64 of an image ``(C, *S)`` float32 in [0, 1], C = 1 or 3."""
        return self.classify_all([image])[0]

    def classify_all(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities ``(n, K)`` float64 of images as `classify` takes them, which pass the encoder together."""
        found = [model.predict(images) for model in self.models]
        return found[0] if len(found) == 1 else np.mean(found, axis=0)

    def _answer(self, image: np.ndarray, affine: np.ndarray | None, grid: Filed) -> ClassifiedScan:
        first, found = self.models[0], self.classify(image)
        chosen = found > 0.5 if first.several else np.arange(len(found)) == found.argmax()
        said = tuple(name for name, there in zip(first.classes, chosen) if there)
        return ClassifiedScan(grid, image, dict(zip(first.classes, found.tolist())), said)
