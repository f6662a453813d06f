"""DICOM headers read without what nobody asks for are what pydicom reads of the whole file, damaged or not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from frepa.images.readers.dicom.header import NUMBERS
from frepa.images.readers.dicom.opening import PIXEL_GROUP, read_dataset, read_tags
from frepa.images.readers.dicom.shortening import shortened
from frepa.images.scan import UnreadableScan

# pydicom warns of nearly every damaged file, which is no news here.
pytestmark = pytest.mark.filterwarnings("ignore")

_WANTED = frozenset(map(int, NUMBERS))
_MOST_DAMAGED = 400


def _code(meaning: str, nested: Dataset | None = None) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodeMeaning = "1234", meaning
    if nested is not None:
        code.PurposeOfReferenceCodeSequence = [nested]
        code["PurposeOfReferenceCodeSequence"].is_undefined_length = True
    return code


def _file(path: Path, syntax: UID, *, undefined: bool = True) -> Path:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.SpecificCharacterSet, data.PatientName, data.PatientID = "ISO_IR 100", "Müller^Hans", "77"
    data.Modality, data.SeriesInstanceUID, data.ImageType = "CT", "1.2.4", ["ORIGINAL", "PRIMARY"]
    data.SliceThickness, data.ImagePositionPatient, data.InstanceNumber = 2.5, [1.0, -2.0, 3.5], 7
    data.ProcedureCodeSequence = [_code("a"), _code("b", _code("c"))]
    data.RequestedProcedureCodeSequence = []
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 2.5
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    for name in ("ProcedureCodeSequence", "RequestedProcedureCodeSequence", "SharedFunctionalGroupsSequence"):
        data[name].is_undefined_length = undefined
        for item in data[name].value:
            item.is_undefined_length_sequence_item = undefined
    data.private_block(0x0029, "US", create=True).add_new(1, "OB", bytes(range(256)) * 3)
    data.private_block(0x0019, "US", create=True).add_new(2, "LO", "long " * 9)
    data.Rows = data.Columns = 4
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.RescaleSlope, data.RescaleIntercept = 15, 1, -1024
    data.PixelData = np.arange(16, dtype="<u2").tobytes()
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)
    return path


def _elements(data: Dataset, *, pixels: bool) -> dict[int, object]:
    """What is asked for; sequences as their text, since where they lie in the file is no part of them."""
    found: dict[int, object] = {}
    for tag in sorted(data.keys()):
        if int(tag) in _WANTED or (pixels and tag >= PIXEL_GROUP << 16):
            found[int(tag)] = str(data[tag])
    return found | {-1: str(data.file_meta)}


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_is_wanted_is_there_and_nothing_else(tmp_path, syntax, undefined):
    path = _file(tmp_path / "a.dcm", syntax, undefined=undefined)
    content = path.read_bytes()
    expected = pydicom.dcmread(path)
    for group, pixels in ((0x7FE0, False), (PIXEL_GROUP, True)):
        short = shortened(content, _WANTED, whole=True, from_group=group)
        assert short is not None
        assert len(short) < len(content) - 150
        found = pydicom.dcmread(io.BytesIO(short))
        assert _elements(found, pixels=pixels) == _elements(expected, pixels=pixels)
        assert len(_elements(found, pixels=pixels)) > 12
        assert not pixels or found.pixel_array.tolist() == expected.pixel_array.tolist()
        # The first element stays, since the encoding is told by it
        tags = [int(element.tag) for element in found]
        assert {tag for tag in tags if tag not in _WANTED and tag < group << 16} == {0x00080005}
        assert b"Hans" not in short
    assert shortened(content, _WANTED, whole=False) is not None


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_are_left_to_pydicom(tmp_path, syntax):
    content = _file(tmp_path / "b.dcm", syntax).read_bytes()
    assert shortened(content, _WANTED, whole=True) is None
    assert read_tags(tmp_path / "b.dcm", NUMBERS).Modality == "CT"


def test_a_header_longer_than_its_start_is_left_to_pydicom(tmp_path):
    data = pydicom.dcmread(_file(tmp_path / "a.dcm", ExplicitVRLittleEndian))
    data.private_block(0x0019, "US").add_new(3, "OB", bytes(2**17))
    data.save_as(tmp_path / "b.dcm")
    content = (tmp_path / "b.dcm").read_bytes()
    assert shortened(content[: 2**16], _WANTED, whole=False) is None
    assert _elements(read_tags(tmp_path / "b.dcm", NUMBERS), pixels=False) == _elements(data, pixels=False)
    assert read_dataset(tmp_path / "b.dcm", NUMBERS).pixel_array.shape == (4, 4)
    assert shortened(content[128:], _WANTED, whole=True) is None  # nothing before it
    assert shortened(b"", _WANTED, whole=True) is None


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_damaged_files_are_what_pydicom_finds_them(tmp_path, syntax, undefined):
    """The same elements, or the same refusal, wherever bytes are changed, taken out, or missing at the end."""
    whole, path = _file(tmp_path / "a.dcm", syntax, undefined=undefined).read_bytes(), tmp_path / "b.dcm"
    draw, short = np.random.default_rng(5), 0
    for number in range(_MOST_DAMAGED):
        content = bytearray(whole)
        at = int(draw.integers(128, len(content) - 300 * (number % 3 > 0)))
        if number % 4 == 0:
            del content[at:]
        elif number % 4 == 1:
            del content[at : at + int(draw.integers(1, 9))]
        else:
            for _ in range(int(draw.integers(1, 4))):
                content[int(draw.integers(128, len(content)))] = int(draw.choice([0, 255, 0x41, draw.integers(256)]))
        path.write_bytes(content)
        for pixels in (False, True):
            found = _found(lambda: read_dataset(path, NUMBERS, pixels=pixels), pixels)  # noqa: B023
            options = {} if pixels else {"stop_before_pixels": True, "specific_tags": list(NUMBERS)}
            assert found == _found(lambda: pydicom.dcmread(path, **options), pixels), (number, pixels)  # noqa: B023
        short += shortened(bytes(content), _WANTED, whole=True) is not None
    assert _MOST_DAMAGED // 10 < short < _MOST_DAMAGED


def _found(read, pixels: bool) -> object:  # type: ignore[no-untyped-def]
    try:
        data = read()
    except (UnreadableScan, Exception):
        return "refused"
    try:
        return _elements(data, pixels=pixels)
    except Exception as error:  # values are parsed when they are looked at
        return type(error).__name__
