"""Every DICOM file inside the installed pydicom package: the values pydicom itself gives, or a refusal by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from frepa.images.readers.dicom import reader as dicom
from frepa.images.readers.registry import reader_at
from frepa.images.scan import UnreadableScan

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
NO_PIXELS, SEGMENTATION, DOSE = "holds no pixels", "holds a segmentation (SEG)", "holds a radiation dose (RTDOSE)"
PLAN, REPORT = "holds a radiotherapy plan (RTPLAN)", "holds a structured report (SR)"
SCOUT = "a localiser (scout), left out"
REFUSED = {
    "ExplVR_BigEndNoMeta.dcm": PLAN,
    "ExplVR_LitEndNoMeta.dcm": PLAN,
    # Its stream has a delimiter of DICOM in the middle of its own header; pydicom cannot decode it either
    "JPEG2000-embedded-sequence-delimiter.dcm": "the header says 1024 x 256 pixels, the compressed image 1024 x",
    "MR_truncated.dcm": "truncated: the header asks for 8,192 bytes of pixels, the file has 8,130",
    "UN_sequence.dcm": NO_PIXELS,
    "badVR.dcm": DOSE,
    "dicomdirtests/98892001/CT2N/6293": SCOUT,
    "dicomdirtests/98892001/CT2N/6924": SCOUT,
    "dicomdirtests/98892003/MR1/15820": SCOUT,
    "dicomdirtests/98892003/MR1/4919": SCOUT,
    "dicomdirtests/98892003/MR1/5641": SCOUT,
    "dicomdirtests/98892003/MR2/15970": SCOUT,
    "dicomdirtests/DICOMDIR-empty.dcm": NO_PIXELS,
    "empty_charset_LEI.dcm": NO_PIXELS,
    "liver_1frame.dcm": SEGMENTATION,
    "liver_expb_1frame.dcm": SEGMENTATION,
    "meta_missing_tsyntax.dcm": NO_PIXELS,
    "nested_priv_SQ.dcm": NO_PIXELS,
    "no_meta.dcm": "not a DICOM file",  # begins with a stray byte
    "no_meta_group_length.dcm": NO_PIXELS,
    "priv_SQ.dcm": NO_PIXELS,
    "reportsi.dcm": REPORT,
    "reportsi_with_empty_number_tags.dcm": REPORT,
    "rtdose.dcm": DOSE,
    "rtdose_1frame.dcm": DOSE,
    "rtdose_expb.dcm": DOSE,
    "rtdose_expb_1frame.dcm": DOSE,
    "rtdose_rle.dcm": DOSE,
    "rtdose_rle_1frame.dcm": DOSE,
    "rtplan.dcm": PLAN,
    "rtplan_truncated.dcm": PLAN,
    "rtstruct.dcm": "holds contours for radiotherapy (RTSTRUCT)",
    "test-SR.dcm": REPORT,
    "waveform_ecg.dcm": "holds an electrocardiogram (ECG)",
}
#: Number of frames of what is read, where it is not one.
FRAMES = dict.fromkeys(("SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_rle_32bit_2frame.dcm"), 2)
FRAMES["examples_ybr_color.dcm"] = 30


def files() -> list[str]:
    """What is read as DICOM: not the directories, nor the tiny headers of which there are dozens alike."""
    names = [path.relative_to(FOLDER).as_posix() for path in sorted(FOLDER.rglob("*")) if path.is_file()]
    return [name for name in names if "TINY_ALPHA" not in name and reader_at(FOLDER / name) is not None]


def expected(path: Path, frame: int) -> np.ndarray:
    """``(1 | 3, H, W)`` by pydicom's own functions, brighter larger."""
    data = pydicom.dcmread(path, force=True)
    array = pixel_array(data, index=frame)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        array = apply_color_lut(array, data)
    elif data.SamplesPerPixel == 1:
        low, high = (0, 2**data.BitsStored - 1) if data.PixelRepresentation == 0 else (None, None)
        array = apply_modality_lut(array, data)
        if data.PhotometricInterpretation == "MONOCHROME1" and data.Modality != "CT":
            assert low is not None
            ends = apply_modality_lut(np.array([low, high]), data)
            array = ends.sum() - array
        return array[None]
    return np.moveaxis(array, -1, 0)


def test_the_list_is_complete() -> None:
    names = files()
    assert len(names) > 100
    assert set(REFUSED) <= set(names)


@pytest.mark.parametrize("name", files())
def test_values_or_a_reason(name: str) -> None:
    path = FOLDER / name
    options = {"dims": 2, "max_pixels": 2**24}
    if name in REFUSED:
        with pytest.raises(UnreadableScan) as caught:
            dicom.read(path, None, 0, **options)
        assert caught.value.reason.startswith(REFUSED[name])
        return
    header = dicom.header(path, None, **options)
    assert header.count == FRAMES.get(name, 1)
    for frame in range(0, header.count, 7):
        scan = dicom.read(path, None, frame, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle = expected(path, frame)
        if scan.array.shape[0] == 1 and oracle.shape[0] == 3:  # grey stored as colour
            assert (oracle == oracle[:1]).all()
            oracle = oracle[:1]
        # Coronal and sagittal planes are turned the usual way up, which changes no value
        if scan.array.shape == oracle.shape and not np.allclose(scan.array, oracle):
            oracle = next(
                turned
                for turned in (oracle[:, ::-1], oracle[:, :, ::-1], oracle[:, ::-1, ::-1])
                if np.allclose(scan.array, turned, rtol=1e-6)
            )
        assert scan.size == header.size
        assert np.allclose(scan.array, oracle, rtol=1e-6)


def test_images_without_pixels_are_refused_by_the_dozen() -> None:
    """Their class is CT Image Storage, yet they have neither rows nor columns: what a file cut off early looks like."""
    names = sorted((FOLDER / "dicomdirtests" / "TINY_ALPHA" / "PT000000").rglob("IM*"))
    assert len(names) == 50
    for path in names:
        with pytest.raises(UnreadableScan, match="an image without a size"):
            dicom.header(path, None, dims=2, max_pixels=2**24)
