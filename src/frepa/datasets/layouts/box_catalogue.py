"""``dataset-id:folder`` of the catalogue, where the dataset has boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from frepa.datasets.catalogue.listing import CatalogueSource
from frepa.datasets.catalogue.records import table_facts
from frepa.datasets.catalogue.resolve import parse_source
from frepa.datasets.catalogue.steps.points_csv import SPHERES
from frepa.datasets.labelled import PARTS
from frepa.datasets.layouts.box_registry import FINDING, BoxedSource, Findings, Request, box_layout
from frepa.datasets.opening import open_source
from frepa.errors import InputError


@box_layout(
    "catalogue",
    expects="dataset-id:folder of a dataset with boxes, such as bccd:FOLDER or luna16:FOLDER",
    detect=lambda text, path: parse_source(text) is not None,
)
def read_catalogue(request: Request) -> BoxedSource:
    """Records without boxes column are not annotated; an empty list means that nothing was found in them."""
    source = open_source(request.text, dims=request.dims, canonical=False)
    assert isinstance(source, CatalogueSource)
    cells = source.table["boxes"].to_pylist()
    if not any(cells):
        raise InputError(
            f"{request.text}: no boxes are known of this dataset. Its classes or masks are learnt by frepa classify "
            "and frepa segment; boxes around the parts of masks are learnt from the folder of images and masks itself."
        )
    facts = table_facts(source.table)
    spheres = facts.get("box_unit") == SPHERES
    # A dataset of one kind of finding need not name it; among named ones a finding without name is one to leave out
    nameless = all(box["label"] is None for boxes in cells for box in boxes or ())
    return BoxedSource(
        source=source,
        findings=[None if boxes is None else _findings(boxes, spheres, nameless) for boxes in cells],
        splits=[PARTS.get(str(part).lower()) for part in source.table["split"].to_pylist()],
        classes=tuple(facts.get("classes", ())),
        origin="the dataset's own findings, as centre and diameter" if spheres else "the dataset's own boxes",
        spheres=spheres,
        folds=source.table["fold"].to_pylist(),
    )


def _findings(boxes: list[dict[str, Any]], spheres: bool, nameless: bool) -> Findings:
    values = np.array([box["coordinates"] for box in boxes], np.float64).reshape(-1, 4)
    # x, y, x, y to y, x, y, x
    values = values if spheres else values[:, [1, 0, 3, 2]]
    return Findings(values, tuple(FINDING if nameless else box["label"] for box in boxes))
