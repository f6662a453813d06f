"""Small sets with boxes, written for a test, and what was read of them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import nibabel
import numpy as np
from PIL import Image

from frepa.downstream.detection.data import DetectionData, check, open_boxes
from frepa.images import boxes

COLUMNS = "path,x_min,y_min,x_max,y_max"
SPHERES = "path,coordX,coordY,coordZ,diameter_mm"


def picture(path: Path, size: tuple[int, int] = (20, 30)) -> Path:
    """Grey, ``size`` rows and columns, with a bright rectangle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    pixels[3:8, 4:9] = 200
    Image.fromarray(pixels).save(path)
    return path


def volume(path: Path, affine: np.ndarray, array: np.ndarray) -> Path:
    """``array`` in the file's own axes (i, j, k)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def table(root: Path, *rows: str, name: str = "table.csv") -> str:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(rows) + "\n")
    return str(root / name)


def pictures(root: Path, count: int = 6) -> list[str]:
    return [picture(root / f"{i}.png").name for i in range(count)]


def marked(text: str, dims: int = 2) -> dict[str, list[tuple]]:
    """Checked boxes by image: (class, corners)."""
    return by_name(check(open_boxes(text, dims=dims)))


def by_name(data: DetectionData) -> dict[str, list[tuple]]:
    names = {**dict(enumerate(data.classes)), boxes.IGNORED: None}
    return {
        data.name(row): sorted(
            ((names[int(k)], *corners) for k, corners in zip(found.classes, found.corners.tolist())), key=str
        )
        for row, found in enumerate(data.boxes)
    }


def voc(
    path: Path, *objects: tuple[str, int, int, int, int], size: tuple[int, int] = (20, 30), difficult: int = 0
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    root = ElementTree.Element("annotation")
    for side, value in zip(("height", "width"), size):
        ElementTree.SubElement(root.find("size") or ElementTree.SubElement(root, "size"), side).text = str(value)
    for name, *corners in objects:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = name
        ElementTree.SubElement(item, "difficult").text = str(difficult)
        box = ElementTree.SubElement(item, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners):
            ElementTree.SubElement(box, side).text = str(value)
    ElementTree.ElementTree(root).write(path)
