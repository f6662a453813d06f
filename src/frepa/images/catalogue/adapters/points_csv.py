"""Findings given as a centre in world millimetres and a diameter, as LUNA16 lists its nodules."""

from __future__ import annotations

from pathlib import Path

from frepa.errors import InputError
from frepa.images.catalogue.adapters import Context, register
from frepa.images.catalogue.adapters.values import plain_value
from frepa.images.catalogue.patterns import fill, path_fields
from frepa.images.catalogue.tables import read_rows


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
) -> None:
    """Join findings to volumes; the column ``boxes`` gets ``[x, y, z, diameter]`` in mm.

    Coordinates are turned to RAS, the frame of a scan's affine: ``voxel = inverse(affine) @ (x, y, z, 1)``. A volume
    the table does not name has an empty list: it was read and holds none.

    Args:
        patterns: of the table.
        key: the column that names the volume -> template of what it holds.
        centre: columns of x, y and z.
        diameter: column of the diameter in mm.
        name: class of every finding.
        frame: ``LPS`` (DICOM, ITK) or ``RAS`` (NIfTI): the frame the table is written in.
    """
    records = context.records
    found = [path for path, _, _ in context.index.matches(patterns)]
    if not found:
        records.problems.append(f"no table of findings: no file matches {' or '.join(patterns)}")
        return
    flip = -1.0 if frame == "LPS" else 1.0
    (column, template) = next(iter(key.items()))
    by_key: dict[str, list[dict]] = {}
    for path in found:
        records.used.add(path)
        for number, row in enumerate(read_rows(Path(context.index.absolute(path))), start=2):
            try:
                x, y, z = (float(row[name]) for name in centre)
                box = {"label": name, "coordinates": [flip * x, flip * y, z, float(row[diameter])]}
                by_key.setdefault(plain_value(row[column]), []).append(box)
            except (KeyError, ValueError) as error:
                raise InputError(
                    f"{path}, line {number}: columns {column}, {', '.join(centre)}, {diameter} expected."
                ) from error
    seen = set()
    for i, relative in enumerate(records.relative):
        text = plain_value(fill(template, {**path_fields(relative), **records.fields[i]}) or "")
        seen.add(text)
        records.columns["boxes"][i] = by_key.get(text, [])
    records.facts["box_unit"] = "RAS mm, centre and diameter"
    records.add_class(name)
    lost = sum(len(boxes) for key_of, boxes in by_key.items() if key_of not in seen)
    if lost:
        records.problems.append(f"{lost:,} findings belong to volumes that are not in the folder")
