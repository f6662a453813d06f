"""Which records a run trains on, in which order, and which are held out: uniformly, or by weights of modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from frepa.errors import InputError, nearest
from frepa.images.sampling import Indexable, SampleStream, Stream, sorted_by_code
from frepa.images.source import Source
from frepa.pretraining.held_out import WithoutHeldOut, held_out_indices

#: What stands for the records whose modality is not known.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class TrainingPart:
    """stream: the order of training. held_out: records looked at after each epoch, sorted. samples: of an epoch."""

    stream: Stream
    held_out: np.ndarray
    samples: int


def modality_weights(text: str | None) -> dict[str, float]:
    """``"CT=2,MRI=1"`` as a mapping; {} for None.

    Raises:
        InputError: anything else.
    """
    weights: dict[str, float] = {}
    for part in (text or "").split(",") if text is not None else ():
        name, _, number = (word.strip() for word in part.rpartition("="))
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not name or not 0 <= value < float("inf"):
            raise InputError(f"--modality-weights {text}: expected names and numbers of 0 or more, such as CT=2,MRI=1.")
        if name in weights:
            raise InputError(f"--modality-weights {text}: {name} is named twice.")
        weights[name] = value
    return weights


def training_part(
    source: Source, *, val_images: int, seed: int, weights: Mapping[str, float] | None = None
) -> TrainingPart:
    """Hold some records out, and order the others.

    A source (or, with weights, the part of it that has one) with fewer than ten times ``val_images`` lends the held-out
    records from training instead of losing them: in a small one every image counts.

    Args:
        source: the records.
        val_images: how many are held out, at most.
        seed: of the order and of what is held out.
        weights: share of each modality, in any scale; one that is not named has none. Within 1000 consecutive positions
            the shares are exact, and within a modality every record comes once before any comes again.

    Raises:
        InputError: a modality that the source does not have, or weights that cannot be honoured.
    """
    length = len(source)
    if not weights:
        held_out = held_out_indices(length, val_images, seed)
        lent = length < 10 * val_images
        kept = length if lent else length - len(held_out)
        stream = WithoutHeldOut(SampleStream(kept, seed=seed), held_out[:0] if lent else held_out)
        return TrainingPart(stream, held_out, kept)

    names, shares = _shares(source, weights)
    members, counts = source.by_modality or sorted_by_code(source.modality_codes, len(names))  # type: ignore[arg-type]
    pool = int(counts[shares > 0].sum())
    held_out = _records(held_out_indices(pool, val_images, seed), members, counts, shares)
    lent = pool < 10 * val_images
    away = held_out[:0] if lent else held_out
    kept_members = _WithoutHeldOut(members, counts, away)
    stream = WithoutHeldOut(
        SampleStream(
            length - len(away), seed, weights=shares, members=(kept_members, kept_members.counts), names=names
        ),
        away,
    )
    return TrainingPart(stream, held_out, pool - len(away))


def _shares(source: Source, weights: Mapping[str, float]) -> tuple[list[str], np.ndarray]:
    """Names of the source's modalities, and the weight of each."""
    if source.modality_codes is None:
        raise InputError(
            f"--modality-weights: {source.location} names no modality. DICOM files do; for others give a manifest with "
            "a column 'modality', or a dataset of the catalogue."
        )
    names = [name or UNKNOWN for name in source.modalities]
    for name in weights:
        if name not in names:
            raise InputError(
                f"--modality-weights: there is no modality {name!r} in {source.location}. {nearest(name, names)}"
                + (f" It holds {', '.join(names)}." if "Did you mean" in nearest(name, names) else "")
            )
    return names, np.array([float(weights.get(name, 0.0)) for name in names])


def _records(places: np.ndarray, members: Indexable, counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Record numbers at places of the list of all records that have a weight, sorted."""
    codes = np.flatnonzero(shares > 0)
    ends = np.cumsum(counts[codes])
    which = np.searchsorted(ends, places, side="right")
    firsts = np.cumsum(counts) - counts
    within = places - (ends - counts[codes])[which]
    return np.sort(np.asarray(members[firsts[codes[which]] + within], np.int64))


class _WithoutHeldOut:
    """Members of each modality without the held-out ones, numbered as if these did not exist.

    Only the few places taken out are kept, so that the list itself stays mapped from disk where it is.
    """

    def __init__(self, members: Indexable, counts: np.ndarray, held_out: np.ndarray) -> None:
        self._members, self._held_out = members, held_out
        places, lost = [], np.zeros_like(counts)
        for code, (first, count) in enumerate(zip(np.cumsum(counts) - counts, counts)):
            for record in held_out:
                place = first + _place(members, int(first), int(count), int(record))
                if place < first + count and int(members[place]) == record:
                    places.append(place)
                    lost[code] += 1
        self._thresholds = np.array(places, np.int64) - np.arange(len(places))
        self.counts = counts - lost

    def __getitem__(self, index: Any) -> np.ndarray:
        index = np.asarray(index, np.int64)
        records = np.asarray(self._members[index + np.searchsorted(self._thresholds, index, side="right")], np.int64)
        return records - np.searchsorted(self._held_out, records)


def _place(members: Indexable, first: int, count: int, record: int) -> int:
    """Where ``record`` stands, or would stand, among the sorted ``members[first : first + count]``."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if int(members[first + middle]) < record:
            low = middle + 1
        else:
            high = middle
    return low
