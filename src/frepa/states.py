"""Trees of tensors and plain values in one safetensors file: no pickle, a hash beside it, never half written.

A training state is a nested dict / list / tuple of tensors, numbers, strings, booleans and None. Tensors go into the
safetensors body; the rest goes as JSON into its header, with references where the tensors were.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from frepa.errors import InputError
from frepa.files import file_digest, fill_tensors, write_atomically, write_text

_FORMAT = "frepa-state-1"


def save_tree(path: Path, tree: Any) -> None:
    """Write ``tree`` to ``path`` atomically: temporary name, fsync, hash file, rename.

    The hash is written first, so a file under its final name always has one. The permissions are those the user's
    umask gives. On any failure (a full disk, say) nothing under ``path`` changes and the temporary file is removed.

    Raises:
        TypeError: a leaf is neither a tensor nor a JSON value.
        OSError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    tensors: dict[str, torch.Tensor] = {}
    header = {"format": _FORMAT, "tree": json.dumps(_pack(tree, tensors))}

    def write(temporary: Path) -> None:
        # safetensors refuses a file without any tensor in some versions; one empty tensor is always harmless.
        fill_tensors(temporary, tensors or {"_empty": torch.zeros(0)}, header)
        write_text(hash_path(path), f"{file_digest(temporary)}  {path.name}\n")

    write_atomically(path, write)


def load_tree(path: Path) -> Any:
    """Read a tree written by :func:`save_tree`; tensors arrive on the CPU.

    Raises:
        DamagedFile: the file or its hash is missing, or they do not agree.
    """
    path = Path(path)
    try:
        expected = hash_path(path).read_text().split()[0]
        found = file_digest(path)
    except UnicodeDecodeError:
        raise DamagedFile(f"{hash_path(path)}: no hash of a file, but bytes") from None
    except (OSError, IndexError) as error:
        raise DamagedFile(f"{path}: {error}") from error
    if expected != found:
        raise DamagedFile(f"{path}: its content does not match its hash (expected {expected[:12]}, found {found[:12]})")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise DamagedFile(f"{path}: format {metadata.get('format')!r}, expected {_FORMAT!r}")
            return _unpack(json.loads(metadata["tree"]), file)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DamagedFile):
            raise
        raise DamagedFile(f"{path}: {error}") from error


class DamagedFile(InputError):
    """A state file cannot be trusted: cut, altered or without its hash."""


def hash_path(path: Path) -> Path:
    """Where the SHA-256 of ``path`` is kept, in the format ``sha256sum -c`` reads."""
    return path.with_name(path.name + ".sha256")


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        key = f"t{len(tensors)}"
        # A clone: tensors that share storage (tied weights, views) are refused by the format.
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": key}
    if isinstance(value, dict):
        # Pairs, because optimizer states have integer keys and JSON objects do not.
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_pack(v, tensors) for v in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot store a {type(value).__name__} in a training state: {value!r}")


def _unpack(value: Any, file: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return file.get_tensor(content)
    if kind == "dict":
        return {_unpack(k, file): _unpack(v, file) for k, v in content}
    items = [_unpack(v, file) for v in content]
    return tuple(items) if kind == "tuple" else items
