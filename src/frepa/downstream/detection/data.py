"""A set for detection: which images, what is marked in them, their parts or folds."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from frepa.datasets.annotations import Findings
from frepa.datasets.cases import Progress
from frepa.datasets.catalogue.records import sample
from frepa.datasets.mask_boxes import open_boxed
from frepa.datasets.stacks import BY_PATIENT, Dividing
from frepa.downstream.division import SHARES, DividedRecords, check_rule, divided_records, ordered_classes
from frepa.errors import InputError
from frepa.images import boxes
from frepa.images.boxes import IGNORED, Boxes
from frepa.images.hidden_names import Names
from frepa.images.intensity import Window, to_unit
from frepa.images.orientation import reorient, reorient_header
from frepa.images.scan import Header, Skipped, UnreadableScan

# Rounding in an annotation is no sign that it belongs to another image.
_ROUNDING = 1e-3


class DetectionImage(NamedTuple):
    """One image with its boxes, volumes in canonical orientation.

    Attributes:
        image: ``(C, *S)`` float32 in [0, 1].
        boxes: in pixels of ``image``.
        affine: ``(4, 4)``, voxel index of ``image`` to RAS millimetres; None for images and files without place.
        native: size and affine of the file itself: ``boxes.turned(corners, affine, native.affine)`` gives its axes.
    """

    image: np.ndarray
    boxes: Boxes
    affine: np.ndarray | None
    native: Header


@dataclass(frozen=True)
class DetectionData(DividedRecords):
    """Records with findings and parts; `check` fills ``boxes`` and ``shapes``.

    Attributes:
        spheres: findings are spheres in the patient, given by centre and diameter.
        findings: of each record, as its annotation gives them.
        boxes: of each record, canonical; () before `check`.
        shapes: ``S`` of each record, canonical; () before `check`.
        warnings: what was odd about the boxes, one sentence each.
    """

    spheres: bool
    findings: tuple[Findings, ...]
    boxes: tuple[Boxes, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    warnings: tuple[str, ...] = ()

    def chosen(self, rows: Sequence[int]) -> DetectionData:
        """These rows alone, in this order."""
        return replace(
            super().chosen(rows),
            findings=tuple(self.findings[row] for row in rows),
            boxes=tuple(self.boxes[row] for row in rows) if self.boxes else (),
            shapes=tuple(self.shapes[row] for row in rows) if self.shapes else (),
        )

    def under(self, names: Names) -> DetectionData:
        """The same with what stands for names of files."""
        found = super().under(names)
        return replace(found, warnings=tuple(map(names.said, self.warnings)))

    def name(self, row: int) -> str:
        """Name of the record within the source."""
        return self.source.name(int(self.records[row]))

    def read(self, row: int, window: Window = None) -> DetectionImage:
        """Decode a record and place its boxes.

        Args:
            row: of this table.
            window: as in `frepa.images.intensity.to_unit`.

        Raises:
            UnreadableScan: the file is broken.
            InputError: the boxes cannot belong to it; see `check`.
        """
        scan = self.source.read(int(self.records[row]))
        native = Header(scan.array.shape[0], scan.size, spacing=scan.spacing, affine=scan.affine)
        turned = reorient(scan)
        found = self._place(row, native).boxes
        return DetectionImage(to_unit(turned, window=window), found, turned.affine, native)

    def _place(self, row: int, native: Header) -> _Placed:
        place = {name: k for k, name in enumerate(self.classes)}
        classes = np.array([IGNORED if name is None else place[name] for name in self.findings[row].labels], np.int64)
        return _placed(self.findings[row], classes, native, spheres=self.spheres, name=self.name(row))


class Reading:
    """Reads the rows of a set; headers were looked at before, pixels are met here first.

    Attributes:
        data: the set.
        unreadable: what could not be read, by row.
    """

    def __init__(self, data: DetectionData, window: Window = None) -> None:
        self.data = data
        self.unreadable: dict[int, Skipped] = {}
        self._window = window

    def __call__(self, row: int) -> DetectionImage | None:
        """The image and its boxes; None where the file is broken, which is noted."""
        try:
            return self.data.read(row, self._window)
        except UnreadableScan as error:
            self.unreadable[row] = error.skipped(self.data.name(row))
            return None


class _Placed(NamedTuple):
    """Canonical boxes and extent of an image; how many findings had no area, came twice, or were clipped."""

    boxes: Boxes
    size: tuple[int, ...]
    flat: int
    twice: int
    clipped: int


def open_boxes(
    text: str,
    *,
    dims: int,
    seed: int = 0,
    how: Dividing = BY_PATIENT,
    mask_threshold: float | None = None,
    workers: int = 2,
    progress: Progress = lambda items, total: items,
) -> DetectionData:
    """The images of a source and what is marked in them, divided. No image is decoded; masks are.

    ``official`` keeps the source's parts and completes them; where it has none, and with ``random``, groups are divided
    7:1:2 (Frepa section 4).

    Args:
        text: any SOURCE with boxes, or with masks: a box is laid around each connected component then.
        dims: 2 or 3.
        seed: another seed gives another division.
        how: the rule; of a set that is only tested on images of no part are tested.
        mask_threshold: where boxes come from masks, values above it are findings; None looks at the values.
        workers: threads, where boxes come from masks.
        progress: wraps the iteration over masks, for a progress bar.

    Raises:
        InputError: nothing is marked, or too few groups to be divided.
    """
    check_rule(how.rule)
    found = open_boxed(text, dims, how=how, threshold=mask_threshold, workers=workers, progress=progress)
    origin = found.origin("boxes")
    kept = [i for i, marked in enumerate(found.findings) if marked is not None]
    findings = tuple(marked for marked in found.findings if marked is not None)
    classes = ordered_classes(
        found.classes, {name for marked in findings for name in marked.labels if name is not None}
    )
    if not classes:
        raise InputError(f"{text}: {len(kept):,} images and no box in any of them. Boxes were taken from {origin}.")
    return DetectionData(
        **divided_records(text, found, kept, how, seed),
        classes=classes,
        targets=presence(classes, findings),
        origin=origin,
        spheres=found.spheres,
        findings=findings,
        warnings=tuple(found.source.warnings),
    )


def presence(classes: Sequence[str], findings: Sequence[Findings]) -> np.ndarray:
    """Whether a finding of each class is marked in each image, ``(n, K)`` uint8."""
    return np.array([[name in marked.labels for name in classes] for marked in findings], np.uint8)


def check(data: DetectionData, *, workers: int = 2, progress: Progress = lambda items, total: items) -> DetectionData:
    """Look at every image's header: ``boxes`` and ``shapes`` are filled, unreadable images left out.

    Boxes without area are dropped, those that come twice are kept once, and those that reach out of their image are
    clipped, spheres excepted: the box of a sphere stays the sphere's. Each is counted in ``warnings``.

    Args:
        data: from `open_boxes`.
        workers: threads.
        progress: wraps the iteration over images, for a progress bar.

    Raises:
        InputError: a box lies outside its image, was drawn on an image of another size, or cannot be placed.
    """

    def look(row: int) -> _Placed | Skipped | InputError:
        try:
            return data._place(row, data.source.header(int(data.records[row])))
        except UnreadableScan as error:
            return error.skipped(data.name(row))
        except InputError as error:
            return error

    with ThreadPoolExecutor(max(1, workers)) as pool:
        total = len(data.records)
        looked = list(progress(pool.map(look, range(total)), total))
    _raise_together(data, {row: item for row, item in enumerate(looked) if isinstance(item, InputError)})
    unreadable = {int(data.records[row]): item for row, item in enumerate(looked) if isinstance(item, Skipped)}
    placed = [item for item in looked if isinstance(item, _Placed)]
    if not placed:
        first = next(iter(unreadable.values()))
        raise InputError(f"{data.source.location}: none of the images can be read. {first.path}: {first.reason}")
    left = data.without(unreadable)
    classes = np.arange(len(data.classes))
    return replace(
        left,
        boxes=tuple(item.boxes for item in placed),
        shapes=tuple(item.size for item in placed),
        targets=np.stack([np.isin(classes, item.boxes.classes) for item in placed]).astype(np.uint8),
        warnings=(*data.warnings, *_sentences(left, placed)),
    )


def _raise_together(data: DetectionData, wrong: dict[int, InputError]) -> None:
    """One error for all images whose boxes cannot be placed, so that they can be mended at once."""
    if not wrong:
        return
    first, *others = wrong
    more = ""
    if others:
        more = f" {len(others):,} more images have such boxes: {sample([data.name(row) for row in others])}."
    raise InputError(f"{data.source.location}: {wrong[first]}{more}")


def _sentences(data: DetectionData, placed: Sequence[_Placed]) -> list[str]:
    words = {
        "flat": "boxes have no area and are dropped",
        "twice": "boxes are there twice and are kept once",
        "clipped": "boxes reach out of their image and are clipped",
    }
    sentences = []
    for what, text in words.items():
        counts = [getattr(item, what) for item in placed]
        if any(counts):
            row = int(np.flatnonzero(counts)[0])
            sentences.append(
                f"{sum(counts):,} {text}, in {np.count_nonzero(counts):,} images such as {data.name(row)}."
            )
    return sentences


def _placed(findings: Findings, classes: np.ndarray, native: Header, *, spheres: bool, name: str) -> _Placed:
    """Boxes in the canonical axes of their image."""
    size = tuple(native.size)
    if findings.size is not None and tuple(findings.size) != size:
        raise InputError(
            f"{name}: is {_shown(size)} pixels (height x width), and its boxes were drawn on {_shown(findings.size)}. "
            "Use the images that were annotated, or correct the size in the annotation."
        )
    turned = reorient_header(native)
    if spheres:
        if turned.affine is None:
            raise InputError(
                f"{name}: its findings are given in millimetres, and the file does not say where it lies in the "
                "patient. Give boxes in voxels, or files with a position."
            )
        corners = boxes.around(findings.values[:, :3], findings.values[:, 3], turned.affine)
    elif turned.affine is not None and native.affine is not None and len(size) == 3:
        corners = boxes.turned(findings.values, native.affine, turned.affine)
    else:
        corners = findings.values
    flat = (boxes.extents(corners) <= 0).any(axis=1)
    corners, classes, values = corners[~flat], classes[~flat], findings.values[~flat]
    _, first = np.unique(np.column_stack([classes, corners]), axis=0, return_index=True)
    first.sort()
    twice = len(corners) - len(first)
    corners, classes, values = corners[first], classes[first], values[first]
    inside = boxes.clipped(corners, turned.size)
    outside = (boxes.extents(inside) <= 0).any(axis=1)
    for k in np.flatnonzero(outside & (classes != IGNORED)):
        shown = ", ".join(f"{number:g}" for number in values[k])
        what = "the finding at x, y, z (RAS mm), diameter" if spheres else "the box (lower corner, upper corner)"
        raise InputError(
            f"{name}: {what} {shown} lies outside the image, which has {_shown(size)} pixels. Correct it or take it "
            "out; or does the annotation belong to another image?"
        )
    corners, classes, inside = corners[~outside], classes[~outside], inside[~outside]
    if spheres:
        return _Placed(Boxes(corners, classes), tuple(turned.size), int(flat.sum()), twice, 0)
    clipped = int((np.abs(inside - corners).max(axis=1, initial=0.0) > _ROUNDING).sum())
    return _Placed(Boxes(inside, classes), tuple(turned.size), int(flat.sum()), twice, clipped)


def _shown(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size)


def check_classes(data: DetectionData, where: str = "") -> list[str]:
    """Raise InputError where a class cannot be learnt; sentences about classes that cannot be tested otherwise.

    Args:
        data: from `check`, or one of its folds.
        where: which fold, for messages.
    """
    counts = {part: data.targets[data.rows(part)].sum(0) for part in SHARES}
    remedy = "Add images of it, divide otherwise (--split random, another --seed), or take the class out."
    for part in SHARES:
        if not len(data.rows(part)):
            raise InputError(f"{data.source.location}{where}: no readable image is left for the part {part}.")
    for k, name in enumerate(data.classes):
        elsewhere = counts["val"][k] + counts["test"][k]
        if not counts["train"][k]:
            raise InputError(
                f"{data.source.location}{where}: no image of the training part shows a finding of the class {name!r}, "
                f"{elsewhere} outside it do. {remedy}"
            )
    sentences = []
    for part, consequence in (("val", "its threshold is chosen blindly"), ("test", "nothing can be said of it")):
        absent = [name for k, name in enumerate(data.classes) if not counts[part][k]]
        if absent:
            sentences.append(f"No {part} image{where} shows a finding of {', '.join(absent)}: {consequence}.")
    return sentences
