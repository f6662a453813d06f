"""The folder of a downstream run: when it may be written, and small files written whole."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from frepa.errors import InputError

CONFIG = "config.yaml"
_VERSIONS = ("frepa", "torch", "timm", "monai", "numpy")


def check_out(out: str | Path, *, overwrite: bool) -> Path:
    """The folder ``out`` names, after checking that it is free or may be replaced. Nothing is changed.

    Raises:
        InputError: it is a file, holds something else than a run, or holds a run and ``overwrite`` is not given.
    """
    root = Path(out)
    if root.exists() and not root.is_dir():
        raise InputError(f"--out {root}: this is a file. Name a folder.")
    if root.is_dir() and any(root.iterdir()):
        if not (root / CONFIG).is_file():
            raise InputError(
                f"--out {root}: the folder holds files but no {CONFIG}, so it is not a run of this program and nothing "
                "in it will be touched. Name another folder."
            )
        if not overwrite:
            raise InputError(
                f"--out {root}: a run is there already. Add --overwrite to replace it, or name another folder."
            )
    return root


def start_run(root: Path, config: Mapping[str, Any]) -> None:
    """Empty the folder and write ``config.yaml``; call :func:`check_out` first."""
    if root.is_dir():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    write_text(root / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def versions() -> dict[str, str]:
    """Of this program, of what its results depend on, and of Python."""
    return {name: version(name) for name in _VERSIONS} | {"python": platform.python_version()}


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: readers never see half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, values: Any) -> None:
    """JSON with NaN and infinities as null, since neither is JSON."""
    write_text(path, json.dumps(_plain(values), indent=2, ensure_ascii=False) + "\n")


def append_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a JSON-lines file."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(_plain(row)) + "\n" for row in rows)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """One line per row; NaN and missing cells are empty, floats have six decimals."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in columns])


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6f}" if math.isfinite(value) else ""
    return "" if value is None else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
