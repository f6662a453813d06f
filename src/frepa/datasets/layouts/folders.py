"""Any folder with ``images`` and ``masks``, flat or divided into ``train``, ``val`` and ``test``; also nnU-Net's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from frepa.datasets.layouts.pairing import check_pairs, pair, stem
from frepa.datasets.layouts.registry import Listing, layout
from frepa.datasets.nnunet_files import folds_of, label_names, read_json
from frepa.errors import InputError

_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "labels", "label", "segmentations", "annotations", "groundtruth", "gt")
_FOVS = ("fov", "fovs", "fov_masks")
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# The Medical Segmentation Decathlon, nnU-Net and AMOS22: images and labels of a part in folders beside each other
_SUFFIXES = {"train": "tr", "val": "va", "test": "ts"}

# Split (None: the whole), folders of images, masks and fields of view, relative to the set
_Part = tuple[str | None, str, str, str]


def subfolder(folder: Path, names: Iterable[str]) -> str:
    """The first of ``names`` that is a folder in ``folder``, as it is spelled there; "" where there is none."""
    if not folder.is_dir():
        return ""
    # What the listing says of each entry: asked of the file system one by one, long lists would take a tenth longer
    with os.scandir(folder) as entries:
        there = {item.name.lower(): item.name for item in entries if item.is_dir()}
    return next((there[name] for name in names if name in there), "")


def _parts(path: Path) -> list[_Part]:
    """Every part: ``train/images``, ``images/train``, ``imagesTr`` or ``images``."""
    found: list[_Part] = []
    for split, names in _PARTS.items():
        below = subfolder(path, names)
        if below and (folders := _pair_of_folders(path, below)):
            found.append((split, *folders))
    if found:
        return found
    for split, end in _SUFFIXES.items():
        images, masks = subfolder(path, (f"images{end}",)), subfolder(path, (f"labels{end}",))
        if images and masks:
            found.append((split, images, masks, ""))
    whole = _pair_of_folders(path, "")
    if found or whole is None:
        # Where only the training part has labels, that is no split
        return found if len(found) != 1 else [(None, *found[0][1:])]
    for split, names in _PARTS.items():
        below, beside = (subfolder(path / folder, names) for folder in whole[:2])
        if below and beside:
            inside = subfolder(path / whole[2], names) if whole[2] else ""
            found.append((split, f"{whole[0]}/{below}", f"{whole[1]}/{beside}", inside and f"{whole[2]}/{inside}"))
    return found or [(None, *whole)]


def _pair_of_folders(root: Path, below: str) -> tuple[str, str, str] | None:
    images, masks, fovs = (subfolder(root / below, names) for names in (_IMAGES, _MASKS, _FOVS))
    if not images or not masks:
        return None
    above = f"{below}/" if below else ""
    return above + images, above + masks, fovs and above + fovs


@layout(
    "folders",
    column="mask",
    expects="images/ and masks/ (or image/ and label/, imagesTr/ and labelsTr/), flat or under train/, val/ and test/; "
    "fov/ if there is one",
    detect=lambda path: bool(_parts(path)),
)
def read_folders(path: Path, names: Sequence[str], dims: int) -> Listing:
    """Pairs by file name (see ``pairing.pair``); sub-folders are searched.

    ``dataset.json`` gives the names of classes, ``splits_final.json`` the folds.

    Raises:
        InputError: images and masks do not pair off, or a case has several image channels.
    """
    columns: dict[str, dict[str, Any]] = {name: {} for name in ("mask", "mask_fov", "split", "fold")}
    said, others = [], set[str]()
    for split, image_folder, mask_folder, fov_folder in _parts(path):
        images = _below(names, image_folder)
        _refuse_channels(path / image_folder, images)
        for column, folder, what in (("mask", mask_folder, "masks"), ("mask_fov", fov_folder, "fields of view")):
            beside = _below(names, folder) if folder else []
            others |= set(beside)
            pairs = pair(images, beside)
            check_pairs(pairs, str(path / image_folder), what)
            columns[column] |= pairs.of
            if column == "mask" and pairs.of:
                said.append(pairs.sentence("masks"))
        columns["split"] |= dict.fromkeys(images, split)
    folds = folds_of(path)
    columns["fold"] = {image: folds.get(stem(image).removesuffix("_0000")) for image in columns["mask"]}
    facts: dict[str, Any] = {"layout": "folders", "pairs": said, "target": "mask", "targets": ["mask"]}
    if (path / "dataset.json").is_file():
        facts["values"] = label_names(read_json(path / "dataset.json"))
    return Listing(columns, facts, frozenset(others))


def _below(names: Sequence[str], folder: str) -> list[str]:
    return [name for name in names if name.startswith(f"{folder}/")]


def _refuse_channels(folder: Path, images: list[str]) -> None:
    second = next((name for name in images if stem(name).endswith("_0001")), None)
    numbered = all(re.search(r"_\d{4}$", stem(name)) for name in images)
    if second and numbered and folder.name.lower() in {f"images{end}" for end in _SUFFIXES.values()}:
        raise InputError(
            f"{folder / second.rpartition('/')[2]}: the set has several image channels per case, and this program "
            "takes one. Name the channel to use in a manifest with the columns image and mask."
        )
