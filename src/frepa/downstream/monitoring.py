"""A linear probe that is asked again and again while an encoder trains: how well a small labelled set can be read."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frepa.downstream.classification.data import ClassificationData, check_classes, open_data
from frepa.downstream.classification.metrics import accuracy, macro_auc
from frepa.downstream.classification.model import Classifier
from frepa.downstream.classification.training import (
    ClassificationOptions,
    build_classifier,
    predict_rows,
    start_closed_form,
)
from frepa.downstream.options import DataOptions, FitOptions, RunOptions
from frepa.downstream.segmentation.data import SegmentationData, check_sets, open_sets
from frepa.downstream.segmentation.model import Segmenter
from frepa.downstream.segmentation.probe import fit_probe
from frepa.downstream.segmentation.training import SegmentationOptions, build_segmenter, make_cache
from frepa.encoders.contract import Encoder
from frepa.errors import InputError
from frepa.images.intensity import to_unit
from frepa.images.scan import Skipped, UnreadableScan

# Images of a set with classes that pass through the encoder at once.
_BATCH = 16


class Monitor(ABC):
    """Reads a labelled set through an encoder in closed form: ``monitor(encoder) -> {"probe": score}``.

    The encoder is copied, and its weights taken over at each look. What is fitted is fitted to the set's training part,
    and scored on its validation part; the test part is left for the end.

    Attributes:
        cost: images, of the size that the run trains on, that pass through the encoder at a look.
        title: what the score is, in words.
    """

    names = ("probe",)
    cost: float
    title: str

    def __init__(self) -> None:
        self._encoder: Encoder | None = None

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """The score in [0, 1]; nothing where it is not defined on the validation part."""
        if self._encoder is None:
            self._encoder = copy.deepcopy(encoder).eval()
            self._build(self._encoder, next(encoder.parameters()).device)
        self._encoder.load_state_dict(encoder.state_dict())
        with torch.autocast(next(encoder.parameters()).device.type, enabled=False):  # whatever the run computes in
            score = self._score()
        return {"probe": score} if math.isfinite(score) else {}

    @abstractmethod
    def _build(self, encoder: Encoder, device: torch.device) -> None:
        """Keep what every look needs: the probe on ``encoder``, the images."""

    @abstractmethod
    def _score(self) -> float:
        """Fit to the training part and score the validation part, with the weights that the encoder has now."""


class SegmentationMonitor(Monitor):
    """Ridge from each position to its block of the mask (`segmentation.probe`); the mean DSC of the validation cases.

    Args:
        data: the set.
        size: side of the windows. resized: images are brought to that size, as the run brings its own.
        window: CT window; None scales by the image's own values.
    """

    title = "DSC of a linear probe"

    def __init__(self, data: SegmentationData, dims: int, *, size: int, resized: bool, window: str | None) -> None:
        super().__init__()
        self.cases = data.part("train"), data.part("val")
        self._data, self._dims = data, dims
        self._options = segmentation_probe(size if resized else None, window, crop=size, overlap=0.25)
        pixels = 0.0
        for item in (*self.cases[0], *self.cases[1]):
            extent = data.sizes[item.case.image]
            scale = size / max(extent) if resized else 1.0
            pixels += math.prod(max(1.0, n * scale / size) for n in extent)
        self.cost = pixels
        self._segmenter: Segmenter | None = None

    def _build(self, encoder: Encoder, device: torch.device) -> None:
        self._segmenter = build_segmenter(encoder, self._data, self._options, 0, device)
        self._cache = make_cache(self._segmenter, [*self.cases[0], *self.cases[1]], 0)

    def _score(self) -> float:
        assert self._segmenter is not None
        train, val = (len(part) for part in self.cases)
        places = range(train), range(train, train + val)
        return fit_probe(self._segmenter, self._cache, *places, augment=False, quiet=True).val_dsc


class ClassificationMonitor(Monitor):
    """Logistic regression on pooled embeddings; the AUC of the validation images, mean over classes.

    Their accuracy where no AUC is defined. Args as of `SegmentationMonitor`; images are always resized.
    """

    title = "AUC of a linear probe"

    def __init__(self, data: ClassificationData, *, size: int, window: str | None) -> None:
        super().__init__()
        self._data, self._size = data, size
        self._options = classification_probe(size, window)
        self.cost = float(len(data.rows("train")) + len(data.rows("val")))
        self._classifier: Classifier | None = None

    def _build(self, encoder: Encoder, device: torch.device) -> None:
        self._classifier = build_classifier(encoder, self._data, self._options, self._size, 0, device)
        self._features = _Encoded(self._classifier, self._data)

    def _score(self) -> float:
        assert self._classifier is not None
        self._features.encode()
        start_closed_form(self._classifier, self._features, self._data, _BATCH)
        val = self._data.rows("val")
        found = predict_rows(self._classifier, self._features, self._data, val, _BATCH)
        auc = macro_auc(found, self._data.targets[val])
        return auc if math.isfinite(auc) else accuracy(found, self._data.targets[val], several=self._data.several)


class _Encoded:
    """Images kept as they enter the encoder, with their guide, and what it makes of them at present."""

    fixed = True

    def __init__(self, classifier: Classifier, data: ClassificationData) -> None:
        self.unreadable: dict[int, Skipped] = {}
        self._classifier = classifier
        self._inputs: dict[int, Tensor] = {}
        for record in data.records[np.concatenate([data.rows("train"), data.rows("val")])].tolist():
            try:
                unit = to_unit(data.source.read(record), window=classifier.settings.window)
            except UnreadableScan as error:
                raise InputError(
                    f"--probe {data.source.name(record)}: {error}. Take the image out of the set, or mend it."
                ) from None
            self._inputs[record] = classifier.inputs(classifier.frame(unit)).cpu()
        self._vectors: dict[int, Tensor] = {}

    def encode(self) -> None:
        """Look at every image with the weights that the encoder has now."""
        records = list(self._inputs)
        for first in range(0, len(records), _BATCH):
            part = records[first : first + _BATCH]
            device = self._classifier.device
            encoded = self._classifier.encode([self._inputs[record].to(device) for record in part])[0]
            self._vectors |= dict(zip(part, encoded))

    def batch(
        self, records: Sequence[int], keys: Sequence[int] | None = None, following: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """See `features.FeatureSource`."""
        return torch.stack([self._vectors[record] for record in records]), None

    def close(self) -> None:
        """Nothing is open."""


def open_monitor(source: str, dims: int, *, size: int, resized: bool, window: str | None = None) -> Monitor:
    """The probe for a labelled set: by its masks where it has them, else by its classes.

    Args:
        source: as ``frepa segment`` or ``frepa classify`` takes it.
        dims: 2 or 3.
        size: side of what the encoder sees in the run. resized: images are brought to that size, rather than cropped.
        window: CT window by name; None scales by the image's own values.

    Raises:
        InputError: neither masks nor classes are found, or nothing can be learnt or looked at.
    """
    try:
        sets = open_sets([source], dims=dims)
    except InputError as error:
        no_masks = _first_line(error)
    else:
        return SegmentationMonitor(check_sets(sets, dims=dims), dims, size=size, resized=resized, window=window)
    try:
        data = open_data(source, dims=dims)
        check_classes(data)
    except InputError as error:
        raise InputError(
            f"--probe {source}: not a labelled set. As images with masks: {no_masks} As images with classes: "
            f"{_first_line(error)}"
        ) from None
    return ClassificationMonitor(data, size=size, window=window)


def _first_line(error: Exception) -> str:
    """Without what announces a list on the lines after it."""
    line = str(error).partition("\n")[0]
    return line.rpartition(". ")[0] + "." if line.endswith(":") else line


def segmentation_probe(size: int | None, window: str | None, *, crop: int, overlap: float) -> SegmentationOptions:
    """The options of a ridge from the last map to the block of pixels of each position, in windows of ``crop``."""
    return SegmentationOptions(
        **_probe(size, window), mask_threshold=None, crop_size=crop, foreground=0.0, overlap=overlap, head="linear",
        features="last", reach=1, loss="dice", cldice=False,
    )  # fmt: skip


def classification_probe(size: int | None, window: str | None) -> ClassificationOptions:
    """The options of a logistic regression on the mean embedding."""
    return ClassificationOptions(**_probe(size, window), head="linear", hidden=1, pooling="mean")


def _probe(size: int | None, window: str | None) -> dict[str, Any]:
    """The options of a head in closed form: nothing is drawn and no step is taken."""
    return {
        "encoder": "",
        "data": DataOptions(source="", split="official", folds=None, image_size=size, window=window),
        "fit": FitOptions(
            batch_size=_BATCH,
            epochs=1,
            max_steps=1,
            lr=1.0,
            schedule="constant",
            warmup_steps=0,
            augment=False,
            val_every=None,
        ),
        "run": RunOptions(
            out="", seed=0, seeds=1, num_workers=0, precision="fp32", feature_cache=None, overwrite=False, quiet=True
        ),
    }
