"""Options in YAML files, as ``--config`` takes them. What such a file holds is never shown: it may be another one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from frepa.errors import InputError
from frepa.names import shown

_LARGEST = 2**20
_MOST_VALUES = 5000


def read_files(files: Sequence[str]) -> dict[str, Any]:
    """The options in YAML files.

    Raises:
        InputError: not there, or no mapping of options in YAML. Nothing of the file is shown: it may be another one.
    """
    import yaml

    options: dict[str, Any] = {}
    for file in files:
        try:
            if os.path.exists(file) and not os.path.isfile(file):
                raise OSError(0, "it is not a file")
            with open(file, encoding="utf-8") as opened:
                content = yaml.safe_load(opened.read(_LARGEST))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not YAML"
            name = file if len(file) <= 200 else f"{file[:200]}..."
            raise InputError(
                f"--config {shown(name)}: cannot be read ({reason}). Give a file such as RUN/config.yaml."
            ) from None
        if (
            not isinstance(content, dict)
            or not all(isinstance(key, str) for key in content)
            or not _few(content, [_MOST_VALUES])
        ):
            raise InputError(f"--config {file}: this file holds no options, one per line as in RUN/config.yaml.")
        options |= content
    return options


def entry(name: str, number: int) -> str:
    """What an entry of a file is called in a message: by its name only where that looks like the name of an option."""
    return name if re.fullmatch(r"[a-z][a-z0-9_.]{0,40}", name) else f"entry {number} of the file"


def _few(value: Any, left: list[int], depth: int = 4) -> bool:
    """Whether a value from YAML has few parts: an alias of an alias stands for as many as one likes."""
    left[0] -= 1
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return left[0] > 0 and (not inside or depth > 0) and all(_few(item, left, depth - 1) for item in inside)


def flat(options: Mapping[str, Any], chosen: Iterable[str]) -> dict[str, Any]:
    """``method: {name: mae, mask_ratio: 0.5}`` as ``method`` and ``method.mask_ratio``."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = key.replace("-", "_")
        if name in chosen and isinstance(value, dict):
            inside = {f"{name}.{str(field).replace('-', '_')}": v for field, v in value.items() if field != "name"}
            found |= ({name: value["name"]} if "name" in value else {}) | inside
        else:
            found[name] = value
    return found


def name_in(value: Any) -> str | None:
    """The name in ``mae`` or ``{name: mae, ...}``; None where there is none."""
    found = value.get("name") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def as_word(value: Any) -> str:
    """A value as it would be typed."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
