"""DICOM values: HU, rescaling, inversion, palettes, films, enhanced files, codecs; against pydicom and SimpleITK."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicom_making import AXIAL, CR, ENHANCED_CT, ENHANCED_MR, MR, US_MULTIFRAME, dataset, group, save, series, smooth
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.readers.dicom.codecs import stated_size
from frepa.images.scan import ARBITRARY, HU, Scan, UnreadableScan

RNG = np.random.default_rng(6)


def one(path: Path, index: int = 0, **options: object) -> Scan:
    return open_source(path, **{"dims": 2, **options}).read(index)  # type: ignore[arg-type]


def test_hu_equals_simpleitk_and_pydicom_on_the_real_series(shared_data: Path) -> None:
    folder = shared_data / "TotalSegmentator_examples" / "example_ct_dicom"
    scan = open_source(folder, dims=3).read(0)
    files = sorted(folder.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    by_itk = sitk.GetArrayFromImage(sitk.ReadImage([str(path) for path in files]))
    assert np.array_equal(scan.array[0], by_itk)
    for d, path in enumerate(files):
        data = pydicom.dcmread(path)
        expected = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
        assert np.array_equal(scan.array[0, d], expected)
    assert scan.unit == HU
    assert scan.modality == "CT"
    assert scan.array.dtype == np.int16
    assert scan.array.min() == -1024


def test_mr_equals_simpleitk_on_the_real_series(shared_data: Path) -> None:
    for folder in sorted((shared_data / "DICOM_MR_BrainTumorProgression" / "PGBM-003").iterdir()):
        scan = open_source(folder, dims=3).read(0)
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        image = sitk.ReadImage(files)
        assert np.array_equal(scan.array[0], sitk.GetArrayFromImage(image))
        assert scan.spacing == pytest.approx(image.GetSpacing()[::-1], rel=1e-4)
        assert scan.unit == ARBITRARY


@pytest.mark.parametrize(
    ("fields", "unit", "words"),
    [
        ({"RescaleSlope": 1, "RescaleIntercept": -1024}, HU, ""),
        ({"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}, HU, ""),
        ({"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "US"}, HU, "unspecified"),
        ({"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "Z_EFF"}, ARBITRARY, "by its header"),
        ({}, ARBITRARY, "without rescale"),
        (
            {"RescaleSlope": 1, "RescaleIntercept": 0, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
            ARBITRARY,
            "without rescale",
        ),
        ({"RescaleSlope": 1, "RescaleIntercept": -1024, "Modality": "MR", "SOPClassUID": MR}, ARBITRARY, ""),
    ],
)
def test_when_values_are_hounsfield_units(tmp_path: Path, fields: dict, unit: str, words: str) -> None:
    stored = RNG.integers(0, 4096, (8, 8)).astype(np.uint16)
    scan = one(save(dataset(stored, **fields), tmp_path / "a.dcm"))
    assert scan.unit == unit
    assert words in " ".join(scan.notes)
    assert np.array_equal(scan.array[0], stored.astype(int) + fields.get("RescaleIntercept", 0))


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -3.25), (2.0, -1024.0), (1.0, -32768.0), (1e-3, 0.0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_rescaling_equals_float64(tmp_path: Path, dtype: type, slope: float, intercept: float) -> None:
    limits = np.iinfo(dtype)
    stored = np.concatenate([[limits.min, limits.max], RNG.integers(limits.min, limits.max, 62)]).astype(dtype)
    path = save(
        dataset(stored.reshape(8, 8), RescaleSlope=slope, RescaleIntercept=intercept, Modality="MR"), tmp_path / "a.dcm"
    )
    expected = stored.reshape(8, 8).astype(np.float64) * slope + intercept
    array = one(path).array[0]
    assert np.allclose(array, expected, rtol=1e-6, atol=1e-6)
    if slope.is_integer() and intercept.is_integer():
        assert array.dtype.kind == "i"


def test_monochrome1_is_turned_over_and_hu_is_not(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (8, 8)).astype(np.uint16)
    options = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12}
    path = save(dataset(stored, Modality="CR", SOPClassUID=CR, **options), tmp_path / "cr.dcm")
    assert np.array_equal(one(path).array[0], 4095 - stored)
    assert one(path).array.dtype == np.uint16
    path = save(dataset(stored, RescaleSlope=1, RescaleIntercept=-1024, **options), tmp_path / "ct.dcm")
    assert np.array_equal(one(path).array[0], stored.astype(int) - 1024)
    signed = smooth((8, 8), low=-2048, high=2048)
    path = save(dataset(signed, Modality="CR", SOPClassUID=CR, **options), tmp_path / "signed.dcm")
    assert np.array_equal(one(path).array[0], -1 - signed)


def test_voi_only_when_asked_and_never_for_ct(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (8, 8)).astype(np.uint16)
    window = {"WindowCenter": 1000, "WindowWidth": 500, "BitsStored": 12}
    path = save(dataset(stored, Modality="DX", SOPClassUID=CR, **window), tmp_path / "dx.dcm")
    assert np.array_equal(one(path).array[0], stored)
    expected = np.clip((stored - 999.5) / 499 + 0.5, 0, 1) * 4095  # PS3.3 C.11.2.1.2.1
    assert np.allclose(one(path, voi=True).array[0], expected, atol=1e-2)
    inverted = dataset(stored, Modality="DX", SOPClassUID=CR, PhotometricInterpretation="MONOCHROME1", **window)
    assert np.allclose(one(save(inverted, tmp_path / "inv.dcm"), voi=True).array[0], 4095 - expected, atol=1e-2)
    path = save(dataset(stored, RescaleSlope=1, RescaleIntercept=-1024, **window), tmp_path / "ct.dcm")
    assert np.array_equal(one(path, voi=True).array[0], stored.astype(int) - 1024)
    table = (np.arange(4096) ** 0.5 * 3).astype(np.uint16)
    lut = group(LUTDescriptor=[4096, 0, 16], LUTData=table.tobytes())
    path = save(dataset(stored, Modality="MG", SOPClassUID=CR, BitsStored=12, VOILUTSequence=lut), tmp_path / "mg.dcm")
    assert np.array_equal(one(path, voi=True).array[0], table[stored])


def test_a_store_of_displayed_values_when_asked(tmp_path: Path, capsys) -> None:
    from frepa.cli import main

    stored = RNG.integers(0, 4096, (40, 40)).astype(np.uint16)
    window = {"WindowCenter": 1000, "WindowWidth": 500, "BitsStored": 12}
    save(dataset(stored, Modality="DX", SOPClassUID=CR, **window), tmp_path / "dx/1.dcm")
    words = ["prepare", str(tmp_path / "dx"), "--num-workers", "0", "--quiet", "--out"]
    assert main([*words, str(tmp_path / "raw")]) == 0
    assert main([*words, str(tmp_path / "shown"), "--voi"]) == 0
    assert np.array_equal(open_source(tmp_path / "raw").read(0).array[0], stored)
    expected = np.clip((stored - 999.5) / 499 + 0.5, 0, 1) * 4095
    assert np.allclose(open_source(tmp_path / "shown").read(0).array[0], expected, atol=1e-2)
    capsys.readouterr()
    assert main(["prepare", str(tmp_path / "raw"), "--voi", "--out", str(tmp_path / "again")]) == 2
    assert "Pack the files again with --voi" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_padding_is_left_out_of_the_statistics(tmp_path: Path) -> None:
    from frepa.images.intensity import bounds

    stored = smooth((20, 20), low=0, high=1000)
    stored[:8] = -2000
    path = save(dataset(stored, Modality="MR", SOPClassUID=MR, PixelPaddingValue=-2000), tmp_path / "a.dcm")
    scan = one(path)
    assert scan.padding == -2000
    assert bounds(scan) == pytest.approx(np.percentile(stored[8:], (0.5, 99.5)))
    scaled = save(dataset(stored, PixelPaddingValue=-2000, RescaleSlope=2, RescaleIntercept=-10), tmp_path / "b.dcm")
    assert one(scaled).padding == -4010


def test_colour_and_palette(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (8, 10, 3)).astype(np.uint8)
    options = {"SamplesPerPixel": 3, "Modality": "US", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}
    scan = one(save(dataset(colours, **options), tmp_path / "rgb.dcm"))
    assert np.array_equal(scan.array, np.moveaxis(colours, -1, 0))
    assert scan.modality == "ultrasound"
    planes = dataset(colours, **options)
    planes.PlanarConfiguration = 1
    planes.PixelData = np.moveaxis(colours, -1, 0).tobytes()
    assert np.array_equal(one(save(planes, tmp_path / "planar.dcm")).array, np.moveaxis(colours, -1, 0))
    grey = np.repeat(colours[..., :1], 3, axis=-1)
    assert one(save(dataset(grey, **options), tmp_path / "grey.dcm")).array.shape == (1, 8, 10)
    index = RNG.integers(0, 16, (8, 10)).astype(np.uint8)
    palette = dataset(index, PhotometricInterpretation="PALETTE COLOR", Modality="US")
    tables = RNG.integers(0, 256, (3, 16)).astype(np.uint8)
    for colour, table in zip(("Red", "Green", "Blue"), tables):
        setattr(palette, f"{colour}PaletteColorLookupTableDescriptor", [16, 0, 8])
        setattr(palette, f"{colour}PaletteColorLookupTableData", table.tobytes())
    assert np.array_equal(one(save(palette, tmp_path / "palette.dcm")).array, tables[:, index])


def test_a_film_is_images_in_2d_and_no_volume(tmp_path: Path) -> None:
    frames = RNG.integers(0, 255, (6, 8, 10)).astype(np.uint8)
    region = group(PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, PhysicalDeltaX=0.02, PhysicalDeltaY=-0.03)
    path = save(
        dataset(
            frames,
            Modality="US",
            SOPClassUID=US_MULTIFRAME,
            FrameIncrementPointer=0x00181063,
            FrameTime=33.0,
            SequenceOfUltrasoundRegions=region,
        ),
        tmp_path / "cine.dcm",
    )
    source = open_source(path, dims=2)
    assert len(source) == 6
    for i in (5, 0, 3):
        assert np.array_equal(source.read(i).array[0], frames[i])
        assert source.read(i).spacing == pytest.approx((0.3, 0.2))
        assert source.read(i).whole is None
    with pytest.raises(ValueError, match="6 frames of a film, not a volume"):
        open_source(path, dims=3)


def enhanced(
    volume: np.ndarray, places: list[float], scales: list[tuple[float, float]], **fields: object
) -> pydicom.Dataset:
    frames = []
    for place, (slope, intercept) in zip(places, scales):
        frame = pydicom.Dataset()
        frame.PlanePositionSequence = group(ImagePositionPatient=[1.0, 2.0, place])
        frame.PixelValueTransformationSequence = group(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")
        frames.append(frame)
    shared = group(
        PlaneOrientationSequence=group(ImageOrientationPatient=list(AXIAL)),
        PixelMeasuresSequence=group(PixelSpacing=[0.8, 0.6], SliceThickness=2.0),
    )
    return dataset(
        volume,
        PerFrameFunctionalGroupsSequence=pydicom.Sequence(frames),
        SharedFunctionalGroupsSequence=shared,
        **fields,
    )


def test_enhanced_ct_is_sorted_and_rescaled_frame_by_frame(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (4, 8, 10)).astype(np.uint16)
    places, scales = [6.0, 0.0, 4.0, 2.0], [(1, -1024), (1, -1000), (2, -1024), (1, 0)]
    path = save(enhanced(stored, places, scales, SOPClassUID=ENHANCED_CT), tmp_path / "e.dcm")
    scan = open_source(path, dims=3).read(0)
    for d, frame in enumerate(np.argsort(places)):
        slope, intercept = scales[frame]
        assert np.array_equal(scan.array[0, d], stored[frame].astype(int) * slope + intercept)
    assert scan.unit == HU
    assert scan.spacing == pytest.approx((2.0, 0.8, 0.6))
    assert np.allclose(scan.affine[:3, 3], [-1, -2, 0])
    slices = open_source(path, dims=2)
    assert len(slices) == 4
    assert np.array_equal(slices.read(3).array[0], scan.array[0, 3])
    assert slices.read(3).unit == HU


def test_an_enhanced_file_of_two_times_is_two_volumes(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (6, 8, 10)).astype(np.uint16)
    data = enhanced(stored, [0, 2, 4] * 2, [(1, 0)] * 6, SOPClassUID=ENHANCED_MR, Modality="MR")
    for i, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        frame.FrameContentSequence = group(TemporalPositionIndex=2 - i // 3)
    source = open_source(save(data, tmp_path / "e.dcm"), dims=3)
    assert len(source) == 2
    assert np.array_equal(source.read(0).array[0], stored[3:])
    assert np.array_equal(source.read(1).array[0], stored[:3])
    assert len(open_source(tmp_path / "e.dcm", dims=2)) == 6


def compressed(path: Path, frames: list[bytes], like: np.ndarray, syntax: UID, **fields: object) -> Path:
    data = dataset(like, **fields)
    data.PixelData = encapsulate(frames)
    data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = syntax
    return save(data, path)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_gives_back_every_value(tmp_path: Path, bits: int) -> None:
    stored = RNG.integers(0, 2**bits, (32, 24)).astype(np.uint8 if bits == 8 else np.uint16)
    frame = imagecodecs.jpeg8_encode(stored, lossless=True, bitspersample=bits)
    path = compressed(tmp_path / "a.dcm", [frame], stored, JPEGLosslessSV1, Modality="MR", BitsStored=bits)
    assert np.array_equal(one(path).array[0], stored)


def test_12_bit_jpeg_is_close(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :48]
    stored = (2000 + 1500 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint16)
    frame = imagecodecs.jpeg8_encode(stored, level=98, bitspersample=12)
    path = compressed(tmp_path / "a.dcm", [frame], stored, JPEGExtended12Bit, Modality="MR", BitsStored=12)
    assert np.abs(one(path).array[0].astype(int) - stored).max() < 40


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_lossless_codecs_give_back_every_value_of_a_series(tmp_path: Path, syntax: UID) -> None:
    volume = smooth((3, 48, 40), low=0, high=4000).astype(np.uint16)
    for path in series(tmp_path / "s", volume, Modality="MR", SOPClassUID=MR):
        data = pydicom.dcmread(path)
        data.compress(syntax)
        data.save_as(path)
    assert np.array_equal(open_source(tmp_path / "s", dims=3).read(0).array[0], volume)


def test_what_has_no_decoder_is_refused_by_name(tmp_path: Path) -> None:
    like = np.zeros((16, 16), np.uint8)
    for syntax, words in (
        (UID("1.2.840.10008.1.2.4.102"), "compressed as video .MPEG-4.*ffmpeg"),
        (UID("1.2.840.10008.1.2.4.94"), "compressed as JPIP Referenced.*no decoder"),
        (UID("1.2.840.10008.1.2.4.52"), "compressed as JPEG Extended .Process 3 and 5.*no decoder"),
    ):
        path = compressed(tmp_path / "a.dcm", [b"\0" * 64], like, syntax, Modality="US", SOPClassUID=US_MULTIFRAME)
        source = open_source(path)
        with pytest.raises(UnreadableScan, match=words):
            source.read(0)


def test_a_stream_that_lies_about_its_size_never_reaches_a_decoder(tmp_path: Path) -> None:
    stored = RNG.integers(0, 255, (40, 30)).astype(np.uint8)
    streams = {
        JPEGBaseline8Bit: imagecodecs.jpeg8_encode(stored),
        JPEG2000Lossless: imagecodecs.jpeg2k_encode(stored, codecformat="j2k"),
        JPEGLSLossless: imagecodecs.jpegls_encode(stored),
    }
    for syntax, stream in streams.items():
        assert stated_size(stream) == (40, 30)
        path = compressed(tmp_path / "a.dcm", [stream], np.zeros((30, 40), np.uint8), syntax, Modality="OP")
        with pytest.raises(UnreadableScan, match="30 x 40 pixels, the compressed image 40 x 30"):
            open_source(path).read(0)


def test_headers_that_claim_too_much_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    data = dataset(np.zeros((8, 8), np.uint16), Modality="MR", SOPClassUID=MR)
    data.Rows = data.Columns = 65535
    path = save(data, tmp_path / "a.dcm")
    with pytest.raises(ValueError, match="65535 x 65535 pixels, more than the limit"):
        open_source(path)
    data.Rows = data.Columns = 8192
    with pytest.raises(UnreadableScan, match=r"asks for 134,217,728 bytes of pixels, the file has 128"):
        open_source(save(data, tmp_path / "b.dcm")).read(0)
    rle = dataset(np.zeros((8, 8), np.uint8), Modality="MR", SOPClassUID=MR)
    rle.compress(RLELossless)
    rle.Rows = rle.Columns = 8192
    with pytest.raises(UnreadableScan, match="more pixels than the compressed image can hold"):
        open_source(save(rle, tmp_path / "c.dcm")).read(0)


def test_a_deflated_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    from frepa.images.readers.dicom import opening

    path = save(
        dataset(np.zeros((512, 512), np.uint16), syntax=DeflatedExplicitVRLittleEndian, Modality="MR"),
        tmp_path / "a.dcm",
    )
    assert not one(path).array.any()
    monkeypatch.setattr(opening, "MOST_INFLATED", 2**18)
    save(
        dataset(np.zeros((512, 513), np.uint16), syntax=DeflatedExplicitVRLittleEndian, Modality="MR"),
        tmp_path / "b.dcm",
    )
    with pytest.raises(InputError, match="unpacks to more than 262,144 bytes"):
        one(tmp_path / "b.dcm")
