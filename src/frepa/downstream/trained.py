"""A trained head, or the heads of all folds and seeds of a run, on a new scan."""

from __future__ import annotations

import base64
import html
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure

from frepa.datasets.opening import open_source
from frepa.downstream.frozen import HeadOnFrozen
from frepa.downstream.head_files import head_files, read_head
from frepa.downstream.tuning import in_words
from frepa.encoders.contract import Encoder
from frepa.encoders.reference import EncoderReference, trained_names
from frepa.errors import InputError
from frepa.images.filed import Filed, filed
from frepa.images.intensity import to_unit
from frepa.images.orientation import reorient
from frepa.images.scan import Scan, UnreadableScan
from frepa.machine import autocast_dtype, default_device
from frepa.report.figures import png_bytes

Model = TypeVar("Model", bound=HeadOnFrozen)

# Where each task says how its heads are loaded and applied; imported when one is.
_TASKS = {
    "segmentation": "frepa.downstream.segmentation.trained:TrainedSegmenter",
    "classification": "frepa.downstream.classification.trained:TrainedClassifier",
    "detection": "frepa.downstream.detection.trained:TrainedDetector",
}


@dataclass(frozen=True, repr=False)
class Answer(ABC):
    """What a head says of one scan; arrays and boxes are in the axes of the scan's file.

    Attributes:
        grid: the file's grid.
        image: ``(C, *S)`` float32 in [0, 1], as the head saw it, for pictures.
        voxels: millimetres per axis of ``image``; None where the file does not say.
    """

    grid: Filed
    image: np.ndarray
    voxels: tuple[float, ...] | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def row(self) -> dict[str, Any]:
        """Its line in ``predictions.csv``."""

    @abstractmethod
    def picture(self) -> Figure:
        """The image with what was found."""

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {_short(value)}" for name, value in self.row.items())
        return f"<{type(self).__name__} of {' x '.join(map(str, self.grid.size))}: {found}>"

    def _repr_html_(self) -> str:
        """The picture, and under it the line of the table, for notebooks."""
        picture = base64.b64encode(png_bytes(self.picture(), dpi=90)).decode()
        lines = "".join(
            f"<tr><td>{html.escape(name)}</td><td style='text-align:right'>{html.escape(_short(value))}</td></tr>"
            for name, value in self.row.items()
        )
        return f"<img src='data:image/png;base64,{picture}' alt='what was found'><table>{lines}</table>"


class TrainedHead(ABC, Generic[Model]):
    """The heads of a run, applied together: what they say is averaged.

    Attributes:
        models: one, or one per fold and seed; on their device, in evaluation mode.
        files: the head files they were read from.
        reference: to the encoder.
        extras: what was noted of each while it was trained: its fold and seed, baselines of its training part.
        tuned: what of the encoder was trained with the head, ``blocks=2`` or ``all``; None where it was left frozen.
    """

    task: ClassVar[str]
    #: How it is scored on another set: ``module:class`` of an `Evaluation`, imported when it is.
    evaluation: ClassVar[str]
    #: Whether what it says of a scan has sizes, which are in mm where the scan says how large a voxel is.
    has_sizes: ClassVar[bool] = True

    def __init__(
        self,
        models: Sequence[Model],
        files: Sequence[Path],
        reference: EncoderReference,
        extras: Sequence[Mapping[str, Any]] = (),
        tuned: str | None = None,
    ) -> None:
        self.models, self.files, self.reference = list(models), list(files), reference
        self.extras = list(extras)
        self.tuned = tuned

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"

    def noted(self, name: str) -> list[Any]:
        """What was noted under a name, of every head; empty where one of them has it not, as older ones may."""
        found = [extra.get(name) for extra in self.extras]
        return [] if any(item is None for item in found) else found

    @classmethod
    @abstractmethod
    def load(cls, file: Path, encoder: str | Encoder | None, device: torch.device) -> Model:
        """The model of one head file."""

    @property
    def dims(self) -> int:
        """2 for images, 3 for volumes."""
        return self.models[0].encoder.dims

    @property
    def window(self) -> Any:
        """The CT window that images are scaled by, as in `frepa.images.intensity.to_unit`."""
        settings: Any = self.models[0].settings
        return settings.window

    def predict(self, scan: str | Path | Scan | np.ndarray) -> Any:
        """What the head says of one scan.

        Args:
            scan: a file, a folder with one DICOM series, a scan, or an array ``(*S)`` or ``(C, *S)`` with C = 1 or 3,
                in any scale.

        Returns:
            `SegmentedScan`, `ClassifiedScan` or `DetectedScan`, in the axes of the file.

        Raises:
            InputError: nothing there, several scans, or one of another number of axes than the head takes.
        """
        if isinstance(scan, np.ndarray):
            scan = _from_array(scan, self.dims)
        if isinstance(scan, Scan):
            if len(scan.size) != self.dims:
                raise InputError(f"The scan has {len(scan.size)} axes, and the head takes {self.dims}D ones.")
            return self.answer(scan, Filed(scan.size, scan.affine if self.dims == 3 else None, scan.spacing))
        source = open_source(scan, dims=self.dims, canonical=False)
        if len(source) != 1:
            raise InputError(
                f"{scan}: holds {len(source):,} {'images' if self.dims == 2 else 'volumes'}, and one is expected. Name "
                "one of them, or put the head on all with frepa predict."
            )
        try:
            found = source.read(0)
            return self.answer(found, filed(source, 0, found))
        except UnreadableScan as error:
            raise InputError(f"{error}.") from None

    def answer(self, scan: Scan, grid: Filed) -> Any:
        """What the head says of a scan in the axes of its file, whose grid that is.

        The heads see it in the orientation they were trained in.
        """
        turned = reorient(scan)
        said = self._answer(to_unit(turned, window=self.window), turned.affine, grid)
        return replace(said, voxels=turned.spacing)

    @abstractmethod
    def _answer(self, image: np.ndarray, affine: np.ndarray | None, grid: Filed) -> Answer:
        """What is said of an image ``(C, *S)`` in [0, 1], whose own axes ``affine`` belongs to."""

    def describe(self) -> str:
        """Which heads these are, in a sentence."""
        count = len(self.models)
        heads = "one head" if count == 1 else f"{count} heads, averaged"
        if self.tuned:
            heads += f", {in_words(self.tuned)}"
        return f"{self.task.capitalize()}, {heads}, on encoder {self.reference.name} (guide: {self.reference.guide})."


