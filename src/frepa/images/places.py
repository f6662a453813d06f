"""Where a record is, in one text: a file, ``file#member``, ``file#member[row]``, or ``file#[row]``."""

from __future__ import annotations

import re
from typing import NamedTuple

from frepa.images.readers.registry import reader_for

_ROW = re.compile(r"(.*)\[(\d+)\]", re.DOTALL)


class Place(NamedTuple):
    """File, member of it (None: the only one), and row of the member."""

    file: str
    member: str | None
    row: int


def split_place(text: str) -> Place:
    """``a.npz#train_images[17]`` gives ``("a.npz", "train_images", 17)``.

    A ``#`` that is part of a file's own name is left alone.
    """
    file, hash_sign, member = text.rpartition("#")
    if not hash_sign or "/" in member.rpartition(".")[0] or reader_for(file) is None:
        # A DICOM series is named by its folder, which has no ending
        return Place(file, member, 0) if hash_sign and member.startswith("series=") else Place(text, None, 0)
    name, row = split_member(member)
    return Place(file, name, row or 0)


def split_member(text: str) -> tuple[str | None, int | None]:
    """What follows the ``#``: the member, and the row where one is named. ``"images[17]"`` gives ``("images", 17)``."""
    numbered = _ROW.fullmatch(text)
    return (numbered[1] or None, int(numbered[2])) if numbered else (text, None)
