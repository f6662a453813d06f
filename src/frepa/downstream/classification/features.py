"""What the frozen encoder makes of each image: computed once and kept, or made anew for every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from frepa.downstream.classification.model import Classifier
from frepa.downstream.crops import CaseCache
from frepa.downstream.sharing import shared
from frepa.draws import Draws
from frepa.errors import InputError
from frepa.images.intensity import to_unit
from frepa.images.scan import Skipped, UnreadableScan
from frepa.images.source import Source
from frepa.machine import memory_of

# Images that pass the encoder at once; the head is trained in batches of its own.
_ENCODED_AT_ONCE = 16
_MEMORY_SHARE = 0.25
_HEADERS_LOOKED_AT = 512
#: Largest side that is chosen unasked: the paper's 512 pixels for images and slices, 128 voxels for volumes.
LARGEST = {2: 512, 3: 128}


class FeatureSource(Protocol):
    """Gives ``Classifier.forward`` its two inputs for a batch of records.

    Attributes:
        fixed: batches cost nothing but their memory.
        unreadable: records that could not be read, with the reason.
    """

    fixed: bool
    unreadable: dict[int, Skipped]

    def batch(
        self, records: Sequence[int], keys: Sequence[int] | None = None, following: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Encoded records; ``keys`` of their random draws (`draws.sample_keys`) in training; ``following`` are next."""
        ...

    def close(self) -> None:
        """Stop its threads."""


def common_side(source: Source, records: np.ndarray, *, slices: bool) -> int:
    """The longest side of the images, up to ``LARGEST``; of stacks that are encoded slice by slice, of their slices.

    The headers of up to 512 records, evenly spread, are looked at.
    """
    longest = 0
    for place in np.unique(np.linspace(0, len(records) - 1, min(len(records), _HEADERS_LOOKED_AT)).astype(np.int64)):
        try:
            size = source.header(int(records[place])).size
        except UnreadableScan:
            continue
        longest = max(longest, *size[-2:] if slices else size)
    limit = LARGEST[2 if slices else source.dims]
    return min(longest or limit, limit)


def _reader(classifier: Classifier, source: Source) -> Callable[[int], np.ndarray]:
    def read(record: int) -> np.ndarray:
        return classifier.frame(to_unit(source.read(record), window=classifier.settings.window))

    return read


class FixedFeatures:
    """Embeddings of a frozen encoder, computed once per image: training the head afterwards takes seconds."""

    fixed = True

    def __init__(self, classifier: Classifier, source: Source, records: np.ndarray, *, workers: int, quiet: bool):
        self._device = classifier.device
        made = shared(
            lambda: ("embeddings", source.fingerprint, records.tobytes(), *classifier.encoded_by),
            lambda: self._encoded(classifier, source, records, workers, quiet),
            lambda made: made[0].nbytes,
        )
        self._values, self._slot, self.unreadable = made

    @staticmethod
    def _encoded(
        classifier: Classifier, source: Source, records: np.ndarray, workers: int, quiet: bool
    ) -> tuple[Tensor, np.ndarray, dict[int, Skipped]]:
        """Embeddings on the host, the place of each record among them, and what cannot be read."""
        slot, unreadable = np.full(len(source), -1, np.int64), dict[int, Skipped]()
        images = CaseCache(_reader(classifier, source), classifier.inputs, limit=0, workers=workers)
        kept: list[Tensor] = []
        waiting: list[tuple[int, Tensor]] = []
        done = 0
        order = records.tolist()
        for place, record in enumerate(tqdm(order, unit="image", desc="Encoding", disable=quiet, leave=False)):
            images.ahead(order[place : place + workers + 1])
            try:
                waiting.append((record, images[record]))
            except UnreadableScan as error:
                unreadable[record] = error.skipped(source.name(record))
            if len(waiting) == _ENCODED_AT_ONCE or (waiting and place == len(order) - 1):
                encoded = classifier.encode([image for _, image in waiting])[0].cpu()
                if not kept:
                    _check_memory(encoded, len(order))
                kept.append(encoded)
                for record_, _ in waiting:
                    slot[record_] = done
                    done += 1
                waiting = []
        images.close()
        return torch.cat(kept) if kept else torch.empty(0), slot, unreadable

    def batch(
        self, records: Sequence[int], keys: Sequence[int] | None = None, following: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """See `FeatureSource`; the same whatever the keys."""
        return self._values[self._slot[np.asarray(records)]].to(self._device), None

    def close(self) -> None:
        """Nothing is open any more."""


class LiveFeatures:
    """Images encoded anew for every batch: for a slice transfer (whose 2D features are large), for augmentation, and
    for an encoder that is tuned.

    Images and their guides are kept in memory as far as a quarter of it lasts. A slice transfer's 2D features come from
    the classifier's cache on disk where it has one.
    """

    fixed = False

    def __init__(
        self,
        classifier: Classifier,
        source: Source,
        records: np.ndarray,
        *,
        augment: bool,
        workers: int,
        quiet: bool,
    ):
        self._classifier, self._augment = classifier, augment
        self.unreadable: dict[int, Skipped] = {}
        limit = int(_MEMORY_SHARE * memory_of(classifier.device))
        self._images = CaseCache(_reader(classifier, source), classifier.inputs, limit=limit, workers=workers)
        order = records.tolist()
        for place, record in enumerate(tqdm(order, unit="image", desc="Reading", disable=quiet, leave=False)):
            self._images.ahead(order[place : place + workers + 1])
            try:
                self._images[record]
            except UnreadableScan as error:
                self.unreadable[record] = error.skipped(source.name(record))

    def batch(
        self, records: Sequence[int], keys: Sequence[int] | None = None, following: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """See `FeatureSource`; with ``keys``, and where it was asked for, flipped at random along every axis."""
        images = [self._images[int(record)] for record in records]
        self._images.ahead(int(record) for record in following)
        if self._augment and keys is not None:
            draws = Draws(keys)
            flips = [draws.host_uniform(f"classify.flip.{axis}") for axis in range(images[0].ndim - 1)]
            images = [
                image.flip([axis + 1 for axis, drawn in enumerate(flips) if drawn[row] < 0.5])
                for row, image in enumerate(images)
            ]
        if keys is not None:
            return self._classifier.encode(images)

        def encode() -> list[Tensor]:
            return [item for item in self._classifier.encode(images) if item is not None]

        found = self._classifier.recalled(self._classifier.encoded_by, images, encode)
        return found[0], found[1] if len(found) > 1 else None

    def close(self) -> None:
        """Stop the threads that read ahead."""
        self._images.close()


def _check_memory(encoded: Tensor, count: int) -> None:
    needed, have = encoded[0].nbytes * count, memory_of(torch.device("cpu"))
    if needed > _MEMORY_SHARE * have:
        raise InputError(
            f"--pooling attention keeps the whole map of every image: {needed / 2**30:.1f} GiB for {count:,} images, "
            f"and this machine has {have / 2**30:.1f} GiB. Use --pooling mean, or a smaller --image-size."
        )
