"""Small dataset folders for the tests: real files of every format, as few bytes as the format allows."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import openpyxl
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

_PILLOW = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF"}
_MHD = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = {raw}\n"


@dataclass
class Case:
    """A dataset folder and what must be found in it.

    Attributes:
        files: paths, one per line; contents by ending.
        content: path -> text, or a function that writes the file.
        expect: path of each record -> its columns; a column that is not named must be empty. ``group`` is any token:
            equal tokens, equal groups. Paths of masks are relative too.
        problems: a word of each problem that must be reported; no other may be.
    """

    files: str
    expect: dict[str, dict[str, Any]]
    content: dict[str, str | Callable[[Path], None]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def build(self, root: Path) -> None:
        """Write the folder."""
        for line in self.files.split("\n"):
            if line.strip():
                write(root / line.strip())
        for name, content in self.content.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_text(content)


def write(path: Path) -> None:
    """A tiny valid file of the kind its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.suffix.lower()
    if ending in _PILLOW:
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(path, _PILLOW[ending])
    elif path.name.endswith(".ppm.gz"):
        path.write_bytes(gzip.compress(b"P6 2 2 255\n" + bytes(12)))
    elif path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), path)
    elif ending == ".mhd":
        path.write_text(_MHD.format(raw=path.with_suffix(".raw").name))
        path.with_suffix(".raw").write_bytes(bytes(16))
    elif ending == ".npz":
        np.savez(path, data=np.zeros((2, 2, 2), np.float32))
    else:
        path.write_text("nothing\n")


def dicom(
    modality: str, series: str, sop: str = "1.2.3", kind: str = "ORIGINAL", refers: str = ""
) -> Callable[[Path], None]:
    """A writer of one DICOM file without pixels."""

    def save(path: Path) -> None:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = sop
        data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
        data.Modality, data.SeriesInstanceUID, data.SOPInstanceUID = modality, series, sop
        data.SOPClassUID = meta.MediaStorageSOPClassUID
        data.PatientName, data.PatientID = "Secret^Name", "SECRET-ID"
        data.ImageType = [kind, "PRIMARY", "AXIAL" if kind != "LOCALIZER" else "LOCALIZER"]
        if refers:
            reference = Dataset()
            reference.SeriesInstanceUID = refers
            data.ReferencedSeriesSequence = [reference]
        data.save_as(path, enforce_file_format=True)

    return save


def series(folder: str, count: int, modality: str, uid: str, name: str = "1-{:03d}.dcm", **more: str) -> dict[str, Any]:
    """Writers of a DICOM series of ``count`` slices in ``folder``."""
    return {f"{folder}/{name.format(i + 1)}": dicom(modality, uid, f"{uid}.{i + 1}", **more) for i in range(count)}


def excel(*rows: list[Any]) -> Callable[[Path], None]:
    """A writer of an Excel table."""

    def save(path: Path) -> None:
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(path)

    return save


def medmnist(size: int, dims: int, counts: tuple[int, int, int], labels: list[list[int]]) -> Callable[[Path], None]:
    """A writer of a MedMNIST file: ``counts`` images per split, with these labels."""

    def save(path: Path) -> None:
        arrays = {}
        for split, count, values in zip(("train", "val", "test"), counts, labels):
            arrays[f"{split}_images"] = np.zeros((count, *[size] * dims), np.uint8)
            arrays[f"{split}_labels"] = np.array(values, np.uint8)[:, None]
        np.savez(path, **arrays)

    return save


def cremi(depth: int, labelled: int, offset: int = 0) -> Callable[[Path], None]:
    """A writer of a CREMI sample; with ``offset`` sections the labels cover an inner part of the raw volume."""

    def save(path: Path) -> None:
        with h5py.File(path, "w") as file:
            raw = file.create_dataset("volumes/raw", data=np.zeros((depth, 4, 4), np.uint8))
            raw.attrs["resolution"] = (40.0, 4.0, 4.0)
            for name in ("neuron_ids", "clefts"):
                labels = file.create_dataset(f"volumes/labels/{name}", data=np.zeros((labelled, 4, 4), np.uint64))
                labels.attrs["resolution"] = (40.0, 4.0, 4.0)
                if offset:
                    labels.attrs["offset"] = (40.0 * offset, 0.0, 0.0)

    return save


def voc(width: int, height: int, *objects: tuple[str, int, int, int, int]) -> str:
    """A Pascal VOC file."""
    boxes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{boxes}</annotation>"


def box(label: str | None, *coordinates: float) -> dict[str, Any]:
    """A box as the table holds it."""
    return {"label": label, "coordinates": [float(number) for number in coordinates]}
