"""COCO: JSON files with images, annotations and categories, one for all images or one for each part."""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from frepa.datasets.annotations import CORNERS, PARTS
from frepa.datasets.catalogue.records import sample
from frepa.datasets.layouts.listed import Locator, check_found
from frepa.datasets.layouts.registry import Listing, layout
from frepa.errors import InputError

_KEYS = (b'"images"', b'"annotations"', b'"categories"', b'"bbox"')
# Where a release has several files of the same images, the one with the boxes of all objects
_BOXES_OF_ALL = "instances"


def _files(path: Path) -> list[Path]:
    """Files with boxes, by the keys they hold; other JSON files (of nnU-Net, say) are left alone."""
    candidates = [path] if path.is_file() else sorted([*path.glob("*.json"), *path.glob("*/*.json")])
    found = [file for file in candidates if file.suffix.lower() == ".json" and _holds_boxes(file)]
    return [file for file in found if file.stem.startswith(_BOXES_OF_ALL)] or found


def _holds_boxes(file: Path) -> bool:
    # The files are large: their bytes are searched before anything is parsed
    if not file.stat().st_size:
        return False
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return all(data.find(key) >= 0 for key in _KEYS)


@layout(
    "coco",
    column="boxes",
    expects="a folder with COCO files (annotations.json, annotations/instances_train.json, train/*.json) and images",
    detect=lambda path: bool(_files(path)),
)
def read_coco(path: Path, names: Iterable[str], dims: int) -> Listing:
    """Images without annotations show no findings; ``iscrowd`` marks findings that count neither as hit nor as miss.

    A file, or its folder, that is called train, val or test gives the part of its images.

    Args:
        path: a folder, or one COCO file.
        names: files of the folder.
        dims: 2.

    Raises:
        InputError: a file is not COCO's, an image is in two of them, or most images are not there.
    """
    if dims != 2:
        raise InputError(f"{path}: COCO boxes have two axes, and the encoder takes volumes. Give a 2D encoder.")
    root = path if path.is_dir() else path.parent
    locator = Locator(root, names)
    columns: dict[str, dict[str, Any]] = {"boxes": {}, "box_size": {}, "split": {}}
    classes: dict[str, None] = {}
    warnings: list[str] = []
    absent: list[str] = []
    seen: dict[str, Path] = {}
    files = _files(path)
    for file in files:
        content = _content(file)
        of_image = _by_image(file, content, classes, warnings)
        words = [word.lower() for word in re.split(r"[^A-Za-z]+", file.stem)]
        part = next((PARTS[word] for word in [*words, file.parent.name.lower()] if word in PARTS), None)
        near = _near(root, file)
        for image in content["images"]:
            called = str(image["file_name"])
            name = locator.find(called, near)
            if name is None:
                absent.append(called)
                continue
            if name in seen:
                raise InputError(
                    f"{file}: the image {name} is in {seen[name]} already. Each belongs into one file, once."
                )
            seen[name] = file
            size = [int(image[side]) for side in ("height", "width") if _is_number(image.get(side))]
            columns["boxes"][name] = of_image[image["id"]]
            columns["box_size"][name] = size if len(size) == 2 and all(size) else None
            columns["split"][name] = part
    check_found(path, root, absent, len(absent) + len(seen))
    origin = f"the COCO files {sample([file.relative_to(root).as_posix() for file in files])}"
    facts = {"classes": list(classes), "box_unit": CORNERS, "origins": {"boxes": origin}, "layout": "coco"}
    return Listing(columns, facts, absent=tuple(absent), warnings=tuple(warnings))


def _near(root: Path, file: Path) -> list[Path]:
    """Folders that a file's images may lie in: its own, and those named like it (``train2017``)."""
    own = [file.parent, file.parent / "images"]
    words = [word for word in file.stem.split("_") if word]
    return [*own, *(root / word for word in words), *(root / "images" / word for word in words), root / "images"]


def _content(file: Path) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8-sig") as opened:
            content = json.load(opened)
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}).") from None
    if not isinstance(content, dict):
        raise InputError(
            f"{file}: is no COCO file: it is a list, and an object with images and annotations is expected."
        )
    for key, fields in (
        ("images", ("id", "file_name")),
        ("categories", ("id", "name")),
        ("annotations", ("image_id",)),
    ):
        rows = content.get(key)
        if not isinstance(rows, list) or any(not isinstance(row, dict) for row in rows):
            raise InputError(f"{file}: is no COCO file: {key!r} is expected to be a list of objects.")
        for number, row in enumerate(rows):
            missing = [field for field in fields if field not in row]
            if missing:
                raise InputError(f"{file}: entry {number} of {key!r} has no {missing[0]!r}.")
    return content


def _by_image(
    file: Path, content: Mapping[str, Any], classes: dict[str, None], warnings: list[str]
) -> dict[Any, list[dict[str, Any]]]:
    """Boxes of each image's id; adds the file's categories to ``classes`` in the order of their ids."""
    name_of = {row["id"]: str(row["name"]) for row in content["categories"]}
    classes.update(dict.fromkeys(name_of[key] for key in sorted(name_of)))
    rows: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    if len(rows) < len(content["images"]):
        raise InputError(f"{file}: two images have the same id.")
    lost = 0
    for number, item in enumerate(content["annotations"]):
        box, category = item.get("bbox"), item.get("category_id")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            raise InputError(
                f"{file}: entry {number} of 'annotations' has the bbox {box}; expected [x, y, width, height]."
            )
        if category not in name_of:
            raise InputError(f"{file}: entry {number} of 'annotations' is of category {category}, which is not listed.")
        x, y, width, height = box
        if item["image_id"] not in rows:
            lost += 1
            continue
        label = None if item.get("iscrowd") else name_of[category]
        rows[item["image_id"]].append({"label": label, "coordinates": [y, x, y + height, x + width]})
    if lost:
        warnings.append(f"{file.name}: {lost:,} boxes belong to no image of the file.")
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
