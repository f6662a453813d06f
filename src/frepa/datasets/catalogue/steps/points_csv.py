"""Findings given as a centre in world millimetres and a diameter, as LUNA16 lists its nodules."""

from __future__ import annotations

from pathlib import Path

from frepa.datasets.annotations import SPHERES
from frepa.datasets.catalogue.patterns import fill, path_fields
from frepa.datasets.catalogue.records import Box
from frepa.datasets.catalogue.steps import Context, register
from frepa.datasets.catalogue.steps.values import plain_value
from frepa.datasets.catalogue.tables import read_rows
from frepa.errors import InputError


@register("points_csv")
def points_csv(
    context: Context,
    *,
    patterns: list[str],
    key: dict[str, str],
    centre: list[str],
    diameter: str,
    name: str,
    frame: str = "LPS",
    ignored: list[str] | None = None,
) -> None:
    """Join findings to volumes; the column ``boxes`` gets ``[x, y, z, diameter]`` in mm.

    Coordinates are turned to RAS, the frame of a scan's affine: ``voxel = inverse(affine) @ (x, y, z, 1)``. A volume
    the table does not name has an empty list: it was read and holds none. A finding that comes twice is kept once.

    Args:
        patterns: of the table.
        key: the column that names the volume -> template of what it holds.
        centre: columns of x, y and z.
        diameter: column of the diameter in mm.
        name: class of every finding.
        frame: ``LPS`` (DICOM, ITK) or ``RAS`` (NIfTI): the frame the table is written in.
        ignored: patterns of a table with the same columns, of findings that count neither as hit nor as false alarm;
            their label is None. A copy without it is noted, and no fault.
    """
    records = context.records
    found = [path for path, _, _ in context.index.matches(patterns)]
    if not found:
        records.problems.append(f"no table of findings: no file matches {' or '.join(patterns)}")
        return
    flip = -1.0 if frame == "LPS" else 1.0
    (column, template) = next(iter(key.items()))
    columns = [column, *centre, diameter]
    by_key = _by_volume(context, found, columns, flip, name)
    left = [path for path, _, _ in context.index.matches(ignored or [])]
    for volume, boxes in _by_volume(context, left, columns, flip, None).items():
        by_key.setdefault(volume, []).extend(boxes)
    if ignored and not left:
        records.notes.append(f"no file matches {' or '.join(ignored)}: no finding is left out of the count")
    seen = set()
    for i, relative in enumerate(records.relative):
        text = plain_value(fill(template, {**path_fields(relative), **records.fields[i]}) or "")
        seen.add(text)
        records.columns["boxes"][i] = by_key.get(text, [])
    records.facts["box_unit"] = SPHERES
    records.add_class(name)
    lost = sum(box["label"] is not None for volume in by_key.keys() - seen for box in by_key[volume])
    if lost:
        records.problems.append(f"{lost:,} findings belong to volumes that are not in the folder")


def _by_volume(
    context: Context, paths: list[str], columns: list[str], flip: float, label: str | None
) -> dict[str, list[Box]]:
    """Findings of these tables by what names their volume; ``columns``: that name, x, y, z, diameter."""
    by_key: dict[str, list[Box]] = {}
    for path in paths:
        context.records.used.add(path)
        for number, row in enumerate(read_rows(Path(context.index.absolute(path))), start=2):
            try:
                x, y, z, size = (float(row[name]) for name in columns[1:])
                mine = by_key.setdefault(plain_value(row[columns[0]]), [])
            except (KeyError, ValueError) as error:
                raise InputError(f"{path}, line {number}: columns {', '.join(columns)} expected.") from error
            box: Box = {"label": label, "coordinates": [flip * x, flip * y, z, size]}
            # A release and its evaluation script can carry the same table
            if box not in mine:
                mine.append(box)
    return by_key
