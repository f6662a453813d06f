"""DICOM headers without what nobody asks for, so that pydicom need not parse it: private groups, nested sequences.

Most of the time that a small file takes went there. Nothing is decoded here: elements are passed over by their lengths,
and what is plain and wanted goes on to pydicom as it is. Where anything is not as expected (another encoding, a length
that leads out of the file, an odd value representation) the answer is None, and pydicom has the file as it lies.

Source: DICOM PS3.5 section 7 (data elements, sequences and items) and PS3.10 section 7.1 (the meta group).
"""

from __future__ import annotations

from collections.abc import Set
from struct import Struct

_START = 132  # of the first element: a preamble of 128 bytes and "DICM"
_PIXELS, _ITEM, _ITEM_END, _SEQUENCE_END = 0x7FE00000, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_CHARACTERS = 0x00080005
_SHORT = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()  # with a length of two bytes
)
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_EXPLICIT, _IMPLICIT, _LENGTH = Struct("<HH2sH").unpack_from, Struct("<HHL").unpack_from, Struct("<L").unpack_from
_IMPLICIT_SYNTAX = b"1.2.840.10008.1.2"
_OTHERS = {b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"}  # big-endian, deflated
_DEEPEST = 32  # sequences in sequences


class _Odd(Exception):
    """Something that is left to pydicom."""


def shortened(start: bytes, wanted: Set[int], *, whole: bool, from_group: int = 0x7FE0) -> bytes | None:
    """The file without elements that are not wanted; what follows the header stays as it is.

    Args:
        start: of the file, at least all before its pixels.
        wanted: tags of elements to keep.
        whole: ``start`` is all of the file, so that one without pixels can be shortened as well.
        from_group: elements of this group and those behind it are kept whatever they are.

    Returns:
        None where the file is better read as it is.
    """
    if start[128:_START] != b"DICM":
        return None
    try:
        at, syntax = _meta(start)
        if syntax is None or syntax in _OTHERS:
            return None
        implicit = syntax == _IMPLICIT_SYNTAX
        if implicit and start[at + 4 : at + 6].isalpha():  # said to be implicit, and is not
            return None
        begin, kept, first, limit = at, [start[:at]], at, from_group << 16
        while at < len(start):
            tag, value, length, sequence = _element(start, at, implicit)
            if tag >= limit:
                break
            if tag >> 16 in (0, 0xFFFE):
                return None
            end = value + length if length != _UNDEFINED else _behind(start, value, implicit, sequence, 0)
            if end > len(start):
                return None
            if at != begin and tag not in wanted and tag != _CHARACTERS:  # by the first one pydicom tells the encoding
                kept.append(start[first:at])
                first = end
            at = end
        else:
            if not whole:
                return None
        kept.append(start[first:])
        return b"".join(kept)
    except _Odd:
        return None


def _meta(data: bytes) -> tuple[int, bytes | None]:
    """Where the meta group ends, and the transfer syntax in it."""
    at, syntax = _START, None
    while data[at : at + 2] == b"\2\0":
        tag, value, length, _ = _element(data, at, False)
        if length == _UNDEFINED:
            raise _Odd
        if tag == 0x00020010:
            syntax = data[value : value + length].rstrip(b"\0 ")
        at = value + length
    return at, syntax


def _element(data: bytes, at: int, implicit: bool) -> tuple[int, int, int, bool]:
    """Tag, place of the value, its length, and whether it is said to be a sequence."""
    if at + 12 > len(data):
        raise _Odd
    if implicit:
        group, number, length = _IMPLICIT(data, at)
        return group << 16 | number, at + 8, length, True
    group, number, kind, length = _EXPLICIT(data, at)
    if kind in _SHORT:
        return group << 16 | number, at + 8, length, False
    if kind in _LONG:
        return group << 16 | number, at + 12, _LENGTH(data, at + 8)[0], kind == b"SQ"
    raise _Odd


def _behind(data: bytes, at: int, implicit: bool, sequence: bool, depth: int) -> int:
    """Where a sequence of undefined length ends whose first item is at ``at``."""
    if not sequence or depth > _DEEPEST:
        raise _Odd
    while True:
        tag, length = _item(data, at)
        at += 8
        if tag == _SEQUENCE_END and length == 0:
            return at
        if tag != _ITEM:
            raise _Odd
        end = None if length == _UNDEFINED else at + length
        while end is None or at < end:
            if at + 8 <= len(data) and _item(data, at)[0] == _ITEM_END:
                if end is not None:
                    raise _Odd
                at += 8
                break
            _, value, length, nested = _element(data, at, implicit)
            at = value + length if length != _UNDEFINED else _behind(data, value, implicit, nested, depth + 1)
        if end is not None and at != end:
            raise _Odd


def _item(data: bytes, at: int) -> tuple[int, int]:
    if at + 8 > len(data):
        raise _Odd
    group, number, length = _IMPLICIT(data, at)
    return group << 16 | number, length
