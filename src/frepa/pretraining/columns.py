"""What a source knows about its images beside them, for methods that use it: a class for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frepa.datasets.annotations import EXPECTED
from frepa.datasets.opening import annotations_of
from frepa.errors import InputError
from frepa.images.loading import Batch
from frepa.images.source import Source


@dataclass(frozen=True)
class Classes:
    """Classes of a source, and which each of its images is of.

    Attributes:
        names: sorted; () where nothing is known.
        codes: ``(n,)`` int64, place in ``names`` of each record, -1 where its class is not known.
    """

    names: tuple[str, ...]
    codes: np.ndarray

    def columns(self, batch: Batch) -> tuple[Tensor | None, list[str] | None]:
        """Class numbers of a loaded batch, and no texts."""
        return torch.from_numpy(self.codes[batch["index"]]), None


def classes_of(source: Source, method: str = "", needs: tuple[str, ...] = ()) -> Classes:
    """The classes of a source; of images with several the name is all of them, as in "effusion and mass".

    Names of folders are taken for classes where a method ``needs`` "labels": elsewhere they may be those of patients.

    Raises:
        InputError: the method needs what is not known of any image.
    """
    needed = "labels" in needs
    if not needed and source.labels is None:
        return Classes((), np.empty(0, np.int64))
    known = annotations_of(source, folders=needed)
    found = needed and (known.has("label") or known.has("labels"))
    if any(column != "labels" or not found for column in needs):
        what = "the class of each image" if needed else " and ".join(needs)
        raise InputError(
            f"--method {method} needs {what}, and {source.location} has none. {known.said()} {EXPECTED['label']}"
        )
    told = np.array([" and ".join(names or ()) for names in known.labels], dtype=object)
    names = sorted({name for name in told if name})
    number = {name: place for place, name in enumerate(names)}
    return Classes(tuple(names), np.array([number.get(name, -1) for name in told], np.int64))
