"""NIfTI, FreeSurfer, MetaImage, NRRD and HDF5 against nibabel, SimpleITK and h5py: values, spacing, places, slices."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.intensity import bounds
from frepa.images.orientation import CANONICAL, axis_codes, reorient_array, same_grid, through_plane
from frepa.images.readers.nifti import NO_ORIENTATION
from frepa.images.scan import Scan, UnreadableScan

RNG = np.random.default_rng(9)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique(spacing: tuple[float, float, float] = (0.9, 1.1, 4.0), degrees: float = 12.0) -> np.ndarray:
    """(x, y, z) to RAS: turned about two axes."""
    a, b = np.deg2rad(degrees), np.deg2rad(degrees / 2)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ tip @ np.diag(spacing), (-30.0, 14.0, 100.0)
    return affine


def whole(path: Path, **options: object) -> Scan:
    return open_source(path, **{"dims": 3, **options}).read(0)  # type: ignore[arg-type]


def agrees(scan: Scan, values: np.ndarray, affine: np.ndarray) -> None:
    """Same values at the same places as ``(x, y, z)`` values with their affine to RAS."""
    order = affine[:, [2, 1, 0, 3]]
    turned, placed = reorient_array(values.transpose(2, 1, 0)[None], order, axis_codes(scan.affine))
    assert np.array_equal(scan.array, turned)
    assert np.allclose(scan.affine, placed, atol=1e-4)
    assert scan.spacing == pytest.approx(np.linalg.norm(scan.affine[:3, :3], axis=0))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "ASL", "SRA"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_values_and_places_equal_nibabel(tmp_path: Path, codes: str, suffix: str) -> None:
    values = RNG.integers(-500, 900, (7, 9, 5)).astype(np.int16)
    start = nibabel.Nifti1Image(values, oblique())
    to = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(start.affine), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    nibabel.save(start.as_reoriented(to), tmp_path / f"a{suffix}")
    image = nibabel.load(tmp_path / f"a{suffix}")
    scan = whole(tmp_path / f"a{suffix}")
    agrees(scan, np.asarray(image.dataobj), image.affine)
    assert axis_codes(scan.affine) == CANONICAL
    stored = whole(tmp_path / f"a{suffix}", canonical=False)
    assert np.array_equal(stored.array[0], np.asarray(image.dataobj).transpose(2, 1, 0))
    assert stored.spacing == pytest.approx(image.header.get_zooms()[::-1], rel=1e-5)
    by_itk = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    assert stored.spacing == pytest.approx(by_itk.GetSpacing()[::-1], rel=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_nifti_types_and_scaling(tmp_path: Path, dtype: type) -> None:
    values = (RNG.random((6, 5, 4)) * 200).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    scan = whole(tmp_path / "a.nii.gz", canonical=False)
    assert np.allclose(scan.array[0], values.transpose(2, 1, 0))
    assert scan.array.dtype == (np.float32 if dtype is np.float64 else dtype)
    image = nibabel.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.eye(4))
    image.header.set_slope_inter(0.25, -7)
    raw = RNG.integers(-3000, 3000, (6, 5, 4)).astype(np.int16)
    path = tmp_path / "b.nii"
    with open(path, "wb") as file:
        image.header["vox_offset"] = 352
        image.header["magic"] = b"n+1"
        file.write(image.header.binaryblock + b"\0" * 4 + raw.tobytes(order="F"))
    expected = nibabel.load(path).get_fdata()
    assert np.array_equal(expected, raw * 0.25 - 7)
    assert np.allclose(whole(path, canonical=False).array[0], expected.transpose(2, 1, 0))


def test_four_axes_are_several_volumes_and_their_slices(tmp_path: Path) -> None:
    values = RNG.integers(0, 900, (8, 9, 5, 3)).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 5, 1.0])), tmp_path / name)
        source = open_source(tmp_path / name, dims=3)
        assert len(source) == 3
        for i in (2, 0, 1):
            # RAS to SPL: axes in reverse, the last two turned over
            expected = values[..., i].transpose(2, 1, 0)[:, ::-1, ::-1]
            assert np.array_equal(source.read(i).array[0], expected)
        slices = open_source(tmp_path / name, dims=2)
        assert len(slices) == 15
        scan = slices.read(7)  # the third slice of the second volume
        assert np.array_equal(scan.array[0], values[::-1, ::-1, 2, 1].T)
        assert bounds(scan) == pytest.approx(np.percentile(values[..., 1], (0.5, 99.5)))


def test_colour_and_other_files_of_nibabel(tmp_path: Path) -> None:
    colours = RNG.integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    structured = np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(structured, np.eye(4)), tmp_path / "rgb.nii")
    scan = whole(tmp_path / "rgb.nii", canonical=False)
    assert np.array_equal(scan.array, colours.transpose(3, 2, 1, 0))
    values = RNG.integers(0, 255, (6, 5, 4)).astype(np.uint8)
    for name, kind in (("a.mgz", nibabel.MGHImage), ("a.mgh", nibabel.MGHImage), ("a.hdr", nibabel.Nifti1Pair)):
        nibabel.save(kind(values, oblique((1.0, 1.0, 1.0), 0.0)), tmp_path / name)
        agrees(whole(tmp_path / name), values, oblique((1.0, 1.0, 1.0), 0.0))
    (tmp_path / "a.img").unlink()
    with pytest.raises(InputError, match=r"a\.hdr: file not found; it needs a\.img beside it"):
        open_source(tmp_path / "a.hdr", dims=3)


def test_a_file_that_gives_no_orientation_is_not_turned(tmp_path: Path) -> None:
    values = RNG.integers(0, 255, (6, 5, 4)).astype(np.uint8)
    image = nibabel.Nifti1Image(values, None)
    image.header.set_zooms((0.5, 0.6, 3.0))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "a.nii")
    scan = whole(tmp_path / "a.nii")
    assert scan.affine is None
    assert NO_ORIENTATION in scan.notes
    assert scan.spacing == pytest.approx((3.0, 0.6, 0.5))
    assert np.array_equal(scan.array[0], values.transpose(2, 1, 0))
    assert np.array_equal(open_source(tmp_path / "a.nii").read(2).array[0], values[..., 2].T)


def test_micrometres_become_millimetres(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.diag([500, 500, 2000, 1.0]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    assert whole(tmp_path / "a.nii").spacing == pytest.approx((2.0, 0.5, 0.5))


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("compress", [False, True])
def test_simpleitk_files(tmp_path: Path, name: str, compress: bool) -> None:
    values = RNG.integers(-900, 900, (5, 8, 7)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    affine = LPS_TO_RAS @ oblique()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).reshape(-1).tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(tmp_path / name), compress)
    agrees(whole(tmp_path / name), values.transpose(2, 1, 0), oblique())
    stored = whole(tmp_path / name, canonical=False)
    assert np.array_equal(stored.array[0], values)
    source = open_source(tmp_path / name, dims=3)
    assert source.header(0).size == source.read(0).size


def test_colour_vectors_and_series_of_simpleitk(tmp_path: Path) -> None:
    colours = RNG.integers(0, 255, (4, 6, 5, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "rgb.mha"))
    assert np.array_equal(whole(tmp_path / "rgb.mha", canonical=False).array, np.moveaxis(colours, -1, 0))
    vectors = RNG.random((4, 6, 5, 2)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(vectors, isVector=True), str(tmp_path / "two.nrrd"))
    source = open_source(tmp_path / "two.nrrd", dims=3, canonical=False)
    assert len(source) == 2
    assert np.array_equal(source.read(1).array[0], vectors[..., 1])
    times = RNG.integers(0, 99, (3, 4, 6, 5)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(times, isVector=False), str(tmp_path / "time.mha"))
    source = open_source(tmp_path / "time.mha", dims=3, canonical=False)
    assert len(source) == 3
    assert np.array_equal(source.read(2).array[0], times[2])


def test_headers_that_lie_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    big = "DimSize = 1000000 1000000 1"
    text = f"ObjectType = Image\nNDims = 3\n{big}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(text.encode() + b"\0" * 100)
    with pytest.raises(InputError, match="1 x 1000000 x 1000000 pixels, more than the limit"):
        open_source(tmp_path / "a.mha", dims=3)
    text = text.replace(big, "DimSize = 500 500 500")
    (tmp_path / "a.mha").write_bytes(text.encode() + b"\0" * 100)
    with pytest.raises(InputError, match="truncated: the header asks for 250,000,000 bytes"):
        open_source(tmp_path / "a.mha", dims=3)
    (tmp_path / "b.mhd").write_text(text.replace("LOCAL", "gone.raw"))
    with pytest.raises(InputError, match=r"its voxels are in gone\.raw, which is not there"):
        open_source(tmp_path / "b.mhd", dims=3)
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).header
    header.set_data_shape((900, 900, 900))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (tmp_path / "c.nii").write_bytes(header.binaryblock + b"\0" * 100)
    with pytest.raises(InputError, match="truncated: the header asks for 1,458,000,352 bytes"):
        open_source(tmp_path / "c.nii", dims=3)
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 100))
    with pytest.raises(InputError, match="more voxels than the compressed file can hold"):
        open_source(tmp_path / "c.nii.gz", dims=3)
    header.set_data_shape((4, 4, 4))
    header["vox_offset"] = 2**30
    (tmp_path / "d.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 100))
    with pytest.raises(InputError, match="begin far beyond the header"):
        open_source(tmp_path / "d.nii.gz", dims=3)


def test_truncated_and_altered_gzip_is_refused(tmp_path: Path) -> None:
    values = RNG.integers(0, 255, (20, 20, 20)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    whole_file = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole_file[: len(whole_file) // 2])
    # The checksum at the end alone: every voxel can still be unpacked
    (tmp_path / "sum.nii.gz").write_bytes(whole_file[:-8] + b"\1\2\3\4" + whole_file[-4:])
    for name, words in (("cut.nii.gz", "truncated"), ("sum.nii.gz", "fails the check")):
        source = open_source(tmp_path / name, dims=3)
        with pytest.raises(UnreadableScan, match=words):
            source.read(0)


def test_slices_run_through_the_coarsest_axis_and_are_the_usual_way_up(tmp_path: Path) -> None:
    values = RNG.integers(0, 900, (4, 9, 7)).astype(np.int16)  # x (right to left as RAS), y, z
    nibabel.save(nibabel.Nifti1Image(values, np.diag([5, 1, 1, 1.0])), tmp_path / "sagittal.nii")
    source = open_source(tmp_path / "sagittal.nii")
    assert len(source) == 4
    # Towards the left; superior on top, anterior on the left of the picture
    assert np.array_equal(source.read(0).array[0], values[3, ::-1, ::-1].T)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 1, 1.0])), tmp_path / "cube.nii")
    source = open_source(tmp_path / "cube.nii")
    assert len(source) == 7
    scan = source.read(2)
    assert np.array_equal(scan.array[0], values[::-1, ::-1, 2].T)
    assert source.header(2).size == scan.size
    # A pixel's place: row 3, column 1
    assert np.allclose(scan.affine @ [3, 1, 0, 1], [2, 5, 2, 1])
    assert through_plane(None, None) == 0


def test_one_slice_is_an_image_and_no_volume(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 9, 1), np.int16), np.eye(4)), tmp_path / "a.nii")
    assert open_source(tmp_path / "a.nii").read(0).size == (9, 8)
    with pytest.raises(InputError, match="a single slice, no volume; read it with dims 2"):
        open_source(tmp_path / "a.nii", dims=3)
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 9, 5), np.int16), np.eye(4)), tmp_path / "b.nii")
    source = open_source(tmp_path, dims=3)
    assert (len(source), [entry.path for entry in source.skipped]) == (1, ["a.nii"])


def test_labels_fit_their_dicom_series_through_world_coordinates(shared_data: Path) -> None:
    """The label file's second axis runs against the DICOM rows: only the affine knows."""
    folder = shared_data / "TotalSegmentator_examples"
    image, label = (
        open_source(folder / name, dims=3, canonical=False) for name in ("example_ct_dicom", "example_seg_dicom.nii.gz")
    )
    scan, mask = image.read(0), label.read(0)
    assert axis_codes(scan.affine) == "SPL"
    assert axis_codes(mask.affine) == "SAL"
    assert same_grid(scan.size, scan.affine, mask.size, mask.affine)
    ct = open_source(folder / "example_ct_dicom", dims=3).read(0).array[0]
    labels = open_source(folder / "example_seg_dicom.nii.gz", dims=3).read(0).array[0]
    # Every labelled voxel is body in the right overlay; in the wrong one thousands are air
    assert (ct[labels > 0] > -900).mean() > 0.95
    assert (ct[labels > 0] > -900).mean() > (ct[labels[:, ::-1] > 0] > -900).mean() + 0.02
    lungs = (labels >= 10) & (labels <= 14)
    if lungs.any():
        assert np.median(ct[lungs]) < -600
    assert not same_grid(scan.size, scan.affine, mask.size, mask.affine + np.eye(4, k=3) * 3)


