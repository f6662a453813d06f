"""What is kept of a DICOM header: geometry, grouping and decoding, nothing that names a person or a date."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from frepa.images.anonymity import anonymous_group
from frepa.images.guards import check_parts
from frepa.images.readers.dicom.opening import is_deflated, read_tags, series_of
from frepa.images.readers.packed import is_packed
from frepa.images.scan import UnreadableScan

#: Modality codes that are not images, and what they are.
NOT_IMAGES = {
    "SEG": "a segmentation",
    "RTSTRUCT": "contours for radiotherapy",
    "RTDOSE": "a radiation dose",
    "RTPLAN": "a radiotherapy plan",
    "RTRECORD": "a radiotherapy record",
    "SR": "a structured report",
    "PR": "a presentation state",
    "KO": "a selection of images",
    "DOC": "a document",
    "REG": "a registration",
    "FID": "fiducials",
    "ECG": "an electrocardiogram",
    "HD": "a waveform",
    "AU": "sound",
    "PLAN": "a plan",
    "SMR": "a measurement",
    "RWV": "a value map",
}
_MODALITIES = {"CT": "CT", "MR": "MRI", "US": "ultrasound", "IVUS": "ultrasound", "OPT": "OCT", "OCT": "OCT"}
_MODALITIES |= dict.fromkeys(("CR", "DX", "DR", "MG", "RF", "XA", "RG", "IO", "PX", "RTIMAGE"), "X-ray")
_MODALITIES |= {"PT": "PET", "NM": "nuclear medicine", "ES": "endoscopy", "GM": "microscopy", "SM": "microscopy"}
_MODALITIES |= {"OP": "fundus", "XC": "photograph"}
_SCOUT_WORDS = ("LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "SCANOGRAM", "SURVIEW", "SURVEY", "LOCATOR")
#: What tells images of one place apart.
_KINDS = ["EchoNumbers", "EffectiveEchoTime", "EchoTime", "TemporalPositionIdentifier", "TemporalPositionIndex"]
_KINDS += ["TriggerTime", "DiffusionBValue", "AcquisitionNumber"]
_TAGS = [
    "SOPClassUID",
    "ImageType",
    "Modality",
    "SeriesDescription",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SequenceOfUltrasoundRegions",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "BitsAllocated",
    "Columns",
    "FrameIncrementPointer",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
#: Of the elements that are looked at: looked up once, not with every file.
NUMBERS = tuple(Tag(name) for name in _TAGS)


class Plane(NamedTuple):
    """Where one frame lies.

    Attributes:
        file, frame: which one it is.
        position: millimetres (towards left, posterior, superior) of its first pixel, or None.
        orientation: direction of its rows, then of its columns, 6 numbers, or None.
        spacing: millimetres between rows, between columns, or None.
        size: rows, columns, channels.
        kind: what tells images of the same place apart: echo, time, diffusion weighting, acquisition.
        order: what they are sorted by where nothing else helps.
    """

    file: int
    frame: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    size: tuple[int, int, int]
    kind: tuple[float, ...]
    order: tuple[float, ...]


@dataclass(frozen=True)
class DicomHeader:
    """One file.

    Attributes:
        modality: as in `frepa.images.scan.Scan`; ``code`` is DICOM's own.
        series: its series instance UID, ``""`` where it was removed.
        group: anonymous name of the patient, or of the study; None where both were removed.
        frames, channels, size, depth: of its pixels; depth in bytes per value.
        planes: one per frame.
        step: millimetres from slice to slice as the header states it, or None.
        in_time: the frames are a film, not a stack.
    """

    modality: str
    code: str
    series: str
    group: str | None
    frames: int
    channels: int
    size: tuple[int, int]
    depth: int
    planes: tuple[Plane, ...]
    step: float | None
    in_time: bool


class Unusable(UnreadableScan):
    """A DICOM file that is no image or whose values make no sense; ``series`` is its series instance UID."""

    series = ""


def read_header(path: Path, file: int = 0) -> DicomHeader:
    """The header of a DICOM image, its frames numbered as of file ``file``.

    Raises:
        UnreadableScan: it is no DICOM file, damaged, or not an image; the reason says which.
    """
    return header_of(path, read_tags(path, NUMBERS), file)


def header_of(path: Path, data: Dataset, file: int = 0) -> DicomHeader:
    """The same of a file that was read already."""
    try:
        return _header(path, data, file)
    except UnreadableScan as error:
        reason = Unusable(error.path, error.reason, error.kind)
    except Exception as error:  # values are parsed when they are first looked at
        reason = Unusable(str(path), f"damaged header ({type(error).__name__})", kind="damaged")
    reason.series = _series(path, data)
    raise reason


def _series(path: Path, data: Dataset) -> str:
    try:
        return series_of(data)
    except Exception as error:
        raise UnreadableScan(str(path), f"damaged header ({type(error).__name__})", kind="damaged") from None


def _header(path: Path, data: Dataset, file: int) -> DicomHeader:
    code = str(data.get("Modality") or "").strip().upper()
    if code in NOT_IMAGES:
        raise UnreadableScan(str(path), f"holds {NOT_IMAGES[code]} ({code}), not an image", kind="left out")
    rows, columns = _whole(data.get("Rows")), _whole(data.get("Columns"))
    if not rows or not columns:
        if "Image Storage" in UID(str(data.get("SOPClassUID") or "")).name:
            raise UnreadableScan(str(path), "damaged or truncated header (an image without a size)", kind="truncated")
        raise UnreadableScan(str(path), "holds no pixels", kind="left out")
    if _is_scout(data, code):
        raise UnreadableScan(str(path), "a localiser (scout), left out", kind="left out")
    channels = _whole(data.get("SamplesPerPixel")) or 1
    if str(data.get("PhotometricInterpretation") or "").strip() == "PALETTE COLOR":
        channels = 3
    if channels not in (1, 3):
        raise UnreadableScan(str(path), f"holds {channels} values per pixel; expected grey or colour")
    frames = max(1, _whole(data.get("NumberOfFrames")) or 1)
    check_parts(path, frames, "frames")
    if frames > os.path.getsize(path) and not is_packed(path.name) and not is_deflated(data):
        raise UnreadableScan(str(path), "truncated: the header claims more frames than the file has bytes", "truncated")
    # A pointer to frame time (0018,1063) or a vector of frame times (0018,1065): a film
    pointer = data.get("FrameIncrementPointer")
    pointers = [pointer] if pointer is None or isinstance(pointer, int) else list(pointer)
    in_time = frames > 1 and any(int(tag) in (0x00181063, 0x00181065) for tag in pointers if tag is not None)
    return DicomHeader(
        modality=_MODALITIES.get(code, ""),
        code=code,
        series=series_of(data),
        group=anonymous_group(str(data.get("PatientID") or ""), str(data.get("StudyInstanceUID") or "")),
        frames=frames,
        channels=3 if channels == 3 else 1,
        size=(rows, columns),
        depth=max(1, -(-(_whole(data.get("BitsAllocated")) or 16) // 8)),
        planes=_planes(data, file, frames, (rows, columns, channels)),
        step=_step(data),
        in_time=in_time,
    )


def _is_scout(data: Dataset, code: str) -> bool:
    words = [str(word).upper() for word in _several(data.get("ImageType"))]
    if any(scout in word for word in words for scout in _SCOUT_WORDS[:3]):
        return True
    described = str(data.get("SeriesDescription") or "").upper()
    return code in ("CT", "MR") and any(scout in described for scout in _SCOUT_WORDS)


def _planes(data: Dataset, file: int, frames: int, size: tuple[int, int, int]) -> tuple[Plane, ...]:
    per_frame = data.get("PerFrameFunctionalGroupsSequence")
    order = (_number(data.get("AcquisitionNumber")) or 0.0, _number(data.get("InstanceNumber")) or 0.0)
    if per_frame is None or len(per_frame) != frames:
        kind = _kind(data)
        position, orientation = _vector(data, "ImagePositionPatient", 3), _vector(data, "ImageOrientationPatient", 6)
        if frames > 1:
            position = None
        spacing = _spacing(data)
        return tuple(
            Plane(file, i, position, orientation, spacing, size, kind, (*order, float(i))) for i in range(frames)
        )
    shared = _first(data.get("SharedFunctionalGroupsSequence"))
    planes = []
    for i, own in enumerate(per_frame):
        position = _vector(_group(own, shared, "PlanePositionSequence"), "ImagePositionPatient", 3)
        orientation = _vector(_group(own, shared, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
        spacing = _spacing(_group(own, shared, "PixelMeasuresSequence"))
        content = _group(own, shared, "FrameContentSequence")
        kind = (
            *_kind(_group(own, shared, "MREchoSequence"), content, _group(own, shared, "MRDiffusionSequence")),
            _number(content.get("StackID")) or 0.0,
        )
        planes.append(Plane(file, i, position, orientation, spacing, size, kind, (*order, float(i))))
    return tuple(planes)


def _step(data: Dataset) -> float | None:
    """Slice spacing as stated by the file, or by the first frame of an enhanced one."""
    own = _first(data.get("PerFrameFunctionalGroupsSequence"))
    measures = _group(own, _first(data.get("SharedFunctionalGroupsSequence")), "PixelMeasuresSequence")
    for group in (data, measures):
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            step = _number(group.get(name))
            if step:
                return abs(step)
    return None


def _kind(*groups: Dataset) -> tuple[float, ...]:
    values = []
    for name in _KINDS:
        found = (_number(_several(group.get(name))[0]) for group in groups if _several(group.get(name)))
        values.append(next((value for value in found if value is not None), 0.0))
    return tuple(values)


def _spacing(data: Dataset) -> tuple[float, float] | None:
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        values = _vector(data, name, 2)
        if values is not None and min(values) > 0:
            return values[0], values[1]
    region = _first(data.get("SequenceOfUltrasoundRegions"))
    # Unit 3 is centimetres
    if region.get("PhysicalUnitsXDirection") == 3 and region.get("PhysicalUnitsYDirection") == 3:
        down, across = _number(region.get("PhysicalDeltaY")), _number(region.get("PhysicalDeltaX"))
        if down and across:
            return abs(down) * 10, abs(across) * 10
    return None


def _group(own: Dataset, shared: Dataset, name: str) -> Dataset:
    return _first(own.get(name)) if own.get(name) else _first(shared.get(name))


def _first(sequence: Any) -> Dataset:
    return sequence[0] if sequence else Dataset()


def _several(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | bytes | int | float) else list(value)


def _vector(data: Dataset, name: str, length: int) -> tuple[float, ...] | None:
    values = [_number(value) for value in _several(data.get(name))]
    if len(values) != length or any(value is None for value in values):
        return None
    return tuple(float(value) for value in values if value is not None)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    number = _number(_several(value)[0]) if _several(value) else None
    return None if number is None or number != int(number) else int(number)


def normal(orientation: Sequence[float]) -> tuple[float, float, float] | None:
    """Unit vector across a plane; None where its two directions are no right angle."""
    a, b = orientation[:3], orientation[3:]
    lengths = math.sqrt(sum(v * v for v in a)), math.sqrt(sum(v * v for v in b))
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(sum(x * y for x, y in zip(a, b))) > 0.05:
        return None
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    length = math.sqrt(sum(v * v for v in cross))
    return cross[0] / length, cross[1] / length, cross[2] / length
