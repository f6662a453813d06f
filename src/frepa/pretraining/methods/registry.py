"""Methods by name: each is a file here that registers itself, and a word in ``_MODULES``."""

from __future__ import annotations

import importlib
from typing import Any

from frepa.errors import InputError, nearest
from frepa.pretraining.methods.contract import METHODS, Method

_MODULES = ("frepa",)


def build_method(name: str, **options: Any) -> Method:
    """The method ``name``, built with ``options``.

    Raises:
        InputError: unknown name.
    """
    for module in _MODULES:
        importlib.import_module(f"frepa.pretraining.methods.{module}")
    if name not in METHODS:
        raise InputError(f"--method {name}: not a pretraining method. {nearest(name, METHODS)}")
    return METHODS[name].build(**options)
