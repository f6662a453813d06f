"""Files that hold an image and its mask: ``x.h5#image`` and ``x.h5#label``, flat or in train, val and test."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frepa.datasets.annotations import PARTS
from frepa.datasets.layouts.registry import Listing, layout
from frepa.images.guards import file_status
from frepa.images.scan import UnreadableScan

_ENDINGS = (".h5", ".hdf5", ".hdf", ".npz")
_IMAGES = ("image", "img", "data", "raw")
_MASKS = ("label", "mask", "seg", "segmentation", "gt")


def _pair(file: Path) -> tuple[str, str] | None:
    """The members of a file that are an image and its mask; None where it has no such two."""
    try:
        file_status(file)  # a named pipe would be waited for
        if file.suffix.lower() == ".npz":
            with zipfile.ZipFile(file) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
        else:
            import h5py

            with h5py.File(file, "r") as opened:
                names = [name for name, item in opened.items() if isinstance(item, h5py.Dataset)]
    except (OSError, UnreadableScan, zipfile.BadZipFile):  # told when it is read
        return None
    image, mask = (next((name for name in known if name in names), None) for known in (_IMAGES, _MASKS))
    return (image, mask) if image is not None and mask is not None else None


def _first(folder: Path) -> Path | None:
    """The first such file of a folder, or of its folders of parts."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
            below = [Path(entry.path) for entry in listed if entry.name.lower() in PARTS and entry.is_dir()]
            files = [entry.path for entry in listed if entry.name.lower().endswith(_ENDINGS)]
    except OSError:
        return None
    if files:
        return Path(files[0])
    return next((found for part in below if (found := _first(part)) is not None), None)


def _has_pairs(folder: Path) -> bool:
    file = _first(folder)
    return file is not None and _pair(file) is not None


@layout(
    "members",
    column="mask",
    expects="HDF5 or npz files that hold an image and its mask (x.h5 with image and label), flat or under train/, val/ "
    "and test/",
    detect=_has_pairs,
)
def read_members(path: Path, names: Sequence[str], dims: int) -> Listing:
    """Every file with its own two members; files without them are left to whoever reads images."""
    columns: dict[str, dict[str, Any]] = {"mask": {}, "split": {}}
    members: dict[str, str] = {}
    for name in names:
        found = _pair(path / name) if name.lower().endswith(_ENDINGS) else None
        if found is not None:
            members[name] = found[0]
            columns["mask"][f"{name}#{found[0]}"] = f"{name}#{found[1]}"
            columns["split"][f"{name}#{found[0]}"] = PARTS.get(name.partition("/")[0].lower()) if "/" in name else None
    first = next(iter(columns["mask"].items()), ("", ""))
    said = f"{len(members):,} files hold an image and its mask, such as {first[0]} and {first[1]}"
    facts = {"layout": "members", "pairs": [said], "target": "mask", "targets": ["mask"]}
    return Listing(columns, facts, members=members)
