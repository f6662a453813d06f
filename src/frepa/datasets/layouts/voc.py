"""Pascal VOC: one XML per image, in ``Annotations`` or beside the images, and lists of the parts if there are any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frepa.datasets.annotations import CORNERS, PARTS
from frepa.datasets.catalogue.records import sample
from frepa.datasets.layouts.folders import subfolder
from frepa.datasets.layouts.pairing import stem
from frepa.datasets.layouts.registry import Listing, layout
from frepa.errors import InputError
from frepa.images.voc_files import read_voc

_IMAGES = ("jpegimages", "images", "image", "imgs", "img")
_XML = ("annotations", "annotation", "labels", "xml")
# Of trainval only what is in no other list
_LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}


def _folders(path: Path) -> list[tuple[str | None, str, Path]]:
    """(part, folder of images relative to the set, folder of XML files) of the set, or of its parts' folders."""
    found: list[tuple[str | None, str, Path]] = []
    for part, folder in [(None, path), *((PARTS[name], path / name) for name in PARTS)]:
        if folder.is_dir():
            images, notes = (folder / subfolder(folder, names) for names in (_IMAGES, _XML))
            if any(file.suffix.lower() == ".xml" for file in notes.iterdir()):
                found.append((part, images.relative_to(path).as_posix(), notes))
    return found


@layout(
    "voc",
    column="boxes",
    expects="a Pascal VOC folder: JPEGImages (or images), Annotations/*.xml and ImageSets/Main/train.txt ... if wanted",
    detect=lambda path: bool(_folders(path)),
)
def read_voc_folder(path: Path, names: Sequence[str], dims: int) -> Listing:
    """Images without an XML are not annotated; of lists only what they name is used.

    Coordinates are taken as edges in pixels, as they are written. Objects marked as difficult count neither as hit nor
    as false alarm, as in the Pascal VOC challenge.

    Raises:
        InputError: an XML cannot be read, or most have no image.
    """
    if dims != 2:
        raise InputError(f"{path}: Pascal VOC boxes have two axes, and the encoder takes volumes. Give a 2D encoder.")
    part_of = _lists(path)
    columns: dict[str, dict[str, Any]] = {"boxes": {}, "box_size": {}, "split": {}}
    orphans: list[str] = []
    for part, folder, notes in _folders(path):
        of_image = {file.stem: file for file in sorted(notes.iterdir()) if file.suffix.lower() == ".xml"}
        inside = [name for name in names if (name.rpartition("/")[0] or ".") == folder]
        for image in inside:
            own = of_image.pop(stem(image), None)
            if own is None or (part_of and stem(image) not in part_of):
                continue
            columns["boxes"][image], columns["box_size"][image] = _boxes(own)
            columns["split"][image] = part_of.get(stem(image), part)
        orphans += [file.name for file in of_image.values()]
    if len(orphans) > len(columns["boxes"]):
        raise InputError(f"{path}: {len(orphans):,} XML files have no image of the same name: {sample(orphans)}.")
    warnings = [f"{len(orphans):,} XML files have no image of the same name: {sample(orphans)}"] if orphans else []
    origin = "Pascal VOC files" + (", parts from ImageSets/Main" if part_of else "")
    facts = {"box_unit": CORNERS, "origins": {"boxes": origin}, "layout": "voc"}
    return Listing(columns, facts, warnings=tuple(warnings))


def _boxes(path: Path) -> tuple[list[dict[str, Any]], list[int] | None]:
    size, objects = read_voc(path)
    boxes = []
    for item in objects:
        if not item.name:
            raise InputError(f"{path}: an object has no name, so its class is not known.")
        x, y, x_end, y_end = item.corners
        boxes.append({"label": None if item.difficult else item.name, "coordinates": [y, x, y_end, x_end]})
    return boxes, None if size is None else list(size)


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
