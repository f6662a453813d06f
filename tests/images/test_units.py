"""When values are taken for Hounsfield units, and when they are not."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from frepa.datasets.opening import open_source
from frepa.images.scan import ARBITRARY, HU, Scan
from frepa.images.units import ASSUMED_HU, CT_NOT_HU, declared, is_ct, looks_like_hu, with_values_judged

RNG = np.random.default_rng(12)


def thorax(padding: int | None = None) -> np.ndarray:
    values = np.concatenate([RNG.normal(-1000, 20, 4000), RNG.normal(-850, 60, 3000), RNG.normal(40, 30, 3000)])
    array = np.clip(np.rint(values), -1024, 3071).astype(np.int16)
    if padding is not None:
        array[:2000] = padding
    return array.reshape(1, 10, 20, 50)


@pytest.mark.parametrize("padding", [None, -2000, -3024])
def test_a_thorax_is_recognised(padding: int | None) -> None:
    scan = with_values_judged(Scan(thorax(padding)))
    assert scan.unit == HU
    assert scan.notes == (ASSUMED_HU,)
    assert looks_like_hu(thorax(padding).astype(np.float32))


@pytest.mark.parametrize(
    "array",
    [
        (thorax() + 1024).astype(np.uint16),  # shifted
        (thorax() + 1024).astype(np.int16),
        thorax() / np.float32(1000),  # scaled
        RNG.integers(-4096, 4096, (1, 10, 20, 50)).astype(np.int16),  # MR phase
        RNG.normal(0, 1, (1, 10, 20, 50)).astype(np.float32),  # standardised
        np.abs(RNG.normal(0, 400, (1, 10, 20, 50))).astype(np.int16),  # MR magnitude
        RNG.integers(-100, 150, (1, 10, 20, 50)).astype(np.int16),  # inside an abdomen: cannot be told
        RNG.integers(0, 256, (1, 10, 20, 50)).astype(np.uint8),
    ],
)
def test_other_values_are_not(array: np.ndarray) -> None:
    assert with_values_judged(Scan(array)).unit == ARBITRARY


def test_what_is_declared_counts_for_more_than_what_was_guessed() -> None:
    guessed = with_values_judged(Scan(thorax()))
    assert declared(guessed, modality="MRI").unit == ARBITRARY
    assert declared(guessed, modality="MRI").notes == ()
    assert declared(guessed, modality="CT").unit == HU
    assert declared(guessed, modality="ct_lung").notes == ()
    abdomen = Scan(RNG.integers(-100, 150, (1, 10, 20, 50)).astype(np.int16))
    assert declared(abdomen, modality="CT").unit == HU
    shifted = declared(Scan((thorax() + 1024).astype(np.int16)), modality="CT")
    assert shifted.unit == ARBITRARY
    assert shifted.notes == (CT_NOT_HU,)
    assert declared(shifted, unit=HU, intercept=-1024.0).unit == HU
    assert declared(guessed, unit=ARBITRARY).unit == ARBITRARY


def test_names_of_ct() -> None:
    assert all(is_ct(name) for name in ("CT", "ct", "ct_lung", "CT chest", "CT-abdomen"))
    assert not any(is_ct(name) for name in ("OCT", "MRI", "", None, "octa", "pet_ct", "CTA"))


def test_slices_share_the_unit_of_their_volume(tmp_path: Path) -> None:
    array = thorax()[0]
    array[0] = 40  # a slice that could be anything
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.diag([1, 1, 5, 1.0])), tmp_path / "a.nii.gz")
    source = open_source(tmp_path / "a.nii.gz")
    assert {source.read(i).unit for i in range(10)} == {HU}
    (tmp_path / "m.csv").write_text("path,modality\na.nii.gz,MRI\n")
    source = open_source(tmp_path / "m.csv")
    assert {source.read(i).unit for i in range(10)} == {ARBITRARY}


def test_real_scans(shared_data: Path) -> None:
    """All but 2 % of small lung crops are recognised; of MR and labels, none."""
    lungs = open_source(shared_data / "LIDC_nodules" / "VOIs" / "image", dims=3)
    indices = range(0, len(lungs), 8)
    assert np.mean([lungs.read(i).unit == HU for i in indices]) > 0.95
    for folder in ("Task04_Hippocampus", "small_3D_formats", "DICOM_MR_BrainTumorProgression"):
        source = open_source(shared_data / folder, dims=3)
        assert not any(source.read(i).unit == HU for i in range(0, len(source), 8))
