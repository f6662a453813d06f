"""What a source knows about its images beside them, for methods that use it: a class for each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frepa.images.loading import Batch
from frepa.images.source import Source
from frepa.pretraining.loop import Columns


def classes_of(source: Source) -> tuple[str, ...]:
    """Names of the classes of a source, sorted; () where it has none."""
    if source.labels is None:
        return ()
    names = (str(name) for name in np.unique(np.asarray(source.labels)))
    return tuple(name for name in names if name)


def columns_of(source: Source) -> Columns | None:
    """Class numbers (places in :func:`classes_of`, -1 where there is none) of loaded batches; None without labels."""
    labels, classes = source.labels, classes_of(source)
    if labels is None or not classes:
        return None
    number = {name: place for place, name in enumerate(classes)}

    def columns(batch: Batch) -> tuple[Tensor | None, list[str] | None]:
        codes = [number.get(str(labels[index]), -1) for index in batch["index"]]
        return torch.tensor(codes, dtype=torch.int64), None

    return columns