def load_head(
    run: str | Path,
    *,
    fold: int | None = None,
    seed: int | None = None,
    encoder: str | None = None,
    precision: str = "fp32",
    device: str | torch.device | None = None,
) -> TrainedHead[Any]:
    """The trained head of a run of ``segment``, ``classify`` or ``detect``, to be put on new scans.

    Of a run with folds or seeds all heads are loaded, and what they say is averaged.

    Args:
        run: run folder, or a head file.
        fold, seed: the heads of that fold or seed alone.
        encoder: where the encoder is now; by default where it was during training, or in the run if that is a bundle.
        precision: fp32, bf16 or auto, as in the verbs.
        device: by default the first GPU, else the CPU.

    Raises:
        InputError: no head there, the run is not finished, or the encoder is gone or another one.
    """
    files = head_files(run, fold=fold, seed=seed)
    place = default_device() if device is None else torch.device(device)
    autocast = autocast_dtype(precision, place)
    descriptions = [read_head(file, None)[1] for file in files]
    task = descriptions[0]["task"]
    if task not in _TASKS:
        raise InputError(f"{files[0]}: holds a head for {task}, which this version of frepa cannot apply.")
    module, name = _TASKS[task].split(":")
    kind: type[TrainedHead[Any]] = getattr(importlib.import_module(module), name)
    models: list[Any] = []
    for file, description in zip(files, descriptions):
        models.append(kind.load(file, _shared(models, descriptions[0], description) or encoder, place))
        models[-1].autocast = autocast
    extras = [description.get("extra") or {} for description in descriptions]
    tuned = descriptions[0].get("tuned", {}).get("train")
    return kind(models, files, EncoderReference(**descriptions[0]["encoder"]), extras, tuned)


def _shared(models: Sequence[HeadOnFrozen], first: Mapping[str, Any], own: Mapping[str, Any]) -> Encoder | None:
    """The encoder of the first head, where another may use it too: the same weights, and nothing in it trained."""
    if not models or "tuned" in first or "tuned" in own or own["encoder"]["weights"] != first["encoder"]["weights"]:
        return None
    encoder = models[0].encoder
    return None if trained_names(encoder) else encoder


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _from_array(array: np.ndarray, dims: int) -> Scan:
    if array.ndim == dims:
        array = array[None]
    if array.ndim != dims + 1 or array.shape[0] not in (1, 3):
        raise InputError(
            f"An array of shape {array.shape} is no {dims}D image: expected one extent per axis, or before these 1 "
            "channel (grey) or 3 (colour)."
        )
    return Scan(np.ascontiguousarray(array))
