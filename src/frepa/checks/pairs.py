"""Label files against the images they belong to: there, of the same size, at the same place in the patient."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from frepa.checks.findings import Finding
from frepa.datasets.annotations import Annotations
from frepa.images.orientation import axis_codes, same_grid, voxel_sizes
from frepa.images.places import split_place
from frepa.images.readers.pixels import MAX_PIXELS
from frepa.images.readers.registry import reader_at
from frepa.images.scan import Header, UnreadableScan
from frepa.images.source import Source

# Folders of images, and of the labels that have the same names
_FOLDERS = [("imagesTr", "labelsTr"), ("imagesVa", "labelsVa"), ("imagesTs", "labelsTs")]
_FOLDERS += [("images", "labels"), ("images", "masks"), ("image", "mask"), ("image", "label")]


def label_files(source: Source) -> dict[int, str]:
    """Record to its label file, where the source knows of masks; {} where it does not.

    Masks that the source itself holds, as a store does, are no files, and were held against their images when packed.
    """
    if source.annotations is None or source.holds_masks:
        return {}
    masks = Annotations(source, source.annotations).masks()
    return {index: os.path.join(source.folder or "", mask) for index, mask in enumerate(masks) if mask}


def labels_beside(source: Source) -> dict[int, str]:
    """Record to the label file that lies beside it by the usual names of folders (``imagesTr`` and ``labelsTr``)."""
    found: dict[int, str] = {}
    if source.folder is None:
        return found
    # A source may be the folder of images itself
    root = os.path.abspath(source.folder)
    for index in range(len(source)):
        folder, file = os.path.split(os.path.join(root, source.name(index)))
        above, last = os.path.split(folder)
        for images, labels in _FOLDERS:
            if last == images:
                names = (file, file.replace("_0000.", "."))  # channels are numbered, labels are not
                there = [path for path in (os.path.join(above, labels, name) for name in names) if os.path.isfile(path)]
                if there:
                    found.setdefault(index, there[0])
    return found


def pair_findings(source: Source, pairs: dict[int, str]) -> Iterable[Finding]:
    """Findings about label files, by their headers alone. ``source`` must have been opened with axes as stored."""
    root = os.path.join(os.path.abspath(source.folder or ""), "")
    for index, text in pairs.items():
        shown = os.path.abspath(text).removeprefix(root)
        name = source.name(index)
        try:
            image = source.header(index)
            label = _header(text, source.dims)
        except UnreadableScan as error:
            yield Finding("mask missing", name, f"{shown}: {error.reason}", shown, index)
            continue
        found = _compare(image, label)
        if found is not None:
            yield Finding(found[0], name, f"{shown}: {found[1]}", shown, index)


def _header(text: str, dims: int) -> Header:
    file, member, _ = split_place(text)
    path = Path(file)
    if not path.exists():
        raise UnreadableScan(text, "not there", kind="empty")
    reader = reader_at(path)
    if reader is None or dims not in reader.dims:
        raise UnreadableScan(text, "no format that can be read")
    return reader.header(path, member, dims=dims, max_pixels=MAX_PIXELS[dims], canonical=False)


def _compare(image: Header, label: Header) -> tuple[str, str] | None:
    if image.affine is None or label.affine is None:
        if image.size != label.size:
            return "mask size", f"{_shown(label.size)}, its image {_shown(image.size)}"
        return None
    if same_grid(image.size, image.affine, label.size, label.affine):
        here, there = axis_codes(image.affine), axis_codes(label.affine)
        return None if here == there else ("mask turned", f"stored as {there}, its image as {here}")
    if sorted(image.size) != sorted(label.size):
        return "mask size", f"{_shown(label.size)}, its image {_shown(image.size)}"
    shift = np.abs(_centre(image) - _centre(label)).max()
    sizes = [np.sort(voxel_sizes(header.affine)) for header in (image, label) if header.affine is not None]
    if np.abs(sizes[0] / sizes[1] - 1).max() > 0.01:
        return "mask place", f"voxels of {_shown(sizes[1])} mm, its image's {_shown(sizes[0])} mm"
    return "mask place", f"its centre is {shift:.3g} mm away from its image's, or it is turned"


def _centre(header: Header) -> np.ndarray:
    assert header.affine is not None
    return header.affine[:3, :3] @ ((np.array(header.size) - 1) / 2) + header.affine[:3, 3]


def _shown(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)
