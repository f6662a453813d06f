"""Which part of a split a record is in: as a manifest or the catalogue says, else by the names of its folders."""

from __future__ import annotations

import numpy as np

from frepa.datasets.annotations import Annotations
from frepa.images.source import Source

_WORDS = {"train": "train", "training": "train", "imagestr": "train", "val": "val", "valid": "val"}
_WORDS |= {"validation": "val", "imagesva": "val", "test": "test", "testing": "test", "imagests": "test"}
_MEMBERS = ("train", "val", "test")


def splits_of(source: Source) -> tuple[np.ndarray | None, str]:
    """``(n,)`` names of parts, "" where unknown, and where they are from; None where there are fewer than two parts."""
    known = None if source.annotations is None else Annotations(source, source.annotations)
    if known is not None and known.has("split"):
        said_by = "the catalogue" if "dataset" in known.facts else "the names of folders"
        parts = [part or "" for part in known.table["split"].to_pylist()]
        return np.array(parts, object), "the manifest" if known.layout == "manifest" else said_by
    if source.folder is None:
        return None, ""
    parts = [part_of(source.name(index)) for index in range(len(source))]
    return (np.array(parts, object), "the names of folders") if len(set(parts) - {""}) > 1 else (None, "")


def part_of(name: str) -> str:
    """``train``, ``val``, ``test`` or "", as in ``a/Training/b.png`` and ``x.npz#test_images[3]``."""
    path, _, member = name.partition("#")
    for folder in path.lower().split("/")[:-1]:
        if folder in _WORDS:
            return _WORDS[folder]
    first = member.partition("_")[0]
    return first if first in _MEMBERS else ""
