"""What lies beside the images of a decathlon or nnU-Net set: ``dataset.json`` and ``splits_final.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from frepa.errors import InputError


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        InputError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}).") from None


def label_names(about: Any) -> dict[str, str]:
    """Mask value -> class name; the decathlon writes it so, nnU-Net's second version the other way round."""
    labels = (about.get("labels") if isinstance(about, dict) else None) or {}
    if not isinstance(labels, dict):
        return {}
    if not all(str(key).lstrip("-").isdigit() for key in labels):
        labels = {value: name for name, value in labels.items() if not isinstance(value, list)}
    return {str(value): str(name) for value, name in labels.items()}


def folds_of(folder: Path) -> dict[str, int]:
    """Case name -> the fold it is tested in, from 0 on; {} where there is no ``splits_final.json``.

    Raises:
        InputError: the file is not nnU-Net's.
    """
    path = folder / "splits_final.json"
    if not path.is_file():
        return {}
    folds: dict[str, int] = {}
    try:
        for number, fold in enumerate(read_json(path)):
            folds |= {str(name): number for name in fold["val"]}
    except (TypeError, KeyError):
        raise InputError(f"{path}: expected a list of folds, each with the names of its cases under 'val'.") from None
    return folds
