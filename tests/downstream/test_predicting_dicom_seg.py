"""Masks as DICOM segmentations of the series that they were predicted on."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from dicom_making import AXIAL, MR, SAGITTAL, series
from frepa.downstream.segmentation.model import Segmenter
from frepa.errors import InputError
from frepa.verbs.predict import predict
from tiny_runs import read_rows, speckles, threshold

OBLIQUE_PLANE = [*np.linalg.qr(np.array([[0.9, 0.1], [0.2, 0.95], [-0.3, 0.25]]))[0].T.ravel()]
STUDY = {
    "StudyInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.5", "PatientID": "4711", "PatientName": "Nobody",
    "PatientBirthDate": "", "PatientSex": "O", "StudyDate": "20200101", "StudyTime": "", "StudyID": "1",
    "AccessionNumber": "", "ReferringPhysicianName": "", "Modality": "MR", "SOPClassUID": MR, "SeriesNumber": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    "grid",
    [
        {"orientation": AXIAL},
        {"orientation": (-1, 0, 0, 0, -1, 0), "spacing": (0.4, 1.7), "step": 5.5},  # flipped, no two extents alike
        {"orientation": SAGITTAL, "spacing": (2.5, 0.3), "step": 0.7},
        {"orientation": (0.8, 0.6, 0, 0, 0, -1), "step": 3.3},
        {"orientation": OBLIQUE_PLANE, "spacing": (0.9, 0.5), "step": 4.0, "origin": (37.25, -81.5, 640.0)},  # cropped
    ],
)
def test_a_dicom_segmentation_lies_on_its_series(solid, tmp_path, monkeypatch, grid) -> None:
    hd = pytest.importorskip("highdicom")
    monkeypatch.setattr(Segmenter, "predict", threshold)
    # Frames of whole bytes: where bits of two share one, GDCM (SimpleITK 2.5) reads the last bits of the first wrongly
    files = series(tmp_path / "series", speckles((5, 8, 9)), order=[3, 1, 4, 0, 2], **grid, **STUDY)
    how = {"quiet": True, "format": "dicom-seg"}
    out = predict(str(solid), [str(tmp_path / "series")], out=str(tmp_path / "out"), **how)
    seg = hd.seg.segread(out / "masks/series.dcm")
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID, seg.PatientID) == ("1.2.3.4", "1.2.3.5", "4711")
    images = [pydicom.dcmread(file) for file in files]
    # By reference to each image
    found = seg.get_pixels_by_source_instance([image.SOPInstanceUID for image in images], combine_segments=True)
    np.testing.assert_array_equal(found, np.stack([image.pixel_array > 50 for image in images]))
    # By place in the patient
    image = hd.get_volume_from_series(images)
    mask = seg.get_volume(combine_segments=True).match_geometry(image)
    np.testing.assert_array_equal(mask.array, image.array > 50)
    # By place in the patient, read by another library
    scan = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    other = sitk.ReadImage(str(out / "masks/series.dcm"))
    back = sitk.GetArrayFromImage(sitk.Resample(other, scan, sitk.Transform(), sitk.sitkNearestNeighbor))
    np.testing.assert_array_equal(back > 0, sitk.GetArrayFromImage(scan) > 50)
    again = predict(str(solid), [str(tmp_path / "series")], out=str(tmp_path / "again"), **how)
    assert hd.seg.segread(again / "masks/series.dcm").SOPInstanceUID == seg.SOPInstanceUID


@pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy (package dicom3tools of Debian) is not installed"
)
def test_a_dicom_segmentation_is_one_by_the_standard(solid, flat, tmp_path, monkeypatch) -> None:
    """No error of a checker that holds objects against the tables of the standard; of a series and of one image."""
    pytest.importorskip("highdicom")
    monkeypatch.setattr(Segmenter, "predict", threshold)
    files = series(tmp_path / "series", speckles((5, 7, 9)), orientation=OBLIQUE_PLANE, **STUDY)
    for run, source in ((solid, tmp_path / "series"), (flat, files[2])):
        out = predict(str(run), [str(source)], out=str(tmp_path / run.parent.name), quiet=True, format="dicom-seg")
        (mask,) = (out / "masks").iterdir()
        told = subprocess.run(["dciodvfy", "-new", str(mask)], capture_output=True, text=True, check=False).stderr
        assert "Segmentation" in told.splitlines()
        assert [line for line in told.splitlines() if line.startswith("Error")] == []


def test_what_cannot_be_a_dicom_segmentation_is_said(solid, tmp_path, monkeypatch) -> None:
    pytest.importorskip("highdicom")
    volume = tmp_path / "volume.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(speckles((6, 9, 11))), str(volume))
    how = {"out": str(tmp_path / "out"), "quiet": True, "format": "dicom-seg"}
    with pytest.raises(InputError, match=r"volume\.nii\.gz in .* is no DICOM"):
        predict(str(solid), [str(volume)], **how)
    # Without the identifiers of a study it belongs nowhere.
    series(tmp_path / "lost", speckles((5, 7, 9)))
    with pytest.raises(InputError, match="None of the scans"):
        predict(str(solid), [str(tmp_path / "lost")], **how)
    (row,) = read_rows(tmp_path / "out/skipped.csv")
    assert "no DICOM segmentation can be made of it: its files have no StudyInstanceUID and no Fr" in row["reason"]
    series(tmp_path / "empty", speckles((5, 7, 9)), uid="", **STUDY)
    with pytest.raises(InputError, match="None of the scans"):
        predict(str(solid), [str(tmp_path / "empty")], **how, overwrite=True)
    (row,) = read_rows(tmp_path / "out/skipped.csv")
    assert "its files have no SeriesInstanceUID, by which" in row["reason"]
