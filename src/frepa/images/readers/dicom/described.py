"""What is known of a series before its pixels are read: how its slices lie, and what its headers say of them all.

Opening a source parses every header. What that told of whole series is kept, so that reading them need not do it again;
of files that are no longer what they were, and in a process that did not open the source, the headers are read anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from frepa.images.readers.dicom.header import DicomHeader, Plane, read_header
from frepa.images.readers.dicom.stacks import Stack, stacks
from frepa.images.scan import UnreadableScan
from frepa.images.volumes import file_key

_MOST = 2**14  # series that are kept, about 1 kB each


class _Known(NamedTuple):
    stamp: Hashable
    stack: Stack
    head: DicomHeader
    size: tuple[int, int, int]
    depth: int


_known: dict[bytes, _Known] = {}


def remember(paths: Sequence[str], stack: Stack, head: DicomHeader) -> None:
    """Keep what opening a source told of one series.

    Args:
        paths: its files in the order of its slices, one slice each.
        stack: of all of them.
        head: of the first.
    """
    key = _key(paths)
    if stack.affine is None or (len(_known) >= _MOST and key not in _known):
        return
    try:
        stamp = file_key(Path(paths[0]))
    except OSError:
        return
    # Where each plane lies is in the affine
    bare, size = replace(head, planes=()), stack.planes[0].size
    _known[key] = _Known(stamp, stack._replace(planes=()), bare, size, len(paths))


def described(paths: Sequence[str]) -> tuple[Stack, DicomHeader]:
    """The stack of a series given by its files in the order of its slices, and the header of the first.

    Raises:
        UnreadableScan: a file is not there any more, cannot be read, or lies elsewhere than it did.
    """
    try:
        stamp = file_key(Path(paths[0]))
    except FileNotFoundError:
        raise UnreadableScan(paths[0], "file not found", kind="empty") from None
    return _described(tuple(paths), stamp)


@lru_cache(maxsize=64)
def _described(paths: tuple[str, ...], stamp: Hashable) -> tuple[Stack, DicomHeader]:
    known = _known.get(_key(paths))
    if known is not None and known.stamp == stamp:
        planes = tuple(Plane(i, 0, None, None, None, known.size, (), (float(i),)) for i in range(known.depth))
        return known.stack._replace(planes=planes), known.head
    heads = [read_header(Path(path), i) for i, path in enumerate(paths)]
    found, _ = stacks([plane for head in heads for plane in head.planes], heads[0].step)
    if len(found[0].planes) != len(paths):
        raise UnreadableScan(paths[0], "the series is not what it was when the source was opened")
    return found[0], heads[0]


def _key(paths: Sequence[str]) -> bytes:
    return hashlib.blake2b("\0".join(paths).encode("utf-8", "surrogateescape"), digest_size=16).digest()
