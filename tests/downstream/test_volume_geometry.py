"""Volumes whose image and mask files lie differently on disk, and predictions that lie as the image does."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel import orientations

from frepa.datasets.cases import Case
from frepa.datasets.labels import LabelMap
from frepa.datasets.opening import open_source
from frepa.datasets.reading import read_case, read_scan
from frepa.downstream.segmentation.data import check_sets, open_sets
from frepa.downstream.segmentation.testing import _in_file_axes, write_labels
from frepa.errors import InputError
from frepa.images.filed import Filed, on_file

AFFINE = np.array([[-0.9, 0, 0, 40], [0, 0, 1.5, -20], [0, 1.1, 0, 7], [0, 0, 0, 1]])


def save(path: Path, values: np.ndarray, affine: np.ndarray, codes: str | None = None) -> None:
    """Write ``(x, y, z)`` values, turned to ``codes`` first when asked; every voxel keeps its place."""
    image = nibabel.Nifti1Image(values, affine)
    if codes is not None:
        now, wanted = orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(codes))
        image = image.as_reoriented(orientations.ornt_transform(now, wanted))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def volume(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = (rng.random((9, 11, 7)) < 0.3).astype(np.uint8)
    return (100 * mask + rng.integers(0, 20, mask.shape)).astype(np.int16), mask


def case_of(image: Path, mask: Path) -> Case:
    return Case("c", open_source(image, dims=3, canonical=False), 0, mask)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "ASL"])
def test_image_and_mask_meet_whatever_way_their_files_lie(tmp_path: Path, codes: str) -> None:
    image, mask = volume()
    save(tmp_path / "image.nii.gz", image, AFFINE)
    save(tmp_path / "mask.nii.gz", mask, AFFINE, codes)
    case = case_of(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz")
    labelled = read_case(case, LabelMap((0, 1), 0), 3)
    # Bright voxels are the labelled ones, in every orientation.
    np.testing.assert_array_equal(labelled.classes, labelled.image[0] > 0.5)


def test_predictions_have_the_axes_and_place_of_the_image_file(tmp_path: Path) -> None:
    image, mask = volume()
    save(tmp_path / "image.nii.gz", image, AFFINE)
    case = case_of(tmp_path / "image.nii.gz", tmp_path / "image.nii.gz")
    canonical = read_scan(case.image, 3)
    found = (canonical.array[0] > 50).astype(np.uint8)
    path = write_labels(tmp_path / "out", *_in_file_axes(found, case))
    saved = nibabel.load(path)
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), mask)
    native = read_scan(case.image, 3, canonical=False)
    back = on_file(canonical.array, canonical.affine, Filed(native.size, native.affine))
    np.testing.assert_array_equal(back, native.array)


def test_a_mask_of_another_place_is_refused(tmp_path: Path) -> None:
    for i in range(4):
        image, mask = volume(i)
        moved = AFFINE.copy()
        moved[2, 3] += 30 if i == 2 else 0.2
        save(tmp_path / "imagesTr" / f"v{i}.nii.gz", image, AFFINE)
        save(tmp_path / "labelsTr" / f"v{i}.nii.gz", mask, moved)
    with pytest.raises(InputError, match=r"lies elsewhere in the patient than its image: .*v2\.nii\.gz"):
        check_sets(open_sets([str(tmp_path)], dims=3), dims=3)
