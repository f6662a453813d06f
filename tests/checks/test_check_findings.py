"""What a check finds, one folder made for each kind of trouble; and what it rightly finds nothing in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from dicom_making import MR, series, smooth
from frepa.checks.findings import Finding
from frepa.checks.peers import outlying
from frepa.checks.run import Checked, check_source
from frepa.checks.scanning import CRASHED, Failed, measure_all
from frepa.checks.splits import part_of
from frepa.datasets.opening import open_source
from frepa.images.angiograms import angiogram
from frepa.images.scan import Header, Scan
from frepa.images.source import Source

RNG = np.random.default_rng(8)


def check(folder: Path, *, dims: int = 2, workers: int = 0) -> Checked:
    return check_source(open_source(folder, dims=dims, canonical=False), num_workers=workers)


def of_kind(checked: Checked, kind: str) -> list[Finding]:
    return [finding for finding in checked.findings if finding.kind == kind]


def files(checked: Checked, kind: str) -> list[str]:
    return [finding.file for finding in of_kind(checked, kind)]


def picture(path: Path, size: Sequence[int] = (40, 50), *, high: int = 256) -> np.ndarray:
    pixels = RNG.integers(0, high, size, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def nifti(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> None:
    """``volume`` in file order (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 3.0, 1.0]) if affine is None else affine), path)


def test_broken_and_empty_scans_are_told_by_kind(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"good{i}.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good0.png").read_bytes()[:700])
    (tmp_path / "text.png").write_text("not an image at all")
    np.save(tmp_path / "nan.npy", np.full((20, 20), np.nan, np.float32))
    np.savez(tmp_path / "two.npz", a=np.zeros((3, 20, 20), np.uint8), b=np.zeros((3, 20, 20), np.uint8))
    Image.new("L", (30, 30), 7).save(tmp_path / "flat.png")
    nearly = np.zeros((100, 100), np.uint8)
    nearly[:1, :30] = np.arange(30)
    Image.fromarray(nearly).save(tmp_path / "nearly.png")
    picture(tmp_path / "small.png", (9, 30))
    checked = check(tmp_path)
    assert {kind: files(checked, kind) for kind in {finding.kind for finding in checked.findings}} == {
        "empty": ["empty.png"],
        "truncated": ["cut.png"],
        "damaged": ["text.png"],
        "nan": ["nan.npy"],
        "several arrays": ["two.npz"],
        "constant": ["flat.png"],
        "nearly constant": ["nearly.png"],
        "tiny": ["small.png"],
    }
    assert (checked.facts["scans"], checked.facts["unreadable"]) == (7, 5)


def test_label_maps_are_told_from_images(tmp_path: Path) -> None:
    areas = np.kron(RNG.integers(0, 200, (6, 6)), np.ones((20, 20), int)).astype(np.uint8)  # many values, all in areas
    Image.fromarray(areas).save(tmp_path / "areas.png")
    Image.fromarray(np.kron(RNG.integers(0, 2, (30, 30)), np.ones((2, 2), int)).astype(np.uint8) * 255).save(
        tmp_path / "two values.png"
    )
    picture(tmp_path / "masks/interpolated.png")  # as many values as an image; only its folder tells
    picture(tmp_path / "images/noise.png")
    smooth_image, _ = angiogram(64, 0)
    Image.fromarray((smooth_image * 255).astype(np.uint8)).save(tmp_path / "smooth.png")
    checked = check(tmp_path)
    assert files(checked, "looks like labels") == ["areas.png", "masks/interpolated.png", "two values.png"]
    assert {finding.kind for finding in checked.findings} == {"looks like labels"}


