"""Boxes in Pascal VOC files, one XML per image."""

from __future__ import annotations

from collections.abc import Mapping

from frepa.datasets.annotations import XYXY
from frepa.datasets.catalogue.patterns import path_fields, pattern
from frepa.datasets.catalogue.records import Box, sample
from frepa.datasets.catalogue.steps import Context, register
from frepa.datasets.catalogue.steps.values import ClassNames
from frepa.images.voc_files import read_voc


@register("boxes_voc")
def boxes_voc(
    context: Context,
    *,
    pattern: str,
    names: Mapping[object, str] | list[str] | None = None,
    partial: bool = False,
) -> None:
    """Join VOC files by the named parts that the XML's path and the image share.

    Boxes go to the column ``boxes`` in pixels, ``[x_min, y_min, x_max, y_max]``. Boxes without area are dropped and
    counted, those that reach out of the image are clipped when the file states the image's size. Objects marked as
    difficult, which count neither as hit nor as false alarm, have the label None.

    Args:
        pattern: of the XML files; its named parts are the join.
        names: object name -> class name; objects that are not listed are dropped.
        partial: not every image has an XML, so a missing one is no fault.
    """
    records = context.records
    class_names = ClassNames(names)
    parts_of, files = _index(context, pattern)
    dropped = 0
    missing, joined = [], set()
    column = records.columns["boxes"]
    for i, relative in enumerate(records.relative):
        fields = {**path_fields(relative), **records.fields[i]}
        found = files.get(tuple((fields.get(name) or "").casefold() for name in parts_of))
        if found is None:
            missing.append(relative)
            continue
        joined.add(found)
        column[i], lost = _read(context.index.absolute(found), class_names)
        dropped += lost
    records.used |= joined
    records.facts["box_unit"] = XYXY
    for name in class_names.known or sorted({box["label"] for cell in column for box in cell or []} - {None}):
        records.add_class(name)
    if not files:
        records.problems.append(f"no box annotations: no file matches {pattern}")
    elif missing and not partial:
        records.problems.append(f"{len(missing):,} of {len(records):,} images have no box file: {sample(missing)}")
    orphans = sorted(set(files.values()) - joined)
    if orphans:
        records.problems.append(f"{len(orphans):,} box files belong to no image found: {sample(orphans)}")
        records.used |= set(orphans)
    if dropped:
        records.notes.append(f"{dropped:,} boxes without area, or of no listed class, were dropped")


def _index(context: Context, text: str) -> tuple[list[str], dict[tuple[str, ...], str]]:
    names = pattern(text).names
    files = {}
    for path, parts, _ in context.index.matches([text]):
        files[tuple(parts[name].casefold() for name in names)] = path
    return names, files


def _read(path: str, names: ClassNames) -> tuple[list[Box], int]:
    size, objects = read_voc(path)
    boxes, dropped = [], 0
    for item in objects:
        x1, y1, x2, y2 = item.corners
        if size is not None:
            height, width = (float(n) for n in size)
            x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
        name = names(item.name)
        if name is None or x2 <= x1 or y2 <= y1:
            dropped += 1
        else:
            boxes.append({"label": None if item.difficult else name, "coordinates": [x1, y1, x2, y2]})
    return boxes, dropped
