"""Methods by name. A new one is a file with ``@register_method``; one of this program also a word in ``_MODULES``.

A method of your own needs nothing here: ``--method my_package.my_module:my_name`` imports the module, which registers
it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from frepa.errors import InputError, nearest
from frepa.options import Choice

if TYPE_CHECKING:  # the names of methods are needed long before torch is
    from frepa.pretraining.methods.contract import Method, Setting

_MODULES = {
    "frepa": "frepa.pretraining.methods.frepa",
    "mae": "frepa.pretraining.methods.mae",
    "simmim": "frepa.pretraining.methods.masked",
    "mfm": "frepa.pretraining.methods.masked",
    "clip": "frepa.pretraining.methods.clip",
}


class MethodEntry(NamedTuple):
    """options: the frozen dataclass of its options. build: the method, called with ``(options, setting)``."""

    options: type
    build: type[Method]


_METHODS: dict[str, MethodEntry] = {}


def register_method(name: str, options: type) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: make a method known by name, with the dataclass of its options.

    The first line of the dataclass's docstring tells what the method is, its "Args" what each option is.
    """
    if not dataclasses.is_dataclass(options):
        raise TypeError(f"the options of method {name} have to be a dataclass, found {options!r}")

    def add(cls: type[Method]) -> type[Method]:
        _METHODS[name] = MethodEntry(options, cls)
        return cls

    return add


def find_method(name: str) -> MethodEntry:
    """The method that ``name`` or ``module.path:name`` means.

    Raises:
        InputError: unknown name, or its module cannot be imported.
    """
    module, colon, own = name.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module of the user's does when it is imported
            raise InputError(f"--method {name}: module {module} cannot be imported ({error}).") from None
        name = own
    elif name in _MODULES:
        importlib.import_module(_MODULES[name])
    if name not in _METHODS:
        where = f"{module} registers no method {name!r}" if colon else "not a pretraining method"
        raise InputError(f"--method {name}: {where}. {nearest(name, {*_MODULES, *_METHODS})}")
    return _METHODS[name]


class MethodChoice(Choice):
    """The methods, as a choice of options."""

    def names(self) -> list[str]:
        return sorted({*_MODULES, *_METHODS})

    def options(self, name: str) -> type:
        return find_method(name).options

    def name_of(self, options: Any) -> str:
        """The name of an object of options; of a method from outside with its module, so that a file can name it."""
        cls = type(options)
        for name in self.names():
            entry = find_method(name)
            if entry.options is cls:
                return name if name in _MODULES else f"{entry.build.__module__}:{name}"
        raise InputError(f"method: {options!r} is not the options of a pretraining method. Known: {self.names()}.")


def build_method(name: str, options: Any, setting: Setting) -> Method:
    """The method ``name`` with its options, for a setting.

    Raises:
        InputError: unknown name, or options that do not fit the setting.
    """
    return find_method(name).build(options, setting)
