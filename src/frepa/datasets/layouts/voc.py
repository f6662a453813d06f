"""Pascal VOC: one XML per image, in ``Annotations`` or beside the images, and lists of the parts if there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from frepa.datasets.catalogue.records import sample
from frepa.datasets.labelled import PARTS
from frepa.datasets.layouts.box_registry import BoxedSource, Findings, Request, box_layout
from frepa.datasets.layouts.listed import open_listed
from frepa.datasets.layouts.pairing import files_in, stem, subfolder
from frepa.errors import InputError
from frepa.images.voc_files import read_voc

_IMAGES = ("jpegimages", "images", "image", "imgs", "img")
_XML = ("annotations", "annotation", "labels", "xml")
# Of trainval only what is in no other list
_LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}


def _folders(path: Path) -> list[tuple[str | None, Path, Path]]:
    """(part, folder of images, folder of XML files) of the set, or of its train, val and test folders."""
    found = []
    for part, folder in [(None, path), *((PARTS[name], path / name) for name in PARTS)]:
        if folder.is_dir():
            images, notes = subfolder(folder, _IMAGES) or folder, subfolder(folder, _XML) or folder
            if any(file.suffix.lower() == ".xml" for file in notes.iterdir()):
                found.append((part, images, notes))
    return found


@box_layout(
    "voc",
    expects="a Pascal VOC folder: JPEGImages (or images), Annotations/*.xml and ImageSets/Main/train.txt ... if wanted",
    detect=lambda text, path: path.is_dir() and bool(_folders(path)),
)
def read_voc_folder(request: Request) -> BoxedSource:
    """Images without an XML are not annotated; of lists only what they name is used.

    Coordinates are taken as edges in pixels, as they are written. Objects marked as difficult count neither as hit nor
    as false alarm, as in the Pascal VOC challenge.

    Raises:
        InputError: an XML cannot be read, or most have no image.
    """
    path = request.path
    if request.dims != 2:
        raise InputError(f"{path}: Pascal VOC boxes have two axes, and the encoder takes volumes. Give a 2D encoder.")
    part_of = _lists(path)
    names: list[str] = []
    notes: list[Path | None] = []
    splits: list[str | None] = []
    orphans: list[str] = []
    for part, image_folder, note_folder in _folders(path):
        of_image = {file.stem: file for file in sorted(note_folder.iterdir()) if file.suffix.lower() == ".xml"}
        for image in files_in(image_folder, 2):
            own = of_image.pop(stem(image), None)
            if part_of and stem(image) not in part_of:
                continue
            names.append(image.relative_to(path).as_posix())
            notes.append(own)
            splits.append(part_of.get(stem(image), part))
        orphans += [file.name for file in of_image.values()]
    if len(orphans) > sum(note is not None for note in notes):
        raise InputError(f"{path}: {len(orphans):,} XML files have no image of the same name: {sample(orphans)}.")
    source, places = open_listed(path, request.text, names, names, dims=2)
    marked = [None if note is None else _findings(note) for note in notes]
    if orphans:
        source.warnings.append(f"{len(orphans):,} XML files have no image of the same name: {sample(orphans)}")
    return BoxedSource(
        source=source,
        findings=[marked[place] for place in places],
        splits=[splits[place] for place in places],
        classes=(),
        origin="Pascal VOC files" + (", parts from ImageSets/Main" if part_of else ""),
    )


def _findings(path: Path) -> Findings:
    size, objects = read_voc(path)
    nameless = next((item for item in objects if not item.name), None)
    if nameless is not None:
        raise InputError(f"{path}: an object has no name, so its class is not known.")
    values = np.array([item.corners for item in objects], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
    return Findings(values, tuple(None if item.difficult else item.name for item in objects), size)


def _lists(path: Path) -> dict[str, str]:
    """Image name without ending -> part, from ``ImageSets/Main``; empty where there are no lists."""
    part_of: dict[str, str] = {}
    for name, part in _LISTS.items():
        file = path / "ImageSets" / "Main" / f"{name}.txt"
        if not file.is_file():
            continue
        for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            words = line.split()
            if words and part_of.setdefault(words[0], part) != part and name != "trainval":
                raise InputError(f"{file}: {words[0]} is in the list {part_of[words[0]]} too. Take it out of one.")
    return part_of
