"""Names as a place shows them: anyone may choose them, and terminals, figures and tables interpret some bytes.

What is kept, compared and opened is always the name itself; these are for output alone.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

# Control, format (zero width, turned direction), surrogate, private and line or paragraph separators
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LONG, _END = 40, 12
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0"}


def shown(name: str | Path, *, keep: str = "") -> str:
    r"""A name for terminals, messages and pages: what would move the cursor or hide is written out.

    ``shown("a\nb")`` is ``r"a\nb"``; a byte that is not UTF-8 becomes ``\xff``, an escape ``\x1b``. Ordinary text, in
    any script, is as it was. What comes back can always be encoded as UTF-8.

    Args:
        name: text or path.
        keep: characters left alone, e.g. line ends of a message of several lines.
    """
    text = str(name)
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in keep else _written(one) for one in text)


def shortened(name: str) -> str:
    """A name with its middle left out where it is long."""
    return name if len(name) <= _LONG else f"{name[:_END]}...{name[-_END:]}"


def size_words(nbytes: float) -> str:
    """``"3.2 GB"``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def _written(one: str) -> str:
    if one in _SHORT:
        return _SHORT[one]
    if unicodedata.category(one) not in _HIDDEN:
        return one
    code = ord(one)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as Python keeps it in names
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cell(text: object) -> str:
    """A text for a cell of a CSV file: spreadsheets run what begins with =, +, - or @, so an apostrophe goes first.

    Numbers are left alone, and so is a sign that only a number follows.
    """
    if isinstance(text, int | float):
        return str(text)
    written = shown(str(text))
    if not written.startswith(_FORMULA) and not str(text).startswith(_FORMULA):
        return written
    try:
        float(written)
    except ValueError:
        return "'" + written
    return written