def test_slices_speak_for_their_volume(tmp_path: Path) -> None:
    """In 2D too a label volume is told once, and a volume with blank ends is one finding, not one per slice."""
    volume = RNG.integers(0, 900, (24, 20, 8)).astype(np.int16)
    volume[..., [0, 7]] = 0
    nifti(tmp_path / "image.nii.gz", volume)
    labels = np.zeros((24, 20, 8), np.uint8)
    labels[5:9, 5:9, 2:6] = 1
    nifti(tmp_path / "organ.nii.gz", labels)
    nifti(tmp_path / "nothing.nii.gz", np.zeros((24, 20, 8), np.uint8))
    checked = check(tmp_path)
    assert len(checked.records) == 24
    assert checked.facts["volumes they are slices of"] == 3
    assert [(f.kind, f.file, f.message) for f in checked.findings] == [
        ("blank slice", "image.nii.gz", "2 of 8 slices hold one value each"),
        ("constant", "nothing.nii.gz", "every value is 0 in each of 8 slices"),
        ("looks like labels", "organ.nii.gz", "holds at most 2 different values in a slice, from 0 to 1"),
    ]


def test_duplicates_by_pixels_whatever_the_file_and_the_orientation(tmp_path: Path) -> None:
    volume = RNG.integers(0, 900, (24, 20, 18)).astype(np.int16)
    nifti(tmp_path / "a.nii.gz", volume)
    turned = np.diag([-1.0, 1.0, 3.0, 1.0])
    turned[0, 3] = 23
    nifti(tmp_path / "b.nii", volume[::-1], turned)  # the same voxels at the same places, stored the other way round
    nifti(tmp_path / "c.nii", volume[::-1])  # mirrored: another image
    checked = check(tmp_path, dims=3)
    assert [(f.file, f.other) for f in of_kind(checked, "duplicate")] == [("b.nii", "a.nii.gz")]


def test_the_same_pixels_in_two_parts_of_a_split_and_under_two_labels(tmp_path: Path) -> None:
    twin = picture(tmp_path / "train/a.png")
    picture(tmp_path / "train/b.png")
    picture(tmp_path / "test/c.png")
    Image.fromarray(twin).save(tmp_path / "test/d.bmp")
    checked = check(tmp_path)
    assert checked.facts["split by"] == "the names of folders"
    assert [(f.kind, f.file, f.other) for f in checked.findings] == [("split duplicate", "train/a.png", "test/d.bmp")]

    rows = ["train/a.png,benign", "train/b.png,benign", "test/d.bmp,malignant"]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    conflict = of_kind(check(tmp_path / "list.csv"), "label conflict")
    assert [(f.file, f.message) for f in conflict] == [
        ("test/d.bmp", "labelled 'malignant', and as train/a.png 'benign'")
    ]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("set/Training/x.png", "train"),
        ("imagesTs/x.nii.gz", "test"),
        ("valid/p1/x.png", "val"),
        ("x.npz#test_images[3]", "test"),
        ("train.png", ""),
        ("trained/x.png", ""),
    ],
)
def test_parts_by_names_of_folders(name: str, part: str) -> None:
    assert part_of(name) == part


def test_one_patient_on_two_sides(tmp_path: Path) -> None:
    for part, patient in (("train", "P1"), ("train", "P2"), ("test", "P2")):
        folder = tmp_path / part / f"scan of {patient}"
        series(
            folder,
            smooth((4, 20, 20), seed=10 * len(part) + int(patient[1])),
            SOPClassUID=MR,
            Modality="MR",
            PatientID=patient,
        )
    checked = check(tmp_path, dims=3)
    assert checked.facts["known patients or studies"] == 2
    assert [(f.kind, f.file, f.other) for f in checked.findings] == [
        ("split patient", "train/scan of P2", "test/scan of P2")
    ]


def test_patients_that_no_header_names_are_not_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    rows = ["a.png,p1", "b.png,", "a.png,p1"]
    (tmp_path / "list.csv").write_text("path,group\n" + "\n".join(rows) + "\n")
    assert open_source(tmp_path / "list.csv").groups == 1
    assert open_source(tmp_path / "a.png").groups is None
    assert "known patients or studies" not in check(tmp_path).facts


def test_the_odd_one_is_found_among_its_peers(tmp_path: Path) -> None:
    """A folder per patient is too small to tell, so its scans are compared with the other patients'."""
    for patient in range(14):
        size = (30, 28, 10) if patient != 5 else (120, 28, 10)
        affine = np.diag([0.5, 0.5, 3.0, 1.0]) if patient != 9 else np.diag([0.5, 0.5, 9.0, 1.0])
        nifti(tmp_path / f"p{patient:02}/t1.nii.gz", RNG.integers(0, 900, size).astype(np.int16), affine)
    checked = check(tmp_path, dims=3)
    assert [(f.kind, f.file, f.message) for f in checked.findings] == [
        ("spacing", "p09/t1.nii.gz", "0.5 x 0.5 x 9 mm, usually about 0.5 x 0.5 x 3 mm"),
        ("size", "p05/t1.nii.gz", "10 x 28 x 120, usually about 10 x 28 x 30 (sorted)"),
    ]


