"""Series: which files, in which order, at which place; against SimpleITK where it can read them too."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.uid import generate_uid

from dicom_making import CORONAL, MR, SAGITTAL, dataset, save, series, smooth
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.anonymity import anonymous_group
from frepa.images.orientation import axis_codes, reorient_array
from frepa.images.scan import HU, Scan, UnreadableScan

RNG = np.random.default_rng(5)
SHUFFLED = (3, 0, 6, 1, 5, 2, 4)
CT_SCALE = {"RescaleSlope": 1, "RescaleIntercept": -1024}
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def by_simpleitk(files: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """``(D, H, W)`` values and the affine (D, H, W) to RAS, read by GDCM."""
    image = sitk.ReadImage(files)
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = direction[:, ::-1], image.GetOrigin()
    return sitk.GetArrayFromImage(image), _TO_RAS @ lps


def same_volume(scan: Scan, values: np.ndarray, affine: np.ndarray) -> None:
    """The same values at the same places, whatever the axes."""
    assert scan.affine is not None
    array, turned = reorient_array(values[None], affine, axis_codes(scan.affine))
    assert np.array_equal(scan.array, array)
    assert np.allclose(scan.affine, turned, atol=1e-3)


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), CORONAL, SAGITTAL, (-1, 0, 0, 0, -1, 0), (0, 1, 0, 1, 0, 0)]
)
def test_slices_are_sorted_by_place_and_lie_where_simpleitk_puts_them(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    volume = smooth((7, 12, 9))
    paths = series(tmp_path / "s", volume, orientation=orientation, order=SHUFFLED, **CT_SCALE)
    in_place = [str(paths[SHUFFLED.index(d)]) for d in range(7)]
    values, affine = by_simpleitk(in_place)
    source = open_source(tmp_path / "s", dims=3)
    assert len(source) == 1
    scan = source.read(0)
    same_volume(scan, values, affine)
    assert axis_codes(scan.affine) == "SPL"
    assert scan.unit == HU
    assert scan.array.dtype == np.int16
    stored = open_source(tmp_path / "s", dims=3, canonical=False).read(0)
    same_volume(stored, values, affine)
    assert source.header(0).size == scan.size
    assert source.header(0).spacing == pytest.approx(scan.spacing)


def test_oblique_slices_lie_where_simpleitk_puts_them(tmp_path: Path) -> None:
    turn = np.deg2rad(25)
    orientation = (np.cos(turn), np.sin(turn), 0.0, -np.sin(turn) * 0.9, np.cos(turn) * 0.9, np.sqrt(1 - 0.81))
    paths = series(tmp_path / "s", smooth((6, 10, 8)), orientation=orientation)
    values, affine = by_simpleitk([str(path) for path in paths])
    same_volume(open_source(tmp_path / "s", dims=3).read(0), values, affine)


def test_tilted_gantry_is_in_the_affine_and_noted(tmp_path: Path) -> None:
    series(tmp_path / "s", smooth((5, 8, 8)), shift=(0.0, 0.7, 0.0))
    source = open_source(tmp_path / "s", dims=3, canonical=False)
    scan = source.read(0)
    assert any("tilted gantry" in note.reason for note in source.notes)
    # The place of the first pixel of the fourth slice, towards left and posterior as DICOM counts
    place = _TO_RAS @ scan.affine @ [3, 0, 0, 1]
    assert np.allclose(place[:3], [-10, -20 + 3 * 0.7, 30 + 3 * 2.0])


def test_without_series_uid_the_folder_and_the_geometry_decide(tmp_path: Path) -> None:
    series(tmp_path / "a", smooth((4, 8, 8)), uid="")
    series(tmp_path / "a", smooth((3, 8, 8)), uid="", orientation=SAGITTAL, name="SAG{}")
    series(tmp_path / "b", smooth((5, 8, 8)), uid="")
    source = open_source(tmp_path, dims=3)
    assert sorted(source.read(i).array.size // 64 for i in range(len(source))) == [3, 4, 5]
    assert any("2 orientations" in note.reason for note in source.notes)


def test_the_real_series_without_uids_is_one_volume(shared_data: Path) -> None:
    folder = shared_data / "TotalSegmentator_examples" / "example_ct_dicom"
    source = open_source(folder, dims=3, canonical=False)
    assert len(source) == 1
    assert not source.notes
    scan = source.read(0)
    assert scan.group is None
    assert scan.spacing == pytest.approx((2.0, 0.9765625, 0.9765625))


def test_gaps_are_counted_and_uneven_steps_noted(tmp_path: Path) -> None:
    paths = series(tmp_path / "gap", smooth((9, 8, 8)))
    paths[3].unlink()
    paths[4].unlink()
    paths[7].unlink()
    source = open_source(tmp_path / "gap", dims=3)
    assert source.read(0).size == (6, 8, 8)
    assert [note.reason for note in source.notes] == ["3 slices missing in 2 places, by the positions of the others"]
    uneven = tmp_path / "uneven"
    for number, z in enumerate((0.0, 2.0, 4.0, 6.4)):
        series(uneven, smooth((1, 8, 8)), origin=(0, 0, z), uid="1.2.3", name=f"{number}.dcm")
    assert "unevenly spaced" in open_source(uneven, dims=3).notes[0].reason


def test_a_place_covered_twice_by_echoes_is_two_volumes(tmp_path: Path) -> None:
    first, second = smooth((4, 8, 8), 1), smooth((4, 8, 8), 2)
    options = {"uid": "1.2.3", "SOPClassUID": MR, "Modality": "MR"}
    series(tmp_path / "s", first, EchoNumbers=1, EchoTime=10, name="A{}.dcm", **options)
    series(tmp_path / "s", second, EchoNumbers=2, EchoTime=80, name="B{}.dcm", **options)
    source = open_source(tmp_path / "s", dims=3)
    assert [source.name(i) for i in range(2)] == [".#series=0.0", ".#series=0.1"]
    assert np.array_equal(source.read(0).array[0], first)
    assert np.array_equal(source.read(1).array[0], second)
    assert all("one of 2 volumes" in note.reason for note in source.notes)


def test_a_single_repeated_slice_is_left_out_and_named(tmp_path: Path) -> None:
    volume = smooth((5, 8, 8))
    series(tmp_path / "s", volume, uid="1.2.3")
    series(tmp_path / "s", volume[2:3], uid="1.2.3", origin=(-10, -20, 34.0), name="again.dcm", AcquisitionNumber=9)
    source = open_source(tmp_path / "s", dims=3)
    assert np.array_equal(source.read(0).array[0], volume)
    assert [entry.path for entry in source.skipped] == ["again.dcm"]
    assert "single slice" in source.skipped[0].reason or "same place" in source.skipped[0].reason


def test_localisers_are_left_out_and_named(tmp_path: Path) -> None:
    series(tmp_path, smooth((4, 8, 8)))
    series(tmp_path, smooth((1, 8, 8)), name="scout.dcm", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    series(tmp_path, smooth((1, 8, 8)), name="topo.dcm", SeriesDescription="Topogram  0.6  T20s")
    for dims, count in ((3, 1), (2, 4)):
        source = open_source(tmp_path, dims=dims)
        assert len(source) == count
        assert {entry.path: entry.reason for entry in source.skipped} == dict.fromkeys(
            ["scout.dcm", "topo.dcm"], "a localiser (scout), left out"
        )


def test_a_slice_per_folder_is_put_together(tmp_path: Path) -> None:
    volume = smooth((6, 8, 8))
    for d in range(6):
        series(tmp_path / f"{9 - d}", volume[d : d + 1], origin=(0, 0, 2.0 * d), uid="1.2.3", name="I0")
    source = open_source(tmp_path, dims=3)
    assert len(source) == 1
    assert np.array_equal(source.read(0).array[0], volume)


def test_names_without_ending_or_preamble_are_found_by_content(tmp_path: Path) -> None:
    volume = smooth((4, 8, 8))
    paths = series(tmp_path, volume, name="CT.1.2.840.{}")
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[132:])  # neither preamble nor mark
    (tmp_path / "notes").write_text("nothing of interest, and no image")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    source = open_source(tmp_path, dims=3)
    assert len(source) == 1
    assert not source.skipped
    assert np.array_equal(source.read(0).array[0], volume)


def test_several_series_of_a_folder_are_named_and_can_be_opened_by_name(tmp_path: Path) -> None:
    one, two = smooth((4, 8, 8), 1), smooth((5, 8, 8), 2)
    series(tmp_path / "s", one, uid="1.2.1", name="A{}.dcm", PatientID="p1")
    series(tmp_path / "s", two, uid="1.2.2", name="B{}.dcm", PatientID="p2")
    source = open_source(tmp_path, dims=3)
    assert [source.name(i) for i in range(2)] == ["s#series=0", "s#series=1"]
    assert len(set(source.group_codes.tolist())) == 2
    for number, volume in enumerate((one, two)):
        named = open_source(f"{tmp_path}/s#series={number}", dims=3)
        assert np.array_equal(named.read(0).array[0], volume)
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label\ns#series=1,x\n")
    listed = open_source(manifest, dims=3)
    assert np.array_equal(listed.read(0).array[0], two)
    slices = open_source(manifest, dims=2)
    assert len(slices) == 5
    assert np.array_equal(slices.read(3).array[0], two[3])
    manifest.write_text("path\ns\n")
    with pytest.raises(InputError, match=r"holds 2 series; name one, e\.g\. s#series=0"):
        open_source(manifest, dims=3)


def test_slices_are_named_by_their_files_and_scaled_by_their_volume(tmp_path: Path) -> None:
    from frepa.images.intensity import bounds

    volume = np.arange(5 * 64, dtype=np.uint16).reshape(5, 8, 8) * 10
    series(tmp_path / "s", volume, SOPClassUID=MR, Modality="MR", order=(4, 3, 2, 1, 0))
    source = open_source(tmp_path, dims=2)
    assert [source.name(i) for i in range(5)] == [f"s/IM{n:04d}.dcm" for n in (4, 3, 2, 1, 0)]
    for i in range(5):
        scan = source.read(i)
        assert np.array_equal(scan.array[0], volume[i])
        assert bounds(scan) == pytest.approx(np.percentile(volume, (0.5, 99.5)))
        assert scan.spacing == pytest.approx((0.8, 0.6))
        assert scan.modality == "MRI"


def test_slices_are_shown_the_usual_way_up(tmp_path: Path) -> None:
    volume = smooth((3, 8, 10))
    # A patient on the belly: rows run to the right, columns to the front
    series(tmp_path, volume, orientation=(-1, 0, 0, 0, -1, 0))
    source = open_source(tmp_path, dims=2)
    assert np.array_equal(source.read(1).array[0], volume[1, ::-1, ::-1])


def test_one_slice_is_no_volume_and_an_image_is_none_either(tmp_path: Path) -> None:
    series(tmp_path, smooth((1, 8, 8)))
    save(dataset(smooth((8, 8)), Modality="DX", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1"), tmp_path / "x.dcm")
    with pytest.raises(InputError, match="None of the 2 files") as caught:
        open_source(tmp_path, dims=3)
    assert "single slice" in str(caught.value)
    assert "an image, not a volume" in str(caught.value)
    assert len(open_source(tmp_path, dims=2)) == 2
    with pytest.raises(InputError, match="a single slice, no volume; read it with dims 2"):
        open_source(tmp_path / "IM0000.dcm", dims=3)


def test_group_is_a_keyed_hash_of_the_patient_or_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, patient, study in (("a", "P-1", "1.1"), ("b", "P-1", "1.2"), ("c", "ANONYMOUS", "1.3"), ("d", "", "")):
        series(tmp_path / name, smooth((2, 8, 8)), PatientID=patient, StudyInstanceUID=study)
    source = open_source(tmp_path, dims=3)
    groups = [source.read(i).group for i in range(4)]
    assert groups[0] == groups[1] != groups[2]
    assert groups[3] is None
    codes = source.group_codes.tolist()
    assert codes[0] == codes[1]
    assert len(set(codes)) == 3
    assert not any("P-1" in str(value) for value in groups)
    monkeypatch.setenv("FREPA_SECRET", "ours")
    (tmp_path / "a").rename(tmp_path / "z")  # not what this process has read before
    renamed = open_source(tmp_path, dims=3)
    keyed = hmac.new(b"ours", b"0\0P-1", hashlib.sha256).hexdigest()[:16]
    assert renamed.read(len(renamed) - 1).group not in groups
    assert anonymous_group("P-1") == keyed


def test_headers_are_read_by_the_thousand(tmp_path: Path) -> None:
    """A flat folder of many series: every series found, files never mixed up."""
    uids = [generate_uid() for _ in range(20)]
    volumes = [smooth((5, 4, 4), seed) for seed in range(20)]
    for number, (uid, volume) in enumerate(zip(uids, volumes)):
        series(tmp_path, volume, uid=uid, name=f"{number:02d}-{{}}")
    source = open_source(tmp_path, dims=3)
    assert len(source) == 20
    found = {scan.array.tobytes() for scan in (source.read(i) for i in range(20))}
    assert found == {volume.tobytes() for volume in volumes}


def test_one_truncated_slice_costs_itself_in_2d_and_is_named_in_3d(tmp_path: Path) -> None:
    """The others are scaled by the volume that can be read, not lost with it."""
    from frepa.images.intensity import bounds

    volume = smooth((6, 20, 20), low=0, high=900)
    paths = series(tmp_path / "mr", volume, SOPClassUID=MR, Modality="MR")
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    source = open_source(tmp_path)
    for index in range(6):
        if index == 2:
            with pytest.raises(UnreadableScan, match=r"^mr/IM0002.dcm: truncated"):
                source.read(index)
        else:
            limits = np.percentile(np.delete(volume, 2, axis=0), (0.5, 99.5))
            assert bounds(source.read(index)) == pytest.approx(tuple(limits))
    with pytest.raises(UnreadableScan, match=r"^mr: slice 3 of 6: truncated"):
        open_source(tmp_path, dims=3).read(0)
