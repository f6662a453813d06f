"""Which reader takes which file. Readers are imported on first use, so that this table costs nothing to load.

To add a format: write ``readers/NAME.py`` with the two functions of `ReaderModule` and add one `register` call below.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

from frepa.images.guards import file_status
from frepa.images.readers.packed import is_packed, unpacked
from frepa.images.scan import Header, Scan


class ReaderModule(Protocol):
    """The functions a reader module has. Both raise ``UnreadableScan`` with a plain reason, and nothing else."""

    def header(self, path: Path, member: str | None, *, dims: int, max_pixels: int) -> Header:
        """Size and channels without decoding pixels."""
        ...

    def read(self, path: Path, member: str | None, row: int, *, dims: int, max_pixels: int, **options: Any) -> Scan:
        """Decode record ``row`` of ``member``. Refuses more than ``max_pixels`` positions before allocating them."""
        ...


@dataclass(frozen=True)
class Reader:
    """A row of the table.

    Attributes:
        name: short name for messages.
        suffixes: lower-case endings with the dot, e.g. ``(".nii", ".nii.gz")``; the longest match wins.
        module: dotted name of the module that has `ReaderModule`'s functions.
        dims: the dimensionalities it can yield, e.g. ``(2,)`` or ``(2, 3)``.
        many: a file may hold many records, so its header is read when a source is opened.
        options: further keyword arguments that its ``read`` takes.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    dims: tuple[int, ...]
    many: bool = False
    options: tuple[str, ...] = ()

    def load(self) -> ReaderModule:
        return _module(self.module)

    def header(self, path: Path, member: str | None, *, dims: int, max_pixels: int, canonical: bool = True) -> Header:
        """The module's ``header``; of a volume in canonical orientation unless ``canonical`` is False."""
        found = self.load().header(self._opened(path), member, dims=dims, max_pixels=max_pixels)
        if not canonical or found.affine is None:
            return found
        from frepa.images.orientation import reorient_header

        return reorient_header(found)

    def read(
        self,
        path: Path,
        member: str | None,
        row: int,
        *,
        dims: int,
        max_pixels: int,
        canonical: bool = True,
        **options: Any,
    ) -> Scan:
        """The module's ``read``; a volume in canonical orientation unless ``canonical`` is False.

        ``options`` that this reader does not know are left out: what is asked for once applies to the files it can.
        """
        known = {name: value for name, value in options.items() if name in self.options}
        scan = self.load().read(self._opened(path), member, row, dims=dims, max_pixels=max_pixels, **known)
        if not canonical or scan.affine is None:
            return scan
        from frepa.images.orientation import reorient

        return reorient(scan)

    def _opened(self, path: Path) -> Path:
        """``path`` where it is a file or folder that may be opened, or what it holds where that is packed."""
        file_status(path)
        name = path.name
        if is_packed(name) and not name.lower().endswith(tuple(s for s in self.suffixes if is_packed(s))):
            return unpacked(path)
        return path


@lru_cache(maxsize=64)
def _module(name: str) -> ReaderModule:
    return cast(ReaderModule, importlib.import_module(name))


READERS: list[Reader] = []
_BY_SUFFIX: dict[str, Reader] = {}


def register(
    name: str,
    suffixes: Sequence[str],
    module: str,
    *,
    dims: Sequence[int],
    many: bool = False,
    options: Sequence[str] = (),
) -> Reader:
    """Add a reader; a suffix that is already taken is a programming error."""
    reader = Reader(name, tuple(suffixes), module, tuple(dims), many, tuple(options))
    taken = [suffix for suffix in suffixes if suffix in _BY_SUFFIX]
    if taken:
        raise ValueError(f"{', '.join(taken)} already read by {_BY_SUFFIX[taken[0]].name}")
    READERS.append(reader)
    _BY_SUFFIX.update(dict.fromkeys(suffixes, reader))
    return reader


def reader_for(name: str) -> Reader | None:
    """The reader for a file name, judged by its ending alone, or None. A .gz may follow the ending of any format."""
    base = name[name.rfind("/") + 1 :].lower()
    dot = base.find(".", 1)
    while dot != -1:
        reader = _BY_SUFFIX.get(base[dot:])
        if reader is not None:
            return reader
        dot = base.find(".", dot + 1)
    return reader_for(base[:-3]) if is_packed(base) else None


def plain_endings(dims: int) -> dict[str, Reader]:
    """Endings, in lower and in upper case, that alone decide that a file is one image of ``dims`` axes."""
    return {
        written: reader
        for suffix, reader in _BY_SUFFIX.items()
        if not reader.many and dims in reader.dims
        if not any(other != suffix and other.endswith(suffix) for other in _BY_SUFFIX)
        for written in (suffix, suffix.upper())
    }


def reader_at(path: Path) -> Reader | None:
    """The reader for a file that exists, or for a folder as one DICOM series.

    Files that have no ending, or a number for one as DICOM files often do, are judged by their first bytes.
    """
    reader = reader_for(path.name)
    if reader is not None:
        return reader
    is_folder = path.is_dir()
    if not is_folder and not may_be_dicom(path.name):
        return None
    from frepa.images.readers.dicom.opening import is_dicom

    return _BY_SUFFIX[".dcm"] if is_folder or is_dicom(path) else None


def may_be_dicom(name: str) -> bool:
    """Whether a name without an ending that is known could be one of a DICOM file: it has no ending, or a number."""
    if name.upper().startswith("DICOMDIR"):
        return False
    return "." not in name or name.rpartition(".")[2].isdigit()


def readable_suffixes(dims: int) -> list[str]:
    """Every ending that can yield a scan of ``dims`` axes, sorted."""
    return sorted(suffix for suffix, reader in _BY_SUFFIX.items() if dims in reader.dims)


register(
    "raster",
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".pnm"),
    "frepa.images.readers.raster",
    dims=(2,),
)
register("tiff", (".tif", ".tiff"), "frepa.images.readers.tiff", dims=(2, 3), many=True)
register("numpy", (".npy", ".npz"), "frepa.images.readers.numpy_arrays", dims=(2, 3), many=True)
register(
    "nifti",
    (".nii", ".nii.gz", ".hdr", ".mgh", ".mgz"),
    "frepa.images.readers.nifti",
    dims=(2, 3),
    many=True,
)
register("simpleitk", (".mha", ".mhd", ".nrrd", ".nhdr"), "frepa.images.readers.simpleitk", dims=(2, 3), many=True)
register(
    "dicom",
    (".dcm", ".dicom", ".ima"),
    "frepa.images.readers.dicom.reader",
    dims=(2, 3),
    many=True,
    options=("voi",),
)
register("hdf5", (".h5", ".hdf5", ".hdf"), "frepa.images.readers.hdf5", dims=(2, 3), many=True)
register(
    "video",
    (".mp4", ".avi", ".mov", ".mkv", ".mpg", ".mpeg", ".wmv"),
    "frepa.images.readers.video",
    dims=(2,),
    many=True,
)
