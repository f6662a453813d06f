"""``NAME=PLACE``: names of one's own for what is compared."""

from __future__ import annotations

import os
import re

# A specification has a colon or a comma before its first "=".
_NAMED = re.compile(r"([^:,=/\\@]+)=(.+)", re.DOTALL)


def named(text: str) -> tuple[str | None, str]:
    """``NAME=ENCODER`` as its name and the encoder; no name where the text is a file or begins with a scheme."""
    match = _NAMED.fullmatch(text)
    if match is None or os.path.exists(text):
        return None, text
    return match[1].strip() or None, match[2]