def test_real_files_equal_nibabel_and_simpleitk(shared_data: Path) -> None:
    paths = sorted((shared_data / "small_3D_formats").rglob("*.nii.gz"))
    paths += sorted((shared_data / "TotalSegmentator_examples").glob("*_sm.nii.gz"))
    assert len(paths) > 6
    for path in paths:
        image = nibabel.load(path)
        agrees(whole(path), np.asarray(image.dataobj).astype(whole(path).array.dtype), image.affine)
    for path in sorted((shared_data / "small_3D_formats").rglob("*.nrrd")):
        image, scan = sitk.ReadImage(str(path)), whole(path, canonical=False)
        assert np.array_equal(scan.array[0], sitk.GetArrayFromImage(image))
        assert scan.spacing == pytest.approx(image.GetSpacing()[::-1])


def test_hdf5_datasets(tmp_path: Path) -> None:
    raw = RNG.integers(0, 255, (6, 20, 22)).astype(np.uint8)
    ids = RNG.integers(0, 9, (4, 20, 22)).astype(np.uint64)
    with h5py.File(tmp_path / "a.hdf", "w") as file:
        file.create_dataset("volumes/raw", data=raw, chunks=(1, 20, 22), compression="gzip")
        file["volumes/raw"].attrs["resolution"] = (40.0, 4.0, 4.0)
        file.create_dataset("volumes/labels/neuron_ids", data=ids)
        file["count"] = 3
    with pytest.raises(InputError, match=r"several datasets of images \(volumes/labels/neuron_ids, vol.*#vol"):
        open_source(tmp_path / "a.hdf", dims=3)
    named = f"{tmp_path / 'a.hdf'}#volumes/raw"
    scan = whole(Path(named))
    assert np.array_equal(scan.array[0], raw)
    assert scan.spacing == pytest.approx((4e-5, 4e-6, 4e-6))
    slices = open_source(named)
    assert len(slices) == 6
    assert np.array_equal(slices.read(4).array[0], raw[4])
    assert bounds(slices.read(4)) == pytest.approx(np.percentile(raw, (0.5, 99.5)))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"] = RNG.random((5, 16, 18)).astype(np.float32)
    stack = open_source(tmp_path / "b.h5")
    assert len(stack) == 5
    assert stack.read(0).whole is None
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["kspace"] = np.zeros((5, 16, 18), np.complex64)
        file.create_dataset("claim", (900, 900, 900), np.float32, chunks=(9, 90, 90))
    with pytest.raises(InputError, match="values of type complex64"):
        open_source(f"{tmp_path / 'c.h5'}#kspace", dims=3)
    with pytest.raises(InputError, match="claims far more values than it holds"):
        open_source(f"{tmp_path / 'c.h5'}#claim", dims=3)
    with pytest.raises(InputError, match="has no dataset 'gone'; it holds"):
        open_source(f"{tmp_path / 'c.h5'}#gone", dims=3)


