"""Finding the mask that belongs to an image, by file name alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from frepa.images.readers.registry import reader_for

# Words that say what a file is, not whose it is.
_ROLE_WORDS = frozenset(
    {"image", "images", "img", "imgs", "mask", "masks", "label", "labels", "seg", "segm", "segmentation", "gt", "fov"}
    | {"groundtruth", "truth", "annotation", "manual", "manual1", "1stho", "training", "test"}
)


def files_in(folder: Path, dims: int, *, deep: bool = False) -> list[Path]:
    """Files that a reader of ``dims`` axes takes, sorted by name; hidden files are left out."""
    found = folder.rglob("*") if deep else folder.iterdir()
    kept = []
    for path in found:
        reader = reader_for(path.name)
        if reader is not None and dims in reader.dims and not path.name.startswith(".") and path.is_file():
            kept.append(path)
    return sorted(kept)


def subfolder(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of ``names`` that is a folder in ``folder``, whatever its capitals."""
    if not folder.is_dir():
        return None
    there = {item.name.lower(): item for item in folder.iterdir() if item.is_dir()}
    return next((there[name] for name in names if name in there), None)


def stem(path: Path) -> str:
    """File name without its ending; ``.nii.gz`` is one ending."""
    name = path.name
    reader = reader_for(name)
    for suffix in sorted(reader.suffixes if reader else (), key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def pair(images: Iterable[Path], others: Iterable[Path]) -> dict[Path, Path]:
    """Each image's counterpart among ``others``; images without one are absent.

    Tried in this order, each only where it is unambiguous for all files: equal names; equal names once words of role
    (image, mask, label, manual1, segmentation ...) are left out; equal last numbers.
    """
    images, others = list(images), list(others)
    best: dict[Path, Path] = {}
    for key in (_whole, _without_role, _last_number):
        # Numbers alone are believed only where nothing else helps and no file is left over.
        if key is _last_number and (best or len(images) != len(others)):
            break
        named, wanted = _unique(others, key), _unique(images, key)
        if named is None or wanted is None:
            continue
        pairs = {image: named[name] for name, image in wanted.items() if name in named}
        if len(pairs) > len(best):
            best = pairs
        if len(best) == len(images):
            break
    return best


def _unique(paths: list[Path], key: Callable[[Path], str]) -> Mapping[str, Path] | None:
    table: dict[str, Path] = {}
    for path in paths:
        name = key(path)
        if name in table:
            return None
        if name:
            table[name] = path
    return table


def _whole(path: Path) -> str:
    return stem(path).lower()


def _without_role(path: Path) -> str:
    return "_".join(word for word in re.split(r"[_\-. ]+", stem(path).lower()) if word and word not in _ROLE_WORDS)


def _last_number(path: Path) -> str:
    numbers = re.findall(r"\d+", stem(path))
    return str(int(numbers[-1])) if numbers else ""