def test_data_sets_of_different_sizes_are_not_odd_for_that(tmp_path: Path) -> None:
    for folder, size, count in (("a", (20, 24), 60), ("b", (200, 240), 12)):
        for i in range(count):
            picture(tmp_path / folder / f"{i}.png", size)
    picture(tmp_path / "b/odd.png", (20, 24))
    picture(tmp_path / "a/dim.png", (20, 24), high=6)
    Image.fromarray(RNG.integers(0, 60000, (20, 24)).astype(np.uint16)).save(tmp_path / "a/deep.png")
    checked = check(tmp_path)
    assert sorted((f.kind, f.file) for f in checked.findings) == [
        ("intensity", "a/deep.png"),
        ("looks like labels", "a/dim.png"),
        ("size", "b/odd.png"),
    ]
    assert of_kind(checked, "size")[0].message == "20 x 24, usually about 200 x 240 (sorted) in b/"


def test_a_folder_unlike_the_folders_beside_it_is_told_once(tmp_path: Path) -> None:
    for site in range(11):
        for i in range(10):
            picture(tmp_path / f"site{site:02}/{i}.png", (20, 24) if site != 4 else (80, 96))
    found = of_kind(check(tmp_path), "size")
    assert [(f.file, f.message) for f in found] == [
        ("site04/", "10 scans here: 80 x 96, usually about 20 x 24 (sorted)")
    ]


def test_a_mixed_folder_has_no_odd_ones(tmp_path: Path) -> None:
    for i in range(30):
        picture(tmp_path / f"{i}.png", (20, 24) if i % 3 else (200, 240))
    assert check(tmp_path).findings == []


def test_outliers_need_a_factor_and_a_distance() -> None:
    tight = np.array([[10.0]] * 20 + [[19.0]] + [[21.0]])
    assert np.flatnonzero(outlying(tight, 2.0)).tolist() == [21]
    wide = np.exp(np.linspace(0, 4, 40))[:, None]
    assert not outlying(np.append(wide, [[200.0]], axis=0), 2.0).any()


def test_label_files_that_do_not_fit(tmp_path: Path) -> None:
    volume = RNG.integers(0, 900, (20, 20, 18)).astype(np.int16)
    mask = np.zeros((20, 20, 18), np.uint8)
    mask[4:9, 4:9, 4:9] = 1
    moved = np.diag([1.0, 1.0, 3.0, 1.0])
    moved[0, 3] = 7
    turned = np.diag([-1.0, 1.0, 3.0, 1.0])
    turned[0, 3] = 19
    for i in range(5):
        nifti(tmp_path / f"imagesTr/c{i}_0000.nii.gz", volume + i)
    nifti(tmp_path / "labelsTr/c0.nii.gz", mask)
    nifti(tmp_path / "labelsTr/c1.nii.gz", mask[:-1])
    nifti(tmp_path / "labelsTr/c2.nii.gz", mask, moved)
    nifti(tmp_path / "labelsTr/c3.nii.gz", mask[::-1], turned)
    (tmp_path / "labelsTr/c4.nii.gz").write_bytes(b"")
    checked = check(tmp_path / "imagesTr", dims=3)
    assert [(f.kind, f.file, f.message) for f in checked.findings] == [
        ("mask size", "c1_0000.nii.gz", f"{tmp_path}/labelsTr/c1.nii.gz: 18 x 20 x 19, its image 18 x 20 x 20"),
        (
            "mask place",
            "c2_0000.nii.gz",
            f"{tmp_path}/labelsTr/c2.nii.gz: its centre is 7 mm away from its image's, or it is turned",
        ),
        ("mask turned", "c3_0000.nii.gz", f"{tmp_path}/labelsTr/c3.nii.gz: stored as SAL, its image as SAR"),
        ("mask missing", "c4_0000.nii.gz", f"{tmp_path}/labelsTr/c4.nii.gz: {_reason(checked, 'c4_0000.nii.gz')}"),
    ]

    rows = ["imagesTr/c0_0000.nii.gz,labelsTr/c0.nii.gz", "imagesTr/c1_0000.nii.gz,labelsTr/none.nii.gz"]
    (tmp_path / "list.csv").write_text("path,mask\n" + "\n".join(rows) + "\n")
    missing = of_kind(check(tmp_path / "list.csv", dims=3), "mask missing")
    assert [(f.file, f.message) for f in missing] == [("imagesTr/c1_0000.nii.gz", "labelsTr/none.nii.gz: not there")]


