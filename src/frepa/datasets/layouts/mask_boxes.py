"""Images with masks, as ``frepa segment`` takes them: a box around every connected component of every class."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from frepa.datasets.annotations import Case, SegmentationSet
from frepa.datasets.layouts.box_registry import FINDING, BoxedSource, Findings, Request, box_layout
from frepa.datasets.layouts.listed import open_listed
from frepa.datasets.layouts.registry import find_layout, layouts
from frepa.datasets.reading import read_header, read_mask
from frepa.downstream.segmentation.data import check_sets, list_cases
from frepa.errors import InputError
from frepa.images import boxes
from frepa.images.orientation import reorient_header


def _detect(text: str, path: Path) -> bool:
    if text.partition(":")[0].lower().replace("-", "_") in layouts():
        return True
    try:
        find_layout(text)
    except InputError:
        return False
    return True


@box_layout(
    "masks",
    expects="images and masks as frepa segment takes them; a box is laid around each connected component of a mask",
    detect=_detect,
)
def read_masks(request: Request) -> BoxedSource:
    """Every mask is read, as ``frepa segment`` reads it; its values decide the classes.

    Raises:
        InputError: masks that are damaged, do not fit their images, or hold no classes.
    """
    dims = request.dims
    layout, path, listing = list_cases(request.text, dims)
    group = SegmentationSet(path.name, layout.name, tuple(listing.cases), listing.binary)
    data = check_sets(
        [group], dims=dims, threshold=request.mask_threshold, workers=request.workers, progress=request.progress
    )
    labels = data.labels[group.name]
    names = [FINDING] if labels.threshold is not None else [str(value) for value in labels.values[1:]]

    def look(case: Case) -> Findings:
        mask = read_mask(case.mask, dims).array[0]
        corners, values = boxes.of_components(labels.to_classes(mask, str(case.mask)))
        native = read_header(case.image, dims, canonical=False)
        turned = reorient_header(native)
        if turned.affine is not None and native.affine is not None:
            corners = boxes.turned(corners, turned.affine, native.affine)
        return Findings(corners, tuple(names[value - 1] for value in values))

    with ThreadPoolExecutor(max(1, request.workers)) as pool:
        total = len(listing.cases)
        findings = list(request.progress(pool.map(look, listing.cases), total))
    root = path if path.is_dir() else path.parent
    files = [Path(os.path.relpath(case.image, root)).as_posix() for case in listing.cases]
    groups = [case.group or "" for case in listing.cases]
    source, places = open_listed(root, request.text, files, files, dims=dims, groups=groups)
    if listing.unpaired:
        source.warnings.append(f"{len(listing.unpaired):,} images have no mask and are left out.")
    return BoxedSource(
        source=source,
        findings=[findings[place] for place in places],
        splits=[listing.cases[place].split for place in places],
        classes=tuple(names),
        origin=f"masks, a box around each connected component ({layout.name} set; {labels.describe()})",
    )
