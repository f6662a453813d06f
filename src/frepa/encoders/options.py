"""How options are written behind the name of an encoder: after commas, which no shell touches.

``convnext_atto,output_stride=16,guide=none``; a list is written ``0.5/0.5/0.5``.
"""

from __future__ import annotations

import json
import re
from typing import Any

from frepa.errors import InputError

_OPTION = r",[A-Za-z_]\w*=(?:\[[^\]]*\]|[^,]*)"
_WITH_OPTIONS = re.compile(rf"(?P<name>.*?)(?P<options>(?:{_OPTION})*)", re.DOTALL)
_OLD_OPTIONS = re.compile(r"\?[A-Za-z_]\w*=")


def split_options(text: str) -> tuple[str, dict[str, Any]]:
    """``"convnext_atto,output_stride=8"`` as ``("convnext_atto", {"output_stride": 8})``; a list is ``0.5/0.5/0.5``.

    Raises:
        InputError: options in the spelling of earlier versions, after a question mark.
    """
    name, options = split_name(text)
    pairs = (part[1:].partition("=") for part in re.findall(_OPTION, options))
    return name, {key: _value(value) for key, _, value in pairs}


def split_name(text: str) -> tuple[str, str]:
    """A text without its options, and these as they stand: ``"runs/a,width=64"`` is ``("runs/a", ",width=64")``."""
    if _OLD_OPTIONS.search(text):
        raise InputError(
            f"{text}: options follow commas, which no shell touches: {text.replace('?', ',').replace('&', ',')}"
        )
    match = _WITH_OPTIONS.fullmatch(text)
    assert match is not None  # the name may be anything
    return match["name"], match["options"]


def join_options(name: str, options: dict[str, Any]) -> str:
    """The inverse of ``split_options``."""
    return name + "".join(f",{key}={_written(value)}" for key, value in options.items())


def _value(text: str) -> Any:
    """Numbers, true/false and lists of numbers as such, anything else as text."""
    try:
        if "/" in text:
            return [float(part) for part in text.split("/")]
        return json.loads(text)
    except ValueError:
        return text


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else json.dumps(value)
