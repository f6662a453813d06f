"""Segmentations stored as DICOM SEG objects, joined to the series they were drawn on."""

from __future__ import annotations

import pydicom
from pydicom.errors import InvalidDicomError

from frepa.datasets.catalogue.records import sample
from frepa.datasets.catalogue.steps import Context, register


@register("dicom_seg")
def dicom_seg(context: Context) -> None:
    """Set ``mask`` of every series that a SEG object references by its SeriesInstanceUID (not by folder name).

    The objects are those that ``dicom_series`` came across and set aside.

    A series without a segmentation keeps an empty mask: collections hold further phases and follow-ups without one.
    """
    records = context.records
    of_series: dict[str, str] = {}
    unreferenced = []
    for path in records.set_aside.get("SEG", []):
        reference = _referenced_series(context.index.absolute(path))
        if reference is None:
            continue
        records.used.add(path)
        if reference:
            of_series[reference] = path
        else:
            unreferenced.append(path)
    known = {fields.get("series_uid") for fields in records.fields}
    for i, fields in enumerate(records.fields):
        found = of_series.get(fields.get("series_uid") or "-")
        if found:
            records.columns["mask"][i] = context.index.absolute(found)
    unreferenced += [path for uid, path in of_series.items() if uid not in known]
    records.facts.update(target="segments", targets=["segments"])
    if not of_series:
        records.problems.append("no segmentation was found (DICOM SEG objects)")
    if unreferenced:
        names = sample(sorted(unreferenced))
        records.problems.append(f"{len(unreferenced):,} segmentations belong to no series found: {names}")


def _referenced_series(path: str) -> str | None:
    """UID of the series a SEG object was drawn on, empty where it names none; None for any other file."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality", "ReferencedSeriesSequence"])
    except (InvalidDicomError, OSError, ValueError, AttributeError, EOFError):
        return None
    if header.get("Modality") != "SEG":
        return None
    references = header.get("ReferencedSeriesSequence") or []
    return str(references[0].get("SeriesInstanceUID") or "") if references else ""
