"""Kinds of export. A new one is one file with a ``TARGET`` and one line here."""

from __future__ import annotations

import importlib

from frepa.errors import InputError, nearest
from frepa.exporting.contract import Target

_MODULES = {
    "timm": "frepa.exporting.timm_folder",
    "huggingface": "frepa.exporting.huggingface",
    "monai": "frepa.exporting.monai_bundle",
    "nnunet": "frepa.exporting.nnunet_plan",
    "onnx": "frepa.exporting.onnx_model",
    "torch": "frepa.exporting.torch_program",
}


def find_target(name: str) -> Target:
    """The kind of export of this name.

    Raises:
        InputError: there is none, or a package that it needs is not installed.
    """
    if name not in _MODULES:
        raise InputError(f"--to {name}: not a kind of export. {nearest(name, list(_MODULES))}")
    target: Target = importlib.import_module(_MODULES[name]).TARGET
    for package in target.needs:
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(
                f"--to {name} needs the package {package}, which is not installed. Install it with: "
                f"pip install '{target.pip}'"
            ) from None
    return target
