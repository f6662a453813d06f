"""Stored DICOM pixels to values: decoding, rescaling to HU and the like, inversion, palettes, optional VOI."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from frepa.images.guards import check_memory, file_status
from frepa.images.readers.dicom.codecs import cannot_decode, stated_size
from frepa.images.readers.dicom.header import NUMBERS
from frepa.images.readers.dicom.opening import read_dataset
from frepa.images.readers.pixels import channels_first, checked
from frepa.images.scan import ARBITRARY, HU, Note, UnreadableScan
from frepa.images.volumes import rescaled

# CT, Enhanced CT, Legacy Converted Enhanced CT: the classes whose rescaled values are Hounsfield units
_CT_CLASSES = {"1.2.840.10008.5.1.4.1.1.2" + end for end in ("", ".1", ".2")}
# Two bytes of RLE stand for at most 128
_MOST_RLE = 64
CT_NO_RESCALE = Note("CT without rescale slope and intercept, so not in Hounsfield units", "ct without hu")


class Frame(NamedTuple):
    """One decoded frame: ``(1 | 3, H, W)``, its unit, the value of padding or None, notes."""

    array: np.ndarray
    unit: str
    padding: float | None
    notes: tuple[Note, ...]


def read_pixels(path: Path) -> Dataset:
    """The dataset with its pixels still as in the file. Raises `UnreadableScan`."""
    check_memory(path, file_status(path).st_size, "the file", copies=1)
    data = read_dataset(path, _TAGS)
    reason = cannot_decode(transfer_syntax(data))
    if reason is not None:
        raise UnreadableScan(str(path), reason, kind="undecodable")
    return data


def transfer_syntax(data: Dataset) -> UID:
    """As stated; where the file has no meta group, what its encoding looks like."""
    stated = getattr(data, "file_meta", None)
    syntax = stated.get("TransferSyntaxUID") if stated is not None else None
    if syntax:
        return UID(str(syntax))
    implicit, little = data.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else UID("1.2.840.10008.1.2.1")


def frame_values(path: Path, data: Dataset, frame: int, frames: int, *, voi: bool = False) -> Frame:
    """Frame ``frame`` of a file as values.

    Grey: the modality LUT or rescaling (of the frame itself in enhanced files) is applied, MONOCHROME1 is turned over
    so that brighter is larger, except where values are Hounsfield units. Colour: RGB.

    Args:
        path: for messages.
        data: from `read_pixels`.
        frame, frames: its number, and how many the file has.
        voi: apply the VOI LUT or window to what is not in HU, as a viewer would.
    """
    try:
        _check_stream(path, data, frame, frames)
        stored = _decoded(data, frame, frames)
        return _values(path, data, stored, frame, voi)
    except UnreadableScan:
        raise
    except MemoryError:
        raise UnreadableScan(str(path), "too large for this machine's memory", kind="too large") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders raise nearly anything (a panic of the RLE one is no Exception)
        # Their words may quote the header
        raise UnreadableScan(
            str(path), f"damaged or truncated pixels ({type(error).__name__})", kind="truncated"
        ) from None


def _check_stream(path: Path, data: Dataset, frame: int, frames: int) -> None:
    """What is in the file against what the header says, before anything is allocated."""
    syntax = transfer_syntax(data)
    pixels = next((data[name].value for name in _PIXELS if name in data), None)
    if pixels is None:
        raise UnreadableScan(str(path), "truncated: the header is there, the pixels are missing", kind="truncated")
    rows, columns = int(data.Rows), int(data.Columns)
    if syntax.is_encapsulated:
        stream = get_frame(pixels, frame, number_of_frames=frames)
        size = stated_size(stream)
        if size is not None and size != (rows, columns):
            raise UnreadableScan(
                str(path),
                f"the header says {rows} x {columns} pixels, the compressed image {size[0]} x {size[1]}",
                kind="damaged",
            )
        if syntax == RLELossless and rows * columns > _MOST_RLE * len(stream):
            raise UnreadableScan(
                str(path), "the header claims more pixels than the compressed image can hold", kind="truncated"
            )
        return
    samples, bits = int(data.get("SamplesPerPixel", 1)), int(data.BitsAllocated)
    subsampled = str(data.get("PhotometricInterpretation", "")) in ("YBR_FULL_422", "YBR_PARTIAL_422")
    needed = (frames * rows * columns * (2 if subsampled else samples) * bits + 7) // 8
    if len(pixels) < needed:
        raise UnreadableScan(
            str(path),
            f"truncated: the header asks for {needed:,} bytes of pixels, the file has {len(pixels):,}",
            kind="truncated",
        )


# Those of the header, and what says how a palette is shown; the others are in the group of the pixels
_TAGS = (*NUMBERS, Tag("PixelPresentation"))
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def _decoded(data: Dataset, frame: int, frames: int) -> np.ndarray:
    if not getattr(data, "file_meta", None) or not data.file_meta.get("TransferSyntaxUID"):
        data.ensure_file_meta()
        data.file_meta.TransferSyntaxUID = transfer_syntax(data)
    return pixel_array(data, index=frame if frames > 1 else None)


def _values(path: Path, data: Dataset, stored: np.ndarray, frame: int, voi: bool) -> Frame:
    photometric = str(data.get("PhotometricInterpretation") or "").strip()
    if photometric == "PALETTE COLOR":
        colour = apply_color_lut(stored, data)
        return Frame(channels_first(checked(path, colour[..., :3])), ARBITRARY, None, ())
    if stored.ndim == 3:
        return Frame(channels_first(checked(path, stored)), ARBITRARY, None, ())
    group = _transformation(data, frame)
    slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
    scaled = slope is not None and intercept is not None
    low, high = _range(data, stored)
    table = data.get("ModalityLUTSequence")
    if table:
        values = apply_modality_lut(stored, data)
        low, high = 0.0, float(2 ** int(table[0].LUTDescriptor[2]) - 1)
    else:
        factor, offset = (float(slope), float(intercept)) if scaled else (1.0, 0.0)
        values = rescaled(stored, factor, offset)
        low, high = sorted((factor * low + offset, factor * high + offset))
    unit, notes = _unit(data, group, scaled)
    padding = None if table else _padding(data, *((float(slope), float(intercept)) if scaled else (1.0, 0.0)))
    if voi and unit != HU:
        values, padding = apply_voi_lut(values, data), None
        low, high = _voi_range(data, low, high)
        values = values.astype(np.float32)
    if photometric == "MONOCHROME1" and unit != HU:
        values = _turned_over(values, low, high)
        padding = None if padding is None else low + high - padding
    return Frame(checked(path, np.ascontiguousarray(values)[None]), unit, padding, notes)


def _transformation(data: Dataset, frame: int) -> Dataset:
    """Where slope and intercept are: in the frame's own group, the shared one, or the file itself."""
    for name, place in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = data.get(name)
        if groups is not None and len(groups) > place:
            found = groups[place].get("PixelValueTransformationSequence")
            if found:
                return found[0]
    return data


