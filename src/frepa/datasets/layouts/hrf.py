"""HRF (Budai et al. 2013): ``images/01_dr.JPG``, ``manual1/01_dr.tif``, ``mask/01_dr_mask.tif`` (field of view)."""

from __future__ import annotations

from pathlib import Path

from frepa.datasets.annotations import Case
from frepa.datasets.layouts.pairing import files_in, pair, stem, subfolder
from frepa.datasets.layouts.registry import Listing, layout


def _detect(path: Path) -> bool:
    return path.is_dir() and subfolder(path, ("images",)) is not None and subfolder(path, ("manual1",)) is not None


@layout("hrf", expects="images, manual1 and mask (field of view)", detect=_detect)
def read_hrf(path: Path, dims: int) -> Listing:
    """No official split. Every image is another person."""
    image_folder, mask_folder = subfolder(path, ("images",)), subfolder(path, ("manual1",))
    assert image_folder is not None
    assert mask_folder is not None
    images = files_in(image_folder, dims)
    masks = pair(images, files_in(mask_folder, dims))
    fov_folder = subfolder(path, ("mask",))
    fovs = pair(images, files_in(fov_folder, dims)) if fov_folder else {}
    cases = [Case(stem(i), i, masks[i], fovs.get(i), group=stem(i)) for i in images if i in masks]
    return Listing(cases, [i.name for i in images if i not in masks], binary=True)
