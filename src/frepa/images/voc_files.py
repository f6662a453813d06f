"""Pascal VOC files: the boxes of one image in XML."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from frepa.errors import InputError

# No annotation needs a document type; entities in one can be made to grow without bound.
_FORBIDDEN = b"<!DOCTYPE"


class VocObject(NamedTuple):
    """A box as written: ``(x_min, y_min, x_max, y_max)`` in pixels; ``difficult`` ones are left out of every count."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


class VocFile(NamedTuple):
    """All boxes of one image, and the image's ``(height, width)`` where the file states it."""

    size: tuple[int, int] | None
    objects: list[VocObject]


def read_voc(path: str | Path) -> VocFile:
    """Read one annotation.

    Raises:
        InputError: the file is no VOC annotation.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        if _FORBIDDEN in data:
            raise ElementTree.ParseError("document type declarations are not read")
        root = ElementTree.fromstring(data)
        width, height = (float(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
        objects = []
        for item in root.iter("object"):
            x1, y1, x2, y2 = (_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
            difficult = (item.findtext("difficult") or "").strip() == "1"
            objects.append(VocObject((item.findtext("name") or "").strip(), (x1, y1, x2, y2), difficult))
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path} cannot be read as Pascal VOC ({error}).") from error
    return VocFile((int(height), int(width)) if width > 0 and height > 0 else None, objects)


def _number(item: ElementTree.Element, place: str) -> float:
    text = item.findtext(place)
    if text is None:
        raise ValueError(f"no {place}")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{place} is {text}")
    return number
