"""Finding the mask that belongs to an image, by file name alone, and saying how it was found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from frepa.errors import InputError
from frepa.images.readers.registry import reader_for
from frepa.names import shortened

# Words that say what a file is, not whose it is.
_ROLE_WORDS = frozenset(
    {"image", "images", "img", "imgs", "mask", "masks", "label", "labels", "seg", "segm", "segmentation", "gt", "fov"}
    | {"groundtruth", "truth", "annotation", "manual", "manual1", "1stho", "training", "test"}
)
_SHOWN = 3
# With more images than this share without a mask, the names are understood wrongly rather than masks missing.
_MOST_UNPAIRED = 0.5


class Pairs(NamedTuple):
    """Image to its counterpart, how they were found, in words, and the images and others that are left over."""

    of: dict[str, str]
    how: str
    images: list[str]
    others: list[str]

    def sentence(self, what: str) -> str:
        """How images and others were paired, with the first pairs to look at."""
        some = list(self.of.items())
        shown = "; ".join(f"{shortened(_base(image))} with {shortened(_base(other))}" for image, other in some[:_SHOWN])
        return f"Images and {what} are paired by {self.how}: {shown}{'; and so on' if len(some) > _SHOWN else ''}"


def stem(name: str | Path) -> str:
    """File name without its ending; ``.nii.gz`` is one ending, and ``.gz`` may follow any."""
    name = _base(str(name))
    reader = reader_for(name)
    lower = name.lower()
    for packed in ("", ".gz"):
        for suffix in sorted(reader.suffixes if reader else (), key=len, reverse=True):
            if lower.endswith(suffix + packed):
                return name[: -len(suffix + packed)]
    return Path(name).stem


def pair(images: Iterable[str], others: Iterable[str]) -> Pairs:
    """Each image's counterpart among ``others``.

    Tried in this order, each only where it is unambiguous for all files: equal names; equal names once nnU-Net's
    ``_0000`` is left out, or words of role (image, mask, label, manual1, segmentation ...); equal last numbers, and
    these only where nothing else pairs anything and no file is left over.
    """
    images, others = list(images), list(others)
    best = Pairs({}, "", images, others)
    for key, how in _RULES:
        named, wanted = _unique(others, key), _unique(images, key)
        if named is None or wanted is None:
            continue
        of = {image: named[name] for name, image in wanted.items() if name in named}
        used = set(of.values())
        found = Pairs(
            {image: of[image] for image in images if image in of},
            how,
            [image for image in images if image not in of],
            [other for other in others if other not in used],
        )
        # Numbers alone are believed only where nothing else helps and no file is left over.
        if key is _last_number and (best.of or found.images or found.others):
            break
        if len(of) > len(best.of):
            best = found
        if not best.images:
            break
    return best


def check_pairs(pairs: Pairs, where: str, what: str) -> None:
    """Raise InputError where files are left over on both sides, or most images are: names are understood wrongly then.

    Args:
        pairs: as found.
        where: the folder, for the message.
        what: masks, or fields of view.
    """
    if pairs.images and pairs.others:
        total = len(pairs.of) + len(pairs.images)
        found = f"{len(pairs.of)} of {total} by {pairs.how}" if pairs.of else "none"
        raise InputError(
            f"{where}: images and {what} do not pair off by their names ({found}). Left over are {len(pairs.images)} "
            f"images ({_some(pairs.images)}) and {len(pairs.others)} {what} ({_some(pairs.others)}). Give {what} the "
            "names of their images, take out what belongs to nothing, or write a manifest (CSV with the columns image "
            "and mask)."
        )
    if what == "masks" and len(pairs.images) > _MOST_UNPAIRED * (len(pairs.of) + len(pairs.images)) and pairs.of:
        raise InputError(
            f"{where}: {len(pairs.images)} of {len(pairs.of) + len(pairs.images)} images have no mask of a matching "
            f"name ({_some(pairs.images)}). Give masks the names of their images, or write a manifest (CSV with the "
            "columns image and mask)."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(_base, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _unique(names: list[str], key: Callable[[str], str]) -> Mapping[str, str] | None:
    table: dict[str, str] = {}
    for name in names:
        value = key(name)
        if value in table:
            return None
        if value:
            table[value] = name
    return table


def _whole(name: str) -> str:
    return stem(name).lower()


def _without_role(name: str) -> str:
    words = re.split(r"[_\-. ]+", stem(name).lower())
    return "_".join(word for word in words if word and word not in _ROLE_WORDS)


def _without_channel(name: str) -> str:
    return stem(name).lower().removesuffix("_0000")


def _last_number(name: str) -> str:
    numbers = re.findall(r"\d+", stem(name))
    return str(int(numbers[-1])) if numbers else ""


_RULES: list[tuple[Callable[[str], str], str]] = [
    (_whole, "equal names"),
    (_without_channel, "names that are equal but for nnU-Net's channel _0000"),
    (_without_role, "names that are equal but for words such as mask or seg"),
    (_last_number, "their numbers alone"),
]
