"""Files that an annotation names, found below a folder and opened as a source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from frepa.datasets.catalogue.patterns import stem_of
from frepa.errors import InputError
from frepa.images.files import FileSource
from frepa.images.finding import Found, find_files
from frepa.images.label_folders import label_folder
from frepa.images.readers.pixels import MAX_PIXELS
from frepa.images.readers.registry import reader_for
from frepa.images.scan import Skipped

# With more files than this share absent, the names are understood wrongly rather than files missing.
_MOST_ABSENT = 0.5


class Locator:
    """Finds files below ``root`` by the names that annotations give them."""

    def __init__(self, root: Path, dims: int) -> None:
        self.root, self._dims = root, dims

    def find(self, name: str, near: Sequence[Path] = ()) -> str | None:
        """Path relative to the root of the file (or folder of DICOM files) called ``name``, or None.

        A path is taken from the folders ``near`` and the root, in this order. A bare name that is in none of them is
        looked for in all sub-folders but those of masks, with or without its ending.

        Raises:
            InputError: several files have that name.
        """
        for folder in (*near, self.root):
            if name and (folder / name).exists():
                return Path(os.path.relpath(folder / name, self.root)).as_posix()
        bare = name.replace("\\", "/").rpartition("/")[2]
        found = self._below.get(bare.lower(), ())
        if not found and reader_for(bare) is not None:
            found = self._below.get(stem_of(bare).lower(), ())
        if len(found) > 1:
            raise InputError(
                f"{self.root}: {len(found)} files are called {bare} ({', '.join(found[:2])}), so it is not clear which "
                f"one is meant. Write paths relative to {self.root}."
            )
        return found[0] if found else None

    @cached_property
    def _below(self) -> dict[str, tuple[str, ...]]:
        """Name, and name without ending, in lower case -> relative paths of all images of that name."""
        table: dict[str, tuple[str, ...]] = {}
        for entry in find_files(str(self.root), self._dims)[1]:
            folder, _, file = entry.name.rpartition("/")
            if not label_folder(folder):
                for key in dict.fromkeys((file.lower(), stem_of(file).lower())):
                    table[key] = (*table.get(key, ()), entry.name)
        return table


def open_listed(
    root: Path,
    text: str,
    names: Sequence[str | None],
    shown: Sequence[str],
    *,
    dims: int,
    groups: Sequence[str] | None = None,
) -> tuple[FileSource, list[int]]:
    """Files as a source with axes as stored.

    Args:
        root: what names are relative to.
        text: what the user named.
        names: of each image; None where no file was found, which is then listed as left out.
        shown: what the annotation calls each image.
        dims: 2 or 3.
        groups: patient of each image, "" where unknown.

    Returns:
        The source, and for each of its records the place in ``names``.

    Raises:
        InputError: most files are not there, none can be read, or a file holds several images.
    """
    absent = [shown[i] for i, name in enumerate(names) if name is None]
    if absent and len(absent) > _MOST_ABSENT * len(names):
        raise InputError(
            f"{text}: {len(absent):,} of {len(names):,} images it names were not found below {root} "
            f"({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''})."
        )
    place = {name: i for i, name in enumerate(names) if name is not None}
    found = [Found(name, None, _bytes(root / name), row=i) for name, i in place.items()]
    source = FileSource(root, text, found, dims=dims, max_pixels=MAX_PIXELS[dims], canonical=False)
    other = [entry for entry in source.skipped if entry.kind == "other dims"]
    if not len(source) and other:
        raise InputError(f"{text}: {wrong_axes(dims)}")
    if not len(source):
        first = source.skipped[0]
        raise InputError(f"{text}: none of the images can be read. {first.path}: {first.reason}")
    source.add_skipped(Skipped(name, "file not found", "empty") for name in absent)
    if groups is not None and any(groups):
        source.attach({"group": pa.array(groups, pa.string()).dictionary_encode()})
    rows: list[int] = []
    for i in range(len(source)):
        file = source.file(i)
        row = place.get(file, place.get(file.rpartition("#")[0], -1))
        if rows and rows[-1] == row:
            raise _stack(text, file, dims)
        rows.append(row)
    return source, rows


def wrong_axes(dims: int) -> str:
    """What to do where images have another number of axes than the encoder takes."""
    if dims == 3:
        return "holds 2D images, and the encoder takes volumes. Give a 2D encoder."
    return (
        "holds volumes, and the encoder takes 2D images. To carry it to volumes put slices: before it, as in "
        '--encoder "slices:ENCODER"; or give a 3D encoder.'
    )


def _stack(text: str, file: str, dims: int) -> InputError:
    if dims == 2:
        return InputError(f"{text}: {file} holds many slices. It {wrong_axes(2)}")
    return InputError(f"{text}: {file} holds several volumes, and boxes belong to one. Save each as a file of its own.")


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.iterdir() if entry.is_file())
    return path.stat().st_size
