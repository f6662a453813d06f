"""Medical Segmentation Decathlon, nnU-Net: ``imagesTr/x.nii.gz`` (``x_0000.nii.gz``) and ``labelsTr/x.nii.gz``."""

from __future__ import annotations

from pathlib import Path

from frepa.datasets.annotations import Case
from frepa.datasets.layouts.pairing import files_in, stem
from frepa.datasets.layouts.registry import Listing, layout
from frepa.errors import InputError


def _detect(path: Path) -> bool:
    return (path / "imagesTr").is_dir() and (path / "labelsTr").is_dir()


@layout("decathlon", expects="imagesTr and labelsTr with files of equal names", detect=_detect)
def read_decathlon(path: Path, dims: int) -> Listing:
    """Only the labelled part, ``imagesTr``; it has no official split into training and test."""
    images = files_in(path / "imagesTr", dims)
    second = [image for image in images if stem(image).endswith("_0001")]
    if second and all(stem(image).rsplit("_", 1)[-1].isdigit() for image in images):
        raise InputError(
            f"{second[0]}: the set has several image channels per case, and this program takes one. "
            "Name the channel to use in a manifest with the columns image and mask."
        )
    masks = {stem(file): file for file in files_in(path / "labelsTr", dims)}
    cases, unpaired = [], []
    for image in images:
        name = stem(image) if stem(image) in masks else stem(image).removesuffix("_0000")
        if name in masks:
            cases.append(Case(name, image, masks[name]))
        else:
            unpaired.append(image.name)
    return Listing(cases, unpaired)
