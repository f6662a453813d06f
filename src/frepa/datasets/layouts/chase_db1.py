"""CHASE_DB1 (Fraz et al. 2012): ``Image_NNL.jpg`` beside ``Image_NNL_1stHO.png`` in one folder."""

from __future__ import annotations

import re
from pathlib import Path

from frepa.datasets.annotations import Case
from frepa.datasets.layouts.pairing import files_in, pair, stem, subfolder
from frepa.datasets.layouts.registry import Listing, layout

_IMAGE = re.compile(r"Image_(\d+)([LR])$", re.IGNORECASE)
_TRAINING_IMAGES = 20


def _detect(path: Path) -> bool:
    return path.is_dir() and any(path.glob("Image_*_1stHO.*"))


@layout("chase_db1", expects="Image_01L.jpg beside Image_01L_1stHO.png, and so on", detect=_detect)
def read_chase_db1(path: Path, dims: int) -> Listing:
    """The usual split: first 20 images for training, the last 8 for testing; both eyes of a child are one group.

    The first observer is the truth. A folder ``fov_masks`` is not official; it is used where it is present.
    """
    files = files_in(path, dims)
    images = [file for file in files if _IMAGE.match(stem(file))]
    fov_folder = subfolder(path, ("fov_masks", "fov"))
    fovs = pair(images, files_in(fov_folder, dims)) if fov_folder else {}
    truths = {stem(file).lower(): file for file in files}
    cases, unpaired = [], []
    for position, image in enumerate(images):
        mask = truths.get(f"{stem(image)}_1stHO".lower())
        if mask is None:
            unpaired.append(image.name)
            continue
        child = _IMAGE.match(stem(image)).group(1)  # type: ignore[union-attr]
        split = "train" if position < _TRAINING_IMAGES else "test"
        cases.append(Case(stem(image), image, mask, fovs.get(image), group=child, split=split))
    return Listing(cases, unpaired, binary=True)
