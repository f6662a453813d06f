"""What is written of each scan that a head was put on: masks, boxes, probabilities, pictures, and their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from frepa import __version__
from frepa.datasets.layouts.pairing import stem
from frepa.downstream.detection.trained import DetectedScan
from frepa.downstream.segmentation.trained import SegmentedScan
from frepa.downstream.trained import Answer, TrainedHead
from frepa.errors import InputError
from frepa.files import write_atomically, write_bytes, write_json
from frepa.images.dicom_seg import check_installed, write_segmentation
from frepa.images.filed import Filed
from frepa.images.readers.registry import reader_for
from frepa.images.writing import write_nifti
from frepa.report.figures import png_bytes

#: Formats of masks; "auto" is PNG for images and NIfTI for volumes.
FORMATS = ("auto", "nifti", "png", "dicom-seg")
MASKS, BOXES, OVERLAYS, PROBABILITIES = "masks", "boxes", "overlays", "probabilities"


@dataclass(frozen=True)
class Writing:
    """What is written: in which of ``FORMATS``, maps of probabilities or not, pictures or not.

    ``heads``: hashes of the head files, which a DICOM segmentation is named after.
    """

    format: str
    probabilities: bool
    overlays: bool
    heads: tuple[str, ...] = ()

    def check(self, head: TrainedHead[Any]) -> None:
        """Raise InputError for what the head cannot give."""
        if head.task != "segmentation":
            if self.format != "auto":
                raise InputError(f"--format {self.format}: this head gives no masks. Leave the option out.")
            if self.probabilities:
                raise InputError("--probabilities: this head gives no maps. Leave the option out.")
        if self.format == "png" and head.dims == 3:
            raise InputError("--format png: the head was trained on volumes. Take nifti.")
        if self.format == "dicom-seg":
            check_installed()


def write_answer(answer: Answer, root: Path, target: str, how: Writing) -> dict[str, Any]:
    """Write the files of one scan below ``root``; returns their names, by what they are.

    ``target`` is the name of all of them, without an ending.
    """
    files: dict[str, str] = {}
    if isinstance(answer, SegmentedScan):
        files["mask"] = _relative(root, _write_mask(answer, _place(root, MASKS, target), how))
        if how.probabilities:
            files["probabilities"] = _relative(root, _write_maps(answer, _place(root, PROBABILITIES, target)))
    elif isinstance(answer, DetectedScan):
        path = _place(root, BOXES, target)
        path = path.with_name(path.name + ".json")
        write_json(path, {"axes": "pixels: x is the last axis of the file, pixel i covers [i, i + 1); coord: LPS mm",
                          "size": _named(answer.grid.size), "spacing": _named(answer.grid.spacing),
                          "boxes": answer.boxes})  # fmt: skip
        files["boxes"] = _relative(root, path)
    if how.overlays:
        path = _place(root, OVERLAYS, target)
        path = path.with_name(path.name + ".png")
        write_bytes(path, png_bytes(answer.picture()), sync=False)
        files["overlay"] = _relative(root, path)
    return {**files, "files": list(files.values())}


def out_name(name: str, location: str, taken: set[str]) -> str:
    """The name, without an ending, under which what is found in a record is written; added to ``taken``.

    That of the record in its folders; where two have one name, with the ending, and then a number. What no reader knows
    is no ending: series and their files are often named after identifiers such as ``1.2.840.17``.

    Args:
        name: of the record within its source.
        location: what the user named, for records that are the source itself.
        taken: names given out before.
    """
    path = PurePosixPath(PurePosixPath(location).name or "scan") if name == "." else PurePosixPath(name)
    parts = [part for part in path.parts if part not in ("/", "..", ".")] or ["scan"]
    full = "/".join(parts)
    file, mark, member = parts[-1].partition("#")
    short = "/".join([*parts[:-1], (stem(file) if reader_for(file) else file) + mark + member])
    number, free = 2, short if short not in taken else full
    while free in taken:
        free, number = f"{short}-{number}", number + 1
    taken.add(free)
    return free


def _write_mask(answer: SegmentedScan, target: Path, how: Writing) -> Path:
    if how.format == "auto":
        return answer.save(target)
    mask, grid = answer.mask, answer.grid
    if how.format == "dicom-seg":
        assert grid.slices is not None
        classes = np.searchsorted(answer.labels.values, mask if mask.ndim == 3 else mask[None]).astype(np.uint8)
        path = target.with_name(target.name + ".dcm")
        values = answer.labels.values
        return write_segmentation(path, classes, values, grid.slices, version=__version__, heads=how.heads)
    if how.format == "png":
        flat = mask if mask.ndim == 2 else mask[0] if mask.shape[0] == 1 else np.squeeze(mask)
        return SegmentedScan(Filed(flat.shape, None), answer.image, flat, answer.probabilities, answer.seen,
                             answer.labels).save(target)  # fmt: skip
    solid = mask if mask.ndim == 3 else mask[None]
    spacing = grid.spacing if grid.spacing is None or len(grid.spacing) == 3 else (1.0, *grid.spacing)
    return write_nifti(target.with_name(target.name + ".nii.gz"), solid, grid.affine, spacing=spacing, sync=False)


def _write_maps(answer: SegmentedScan, target: Path) -> Path:
    """Probabilities (K, *size): NIfTI whose fourth axis is the class, or float TIFF with a page per class."""
    grid, maps = answer.grid, answer.probabilities.astype(np.float32)
    if maps.ndim == 4:
        path = target.with_name(target.name + ".nii.gz")
        return write_nifti(path, maps, grid.affine, spacing=grid.spacing, sync=False)
    import tifffile

    path = target.with_name(target.name + ".tif")

    def write(temporary: Path) -> None:
        tifffile.imwrite(temporary, maps, photometric="minisblack", compression="zlib")

    write_atomically(path, write, sync=False)
    return path


def _place(root: Path, folder: str, target: str) -> Path:
    path = root / folder / target
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _named(values: Sequence[float] | None) -> dict[str, float] | None:
    """Extents per axis by name: x is the last axis."""
    return None if values is None else dict(zip("xyz", [float(value) for value in reversed(values)]))
