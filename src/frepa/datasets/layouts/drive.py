"""DRIVE (Staal et al. 2004): ``training`` and ``test``, each with ``images``, ``1st_manual`` and ``mask``."""

from __future__ import annotations

from pathlib import Path

from frepa.datasets.annotations import Case
from frepa.datasets.layouts.pairing import files_in, pair, stem, subfolder
from frepa.datasets.layouts.registry import Listing, layout

_PARTS = {"training": "train", "test": "test"}


def _detect(path: Path) -> bool:
    return (path / "training" / "images").is_dir() and (path / "training" / "1st_manual").is_dir()


@layout("drive", expects="training/images, training/1st_manual, training/mask and the same under test/", detect=_detect)
def read_drive(path: Path, dims: int) -> Listing:
    """Official split: 21-40 for training, 01-20 for testing. ``mask`` is the field of view, not the vessels."""
    cases, unpaired = [], []
    for folder, split in _PARTS.items():
        part = path / folder
        images = files_in(part / "images", dims) if (part / "images").is_dir() else []
        masks = pair(images, files_in(part / "1st_manual", dims) if (part / "1st_manual").is_dir() else [])
        fov_folder = subfolder(part, ("mask",))
        fovs = pair(images, files_in(fov_folder, dims)) if fov_folder else {}
        for image in images:
            if image in masks:
                name = stem(image).split("_")[0]
                cases.append(Case(name, image, masks[image], fovs.get(image), group=name, split=split))
            else:
                unpaired.append(image.name)
    return Listing(cases, unpaired, binary=True)
