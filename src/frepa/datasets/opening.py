"""The one door for images: whatever a user names as SOURCE, opened as a `Source`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from frepa.errors import InputError
from frepa.images.source import Source


@dataclass(frozen=True)
class Kind:
    """A kind of source, in a module of its own that is imported when it is needed.

    ``matches(text, path)`` says cheaply whether a SOURCE is one; ``opener``, as ``module:function``, names what gives
    the `Source`: ``open(text, dims=..., max_pixels=..., canonical=..., voi=...)``.
    """

    name: str
    matches: Callable[[str, Path], bool]
    opener: str


def _is_store(text: str, path: Path) -> bool:
    if not os.path.isdir(path):  # which Path.is_dir is not asked: it raises on names that are too long
        return False
    from frepa.images.store.layout import StoreFolder

    return StoreFolder(path).exists()


def _is_catalogue(text: str, path: Path) -> bool:
    if ":" not in text:
        return False
    from frepa.datasets.catalogue.resolve import parse_source

    return parse_source(text) is not None


#: Asked in this order; what is none of them is files. A new kind is a line here.
KINDS = [
    Kind("store", _is_store, "frepa.images.store.source:open_store"),
    Kind("catalogue", _is_catalogue, "frepa.datasets.catalogue.listing:open_catalogue"),
    Kind("files", lambda text, path: True, "frepa.images.files:open_files"),
]


def open_source(
    source: str | Path | Source,
    *,
    dims: int = 2,
    max_pixels: int | None = None,
    canonical: bool = True,
    voi: bool = False,
) -> Source:
    """Find every record of ``source``.

    Args:
        source: a folder (searched recursively), a glob pattern, one file (``file.npz#member`` too), or a manifest
            (.csv or .parquet with a ``path`` column, and ``label``, ``group``, ``modality``, ``dim``, ``unit``,
            ``slope``, ``intercept`` if wanted). An open `Source` is handed back. DICOM files are grouped into series.
        dims: 2 for images, 3 for volumes. Files that can only be the other are left out.
        max_pixels: positions above which a file is refused before memory is asked for; None takes 2^28 pixels in 2D
            and 2^30 voxels in 3D.
        canonical: turn volumes of files to one orientation (slices from feet to head, rows from front to back, columns
            from right to left), by exchanging and flipping axes; nothing is resampled. False: axes as stored.
        voi: apply the display window or table that DICOM files carry, except to CT: for X-ray images whose stored
            values are raw detector readings.

    Raises:
        InputError: nothing there, or nothing readable in it.
    """
    if isinstance(source, Source):
        if source.dims != dims:
            raise InputError(f"The source {source.location} was opened with dims {source.dims}, expected {dims}.")
        return source
    if dims not in (2, 3):
        raise InputError(f"dims is {dims}, expected 2 (images) or 3 (volumes).")
    text, path = str(source), Path(source)
    kind = next(kind for kind in KINDS if kind.matches(text, path))
    module, name = kind.opener.split(":")
    opened: Source = getattr(importlib.import_module(module), name)(
        text, dims=dims, max_pixels=max_pixels, canonical=canonical, voi=voi
    )
    return opened
