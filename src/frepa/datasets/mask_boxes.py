"""Boxes of a source: its own, or a box around every connected component of every class of its masks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from frepa.datasets.annotations import CORNERS, FINDING, Annotations, extended
from frepa.datasets.cases import Case, Progress, cases_of, check_masks
from frepa.datasets.opening import open_annotated
from frepa.datasets.reading import header_of, mask_of
from frepa.datasets.stacks import BY_PATIENT, Dividing
from frepa.images import boxes


def open_boxed(
    text: str,
    dims: int,
    *,
    how: Dividing = BY_PATIENT,
    threshold: float | None = None,
    workers: int = 2,
    progress: Progress = lambda items, total: items,
) -> Annotations:
    """The images of a source, axes as stored, and what is marked in them.

    Args:
        text: any SOURCE with boxes or masks.
        dims: 2 or 3.
        how: as in `frepa.datasets.opening.open_annotated`.
        threshold: where boxes come from masks, values above it are findings; None looks at the values.
        workers: threads, where boxes come from masks.
        progress: wraps the iteration over masks, for a progress bar.

    Raises:
        InputError: neither boxes nor masks, or masks that are damaged, do not fit their images, or hold no classes.
    """
    known = open_annotated(text, dims, "boxes", instead="mask", canonical=False, how=how)
    if known.has("boxes"):
        return known
    group = cases_of(known, text)
    labels = check_masks([group], dims=dims, threshold=threshold, workers=workers, progress=progress).labels[text]
    names = list(labels.names) or [FINDING if labels.threshold is not None else str(n) for n in labels.values]

    def look(case: Case) -> list[dict[str, Any]]:
        mask = mask_of(case, dims).array[0]
        corners, values = boxes.of_components(labels.to_classes(mask, str(case.mask)))
        native, turned = case.source.header(case.record), header_of(case.source, case.record)
        if turned.affine is not None and native.affine is not None:
            corners = boxes.turned(corners, turned.affine, native.affine)
        return [{"label": names[value], "coordinates": corner} for value, corner in zip(values, corners.tolist())]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(progress(pool.map(look, group.cases), len(group.cases)))
    column: list[Any] = [None] * len(known.source)
    for case, its in zip(group.cases, found):
        column[case.record] = its
    origin = f"masks, a box around each connected component ({group.layout} set; {labels.describe()})"
    facts = {"classes": names[1:], "box_unit": CORNERS, "origins": {"boxes": origin}}
    known.source.annotations = extended(known.table, {"boxes": column}, facts)
    return Annotations(known.source, known.source.annotations)
