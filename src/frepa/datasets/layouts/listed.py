"""Files that an annotation names, found below a folder and opened as a source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from frepa.datasets.catalogue.patterns import stem_of
from frepa.datasets.catalogue.records import sample
from frepa.datasets.layouts.registry import Listing
from frepa.errors import InputError
from frepa.images.files import FileSource, nothing_readable
from frepa.images.finding import named
from frepa.images.label_folders import label_folder
from frepa.images.readers.pixels import MAX_PIXELS
from frepa.images.readers.registry import reader_for

# With more files than this share absent, the names are understood wrongly rather than files missing.
_MOST_ABSENT = 0.5


class Locator:
    """Finds files below ``root`` by the names that annotations give them; ``names`` are the files there."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root, self._names = root, names

    def find(self, name: str, near: Sequence[Path] = ()) -> str | None:
        """Path relative to the root of the file (or folder of DICOM files) called ``name``, or None.

        A path is taken from the folders ``near`` and the root, in this order. A bare name that is in none of them is
        looked for in all sub-folders but those of masks, with or without its ending. Behind a ``#`` follows what of the
        file is meant: a member, a page, a single record.

        Raises:
            InputError: several files have that name.
        """
        for folder in (*near, self.root):
            if name and (folder / name).exists():
                return Path(os.path.relpath(folder / name, self.root)).as_posix()
        file, hash_sign, member = name.rpartition("#")
        if hash_sign:
            within = self.find(file, near)
            return None if within is None else f"{within}#{member}"
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
        for name in self._names:
            folder, _, file = name.rpartition("/")
            if not label_folder(folder):
                for key in dict.fromkeys((file.lower(), stem_of(file).lower())):
                    table[key] = (*table.get(key, ()), name)
        return table


def check_found(where: object, root: Path, absent: Sequence[str], total: int) -> None:
    """Raise InputError where most of the images an annotation names are not there: its names mean something else."""
    if absent and len(absent) > _MOST_ABSENT * total:
        raise InputError(
            f"{where}: {len(absent):,} of {total:,} images it names were not found below {root} ({sample(absent)})."
        )


def open_listed(
    root: Path, location: str, listing: Listing, *, dims: int, max_pixels: int | None, canonical: bool, voi: bool
) -> FileSource:
    """The files of a listing alone, in its order, with what it knows of them.

    Raises:
        InputError: none can be read.
    """
    names = list(next(iter(listing.columns.values())))
    found = [named(str(root), name) for name in names]
    limit = MAX_PIXELS[dims] if max_pixels is None else max_pixels
    source = FileSource(root, location, found, dims=dims, max_pixels=limit, canonical=canonical, voi=voi)
    if not len(source):
        raise nothing_readable(source)
    listing.annotate(source)
    return source