def test_a_folder_of_every_format(tmp_path: Path) -> None:
    from PIL import Image

    from dicom_making import series, smooth

    volume = RNG.integers(0, 99, (4, 8, 8)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "b.nrrd"))
    series(tmp_path / "c", smooth((4, 8, 8)))
    np.save(tmp_path / "d.npy", volume)
    Image.fromarray(volume[0].astype(np.uint8)).save(tmp_path / "e.png")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"] = volume
    source = open_source(tmp_path, dims=3)
    assert [source.name(i) for i in range(len(source))] == ["a.nii.gz", "b.nrrd", "d.npy", "f.h5#x", "c"]
    assert not source.skipped
    assert all(source.read(i).size == (4, 8, 8) for i in range(5))
    assert len(open_source(tmp_path, dims=2)) == 5 * 4 + 1
    with pytest.raises(InputError, match=r"e\.png: an image, not a volume; read it with dims 2"):
        open_source(tmp_path / "e.png", dims=3)


def test_a_manifest_gives_modality_unit_and_offset(tmp_path: Path) -> None:
    from PIL import Image

    hu = RNG.integers(-1000, 1500, (16, 16))
    Image.fromarray((hu + 32768).astype(np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text(
        "path,modality,unit,slope,intercept\na.png,CT,HU,,-32768\na.png,CT,,1,-32768\na.png,,,,\n"
    )
    source = open_source(tmp_path / "m.csv")
    assert [source.read(i).unit for i in range(3)] == ["HU", "HU", "arbitrary"]
    for i in range(2):
        assert np.array_equal(source.read(i).array[0], hu)
        assert source.read(i).array.dtype == np.int16
    assert np.array_equal(source.read(2).array[0], hu + 32768)
    (tmp_path / "m.csv").write_text("path,intercept\na.png,low\n")
    with pytest.raises(InputError, match="column 'intercept' holds 'low'; expected a number"):
        open_source(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("path,unit\na.png,Hounsfield\n")
    with pytest.raises(InputError, match="column 'unit' holds 'Hounsfield'; expected HU"):
        open_source(tmp_path / "m.csv")
