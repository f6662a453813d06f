"""Any folder with ``images`` and ``masks``, flat or divided into ``train``, ``val`` and ``test`` (as OCTA-500 is)."""

from __future__ import annotations

from pathlib import Path

from frepa.datasets.annotations import Case
from frepa.datasets.layouts.pairing import files_in, pair, stem, subfolder
from frepa.datasets.layouts.registry import Listing, layout

_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "labels", "label", "segmentations", "annotations", "groundtruth", "gt")
_FOVS = ("fov", "fovs", "fov_masks")
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def _pair_of_folders(folder: Path) -> tuple[Path, Path, Path | None] | None:
    images, masks = subfolder(folder, _IMAGES), subfolder(folder, _MASKS)
    return (images, masks, subfolder(folder, _FOVS)) if images and masks else None


def _parts(path: Path) -> list[tuple[str | None, Path, Path, Path | None]]:
    """(split, images, masks, fov) of every part: ``train/images``, ``images/train`` or ``images``."""
    found: list[tuple[str | None, Path, Path, Path | None]] = []
    for split, names in _PARTS.items():
        below = subfolder(path, names)
        if below is not None and (folders := _pair_of_folders(below)):
            found.append((split, *folders))
    whole = _pair_of_folders(path)
    if found or whole is None:
        return found
    for split, names in _PARTS.items():
        images, masks = subfolder(whole[0], names), subfolder(whole[1], names)
        if images and masks:
            found.append((split, images, masks, subfolder(whole[2], names) if whole[2] else None))
    return found or [(None, *whole)]


@layout(
    "folders",
    expects="images/ and masks/ (or image/ and label/), flat or under train/, val/ and test/; fov/ if there is one",
    detect=lambda path: bool(_parts(path)),
)
def read_folders(path: Path, dims: int) -> Listing:
    """Pairs by file name (see ``pairing.pair``); sub-folders are searched."""
    cases, unpaired = [], []
    for split, image_folder, mask_folder, fov_folder in _parts(path):
        images = files_in(image_folder, dims, deep=True)
        masks = pair(images, files_in(mask_folder, dims, deep=True))
        fovs = pair(images, files_in(fov_folder, dims, deep=True)) if fov_folder else {}
        cases += [Case(stem(i), i, masks[i], fovs.get(i), split=split) for i in images if i in masks]
        unpaired += [i.name for i in images if i not in masks]
    return Listing(cases, unpaired)