def _unit(data: Dataset, group: Dataset, scaled: bool) -> tuple[str, tuple[Note, ...]]:
    if str(data.get("Modality") or "").strip().upper() != "CT":
        return ARBITRARY, ()
    kind = str(group.get("RescaleType") or "HU").strip().upper()
    sop_class = str(data.get("SOPClassUID") or "").strip()
    if not scaled or (sop_class and sop_class not in _CT_CLASSES):
        return ARBITRARY, (CT_NO_RESCALE,)
    if kind == "HU":
        return HU, ()
    if kind == "US" and float(group.RescaleIntercept) <= -1000:
        text = "taken for Hounsfield units: the header calls the values unspecified, and they start at -1000"
        return HU, (Note(text, "hu assumed"),)
    return ARBITRARY, (Note("CT whose values are not Hounsfield units, by its header", "ct without hu"),)


def _range(data: Dataset, stored: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value that can be stored."""
    if stored.dtype.kind == "f":
        return float(stored.min()), float(stored.max())
    bits = int(data.get("BitsStored") or data.BitsAllocated)
    if int(data.get("PixelRepresentation") or 0) == 1:
        return -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
    return 0.0, float(2**bits - 1)


def _voi_range(data: Dataset, low: float, high: float) -> tuple[float, float]:
    table = data.get("VOILUTSequence")
    if table:
        return 0.0, float(2 ** int(table[0].LUTDescriptor[2]) - 1)
    return low, high


def _turned_over(values: np.ndarray, low: float, high: float) -> np.ndarray:
    total = low + high
    if values.dtype.kind == "f":
        return np.float32(total) - values.astype(np.float32)
    flipped = int(total) - values.astype(np.int64)
    limits = np.iinfo(values.dtype)
    fits = limits.min <= flipped.min() and flipped.max() <= limits.max
    return flipped.astype(values.dtype if fits else np.int32)


def _padding(data: Dataset, slope: float, intercept: float) -> float | None:
    value = data.get("PixelPaddingValue")
    if value is None or isinstance(value, bytes):
        return None
    value = int(value)
    bits = int(data.BitsAllocated)
    if int(data.get("PixelRepresentation") or 0) == 1 and value >= 2 ** (bits - 1):
        value -= 2**bits  # written as unsigned by many scanners
    return slope * value + intercept


def declared_frames(data: Any) -> int:
    """Number of frames, 1 where the header says nothing sensible."""
    try:
        return max(1, int(data.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1
