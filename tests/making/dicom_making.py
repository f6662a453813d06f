"""DICOM files made in tests, with patients who never were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

CT, MR, CR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.1"
ENHANCED_CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"
US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def dataset(pixels: np.ndarray, *, syntax: UID = ExplicitVRLittleEndian, **fields: Any) -> Dataset:
    """A dataset of ``(H, W)``, ``(frames, H, W)`` or, with ``SamplesPerPixel=3``, ``(..., H, W, 3)`` integers."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = fields.pop("SOPClassUID", CT)
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.Modality = fields.pop("Modality", "CT")
    samples = fields.get("SamplesPerPixel", 1)
    shape = pixels.shape[:-1] if samples == 3 else pixels.shape
    data.Rows, data.Columns = shape[-2:]
    if len(shape) == 3:
        data.NumberOfFrames = shape[0]
    data.SamplesPerPixel = samples
    data.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = pixels.dtype.itemsize * 8
    data.BitsStored = fields.pop("BitsStored", data.BitsAllocated)
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    return data


def save(data: Dataset, path: Path) -> Path:
    """Write it, with preamble and meta group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def group(**fields: Any) -> DicomSequence:
    """A sequence of one item."""
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return DicomSequence([item])


def series(
    folder: Path,
    volume: np.ndarray,
    *,
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    orientation: Sequence[float] = AXIAL,
    step: float = 2.0,
    spacing: Sequence[float] = (0.8, 0.6),
    shift: Sequence[float] = (0.0, 0.0, 0.0),
    order: Sequence[int] | None = None,
    name: str = "IM{:04d}.dcm",
    uid: str | None = None,
    **fields: Any,
) -> list[Path]:
    """Slices of ``(D, H, W)``: slice d lies d steps along the normal; files are numbered in ``order``.

    ``shift`` is added per slice, as a tilted gantry does.
    """
    uid = generate_uid() if uid is None else uid
    normal = np.cross(orientation[:3], orientation[3:])
    order = range(len(volume)) if order is None else order
    paths = []
    for number, d in enumerate(order):
        position = np.array(origin) + d * (step * normal + np.array(shift))
        data = dataset(
            volume[d],
            SeriesInstanceUID=uid,
            InstanceNumber=number + 1,
            ImagePositionPatient=[float(value) for value in position],
            ImageOrientationPatient=list(orientation),
            PixelSpacing=list(spacing),
            SliceThickness=step,
            **fields,
        )
        paths.append(save(data, folder / name.format(number)))
    return paths


def smooth(shape: Sequence[int], seed: int = 0, low: int = -1000, high: int = 2000) -> np.ndarray:
    """int16 values that differ in every voxel's neighbourhood, so that no flip or exchange goes unseen."""
    values = np.random.default_rng(seed).integers(low, high, shape)
    return values.astype(np.int16)
