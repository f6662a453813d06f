"""Folders that hold labels by their names: masks among the images of a source would be learnt from like images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from frepa.names import shown

NAMES = frozenset(
    {
        *("mask", "masks", "label", "labels", "labelstr", "labelsva", "labelsts", "groundtruth", "ground_truth"),
        *("segmentation", "segmentations", "annotation", "annotations", "nodule_mask", "1st_manual"),
    }
)


def label_folder(folder: str) -> str:
    """The part of a folder's path (with forward slashes) that holds labels by its name, or ""."""
    return next((part for part in folder.split("/") if part.lower() in NAMES), "")


def warning(names: Iterable[str]) -> str:
    """A sentence for the user when some of these files, named relative to the source, lie in such folders, or ""."""
    total, found = 0, Counter[str]()
    for name in names:
        total += 1
        folder = label_folder(name.rpartition("/")[0])
        if folder:
            found[folder] += 1
    if not found:
        return ""
    named = ", ".join(f"{shown(folder)}/" for folder, _ in found.most_common(4)) + (", ..." if len(found) > 4 else "")
    return (
        f"{found.total():,} of {total:,} files lie in folders that hold labels by their names ({named}). They are used "
        "as images like the others; to leave them out, name the images' folder alone or list the images in a manifest."
    )
