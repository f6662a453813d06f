"""Layouts of sets with boxes, by name. A new one is a file here with ``@box_layout`` and a line in ``_MODULES``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frepa.errors import InputError
from frepa.images.source import Source

# Asked in this order whether a source is theirs: the particular ones before the general one.
#: Layout and the module it is in.
_MODULES = {"catalogue": "box_catalogue", "table": "table", "coco": "coco", "voc": "voc", "masks": "mask_boxes"}

#: Class of a finding where nothing names its class.
FINDING = "finding"

Progress = Callable[[Iterable, int], Iterable]


class Findings(NamedTuple):
    """What is marked in one image.

    Attributes:
        values: ``(n, 2 * dims)`` float64: corners as in `frepa.images.boxes`, in the axes of the file; or where the
            source has spheres ``(n, 4)``: x, y, z of the centre in RAS millimetres, and the diameter in millimetres.
        labels: class name of each; None where the finding counts neither as hit nor as miss.
        size: extent of the image that the boxes were drawn on, where the annotation says so.
    """

    values: np.ndarray
    labels: tuple[str | None, ...]
    size: tuple[int, ...] | None = None


@dataclass(frozen=True)
class BoxedSource:
    """A source and what is marked in each record.

    Attributes:
        source: the images, their axes as in the file (``canonical=False``).
        findings: of each record; None where nobody looked for findings, which is not the same as none being there.
        splits: train, val or test of each record, None where nothing says so.
        classes: names in the order the source gives; () where it gives none.
        origin: where the boxes come from, in words.
        spheres: findings are spheres in the patient, not boxes in the image.
        folds: the fold each record is tested in, None where nothing says so; () where the source knows of none.
    """

    source: Source
    findings: list[Findings | None]
    splits: list[str | None]
    classes: tuple[str, ...]
    origin: str
    spheres: bool = False
    folds: Sequence[int | None] = ()


@dataclass(frozen=True)
class Request:
    """What is to be opened: ``text`` as the user wrote it, also as a path, and the number of axes.

    Values of masks above ``mask_threshold`` are findings; None looks at the values, as ``frepa segment`` does.
    ``workers`` threads and ``progress`` (wraps an iteration of known length) are for layouts that must read pixels.
    """

    text: str
    dims: int
    mask_threshold: float | None = None
    workers: int = 2
    progress: Progress = lambda items, total: items

    @property
    def path(self) -> Path:
        return Path(self.text).expanduser()


@dataclass(frozen=True)
class BoxLayout:
    """A row of the table: ``detect(text, path) -> bool`` and ``read(request)``; ``expects`` is for messages."""

    name: str
    expects: str
    detect: Callable[[str, Path], bool]
    read: Callable[[Request], BoxedSource]


_LAYOUTS: dict[str, BoxLayout] = {}


def box_layout(
    name: str, *, expects: str, detect: Callable[[str, Path], bool]
) -> Callable[[Callable[[Request], BoxedSource]], Callable[[Request], BoxedSource]]:
    """Register ``read(request)`` as the layout ``name``."""

    def add(read: Callable[[Request], BoxedSource]) -> Callable[[Request], BoxedSource]:
        _LAYOUTS[name] = BoxLayout(name, expects, detect, read)
        return read

    return add


def box_layouts() -> list[BoxLayout]:
    """All layouts, in the order in which they are asked."""
    for module in _MODULES.values():
        importlib.import_module(f"frepa.datasets.layouts.{module}")
    return [_LAYOUTS[name] for name in _MODULES]


def open_boxed(request: Request) -> BoxedSource:
    """The images of a source and what is marked in them, read by the first layout that recognises it.

    Raises:
        InputError: nothing there, a layout that is not recognised, or images of another number of axes.
    """
    text, path = request.text, request.path
    for layout in box_layouts():
        if layout.detect(text, path):
            return layout.read(request)
    _refuse_store(text, path)
    shown = "\n".join(f"  {layout.name}: {layout.expects}" for layout in box_layouts())
    if not path.exists():
        raise InputError(f"{text}: not found. One of these is expected:\n{shown}")
    hint = _classes_hint(text, request.dims)
    raise InputError(f"{text}: no boxes were recognised here. {hint}One of these is expected:\n{shown}")


def _refuse_store(text: str, path: Path) -> None:
    from frepa.images.store.layout import StoreFolder

    if path.is_dir() and StoreFolder(path).exists():
        raise InputError(f"{text}: is a store, and stores hold no boxes. Give the folder it was packed from.")


def _classes_hint(text: str, dims: int) -> str:
    from frepa.datasets.labelled import open_labelled

    try:
        found = open_labelled(text, dims)
    except InputError:
        return ""
    return f"If {found.origin} are classes of whole images, frepa classify learns them. "