def _reason(checked: Checked, file: str) -> str:
    return next(f.message.split(": ", 1)[1] for f in checked.findings if f.file == file)


def test_ct_without_hounsfield_units_and_a_mix_of_both(tmp_path: Path) -> None:
    ct = RNG.integers(-1000, 300, (30, 30, 10)).astype(np.int16)
    nifti(tmp_path / "ct.nii.gz", ct)
    nifti(tmp_path / "standardised.nii.gz", (ct / 2 - 300).astype(np.float32) + 0.5)
    checked = check(tmp_path, dims=3)
    assert files(checked, "hu assumed") == ["ct.nii.gz"]
    assert [f.other for f in of_kind(checked, "hu mixed")] == ["standardised.nii.gz"]
    nifti(tmp_path / "shifted.nii.gz", (ct + 1024).astype(np.uint16))
    rows = ["ct.nii.gz,CT", "shifted.nii.gz,CT"]
    (tmp_path / "list.csv").write_text("path,modality\n" + "\n".join(rows) + "\n")
    checked = check(tmp_path / "list.csv", dims=3)
    assert [(f.kind, f.file) for f in checked.findings] == [("ct without hu", "shifted.nii.gz")]


def test_a_series_with_a_gap_is_told_once_in_2d_and_in_3d(tmp_path: Path) -> None:
    paths = series(tmp_path / "mr", smooth((9, 20, 20), low=0, high=900), SOPClassUID=MR, Modality="MR")
    paths[4].unlink()
    for dims, name in ((2, "mr/IM0000.dcm"), (3, "mr")):
        found = of_kind(check(tmp_path, dims=dims), "slices missing")
        assert [(f.file, f.message) for f in found] == [
            (name, "1 slice missing in 1 place, by the positions of the others")
        ]


def test_processes_change_nothing(tmp_path: Path) -> None:
    for i in range(150):
        picture(tmp_path / f"{i:03}.png", (20, 24))
    for i in (3, 140):
        (tmp_path / f"copy{i}.png").write_bytes((tmp_path / f"{i:03}.png").read_bytes())
    (tmp_path / "cut.png").write_bytes((tmp_path / "000.png").read_bytes()[:200])
    one, two = check(tmp_path), check(tmp_path, workers=2)
    assert one.findings == two.findings
    assert len(one.findings) == 3
    assert list(one.records.items()) == list(two.records.items())


class _Deadly(Source):
    """Records of which one ends the process that reads it, as a fault in a decoder would."""

    dims, location = 3, "memory"

    def __len__(self) -> int:
        return 20

    def name(self, index: int) -> str:
        return f"{index}.nii"

    def read(self, index: int) -> Scan:
        if index == 9:
            os._exit(9)
        return Scan(np.random.default_rng(index).integers(0, 255, (1, 4, 20, 20)).astype(np.uint8))

    def header(self, index: int) -> Header:
        return Header(1, (4, 20, 20))

    @property
    def fingerprint(self) -> str:
        return ""


def test_a_scan_that_ends_its_process_is_named_and_the_others_are_measured() -> None:
    told: list[int] = []
    results = measure_all(_Deadly(), num_workers=2, progress=told.append)
    assert sorted(results) == list(range(20))
    assert [index for index, result in results.items() if isinstance(result, Failed)] == [9]
    assert results[9] == CRASHED
    assert sum(told) == 20
