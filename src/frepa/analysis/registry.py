"""Analyses by name. A new one is a file with ``@register_analysis``; one of this program also a word in ``_MODULES``.

An analysis of your own needs nothing here: ``frepa analyze my_package.my_module:my_name`` imports the module, which
registers it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from frepa.errors import InputError, nearest
from frepa.options import Choice

if TYPE_CHECKING:  # the names of analyses are needed long before torch is
    from frepa.analysis.contract import Analysis

_MODULES = {
    "frequencies": "frepa.analysis.frequencies",
    "cka": "frepa.analysis.cka",
    "histograms": "frepa.analysis.histograms",
    "structures": "frepa.analysis.structures",
    "reconstructions": "frepa.analysis.reconstructions",
    "focal": "frepa.analysis.focal",
    "filtered": "frepa.analysis.filtered",
}


class AnalysisEntry(NamedTuple):
    """options: the frozen dataclass of its options. build: the analysis, called with ``(options)``."""

    options: type
    build: type[Analysis]


_ANALYSES: dict[str, AnalysisEntry] = {}


def register_analysis(name: str, options: type) -> Callable[[type[Analysis]], type[Analysis]]:
    """Class decorator: make an analysis known by name, with the dataclass of its options.

    The first line of the dataclass's docstring tells what the analysis is, its "Args" what each option is.
    """
    if not dataclasses.is_dataclass(options):
        raise TypeError(f"the options of analysis {name} have to be a dataclass, found {options!r}")

    def add(cls: type[Analysis]) -> type[Analysis]:
        _ANALYSES[name] = AnalysisEntry(options, cls)
        return cls

    return add


def find_analysis(name: str) -> AnalysisEntry:
    """The analysis that ``name`` or ``module.path:name`` means.

    Raises:
        InputError: unknown name, or its module cannot be imported.
    """
    module, colon, own = name.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module of the user's does when it is imported
            raise InputError(f"{name}: module {module} cannot be imported ({error}).") from None
        name = own
    elif name in _MODULES:
        importlib.import_module(_MODULES[name])
    if name not in _ANALYSES:
        where = f"{module} registers no analysis {name!r}" if colon else "not a kind of analysis"
        raise InputError(f"{name}: {where}. {nearest(name, {*_MODULES, *_ANALYSES})}")
    return _ANALYSES[name]


class AnalysisChoice(Choice):
    """The analyses, as a choice of options."""

    def names(self) -> list[str]:
        return sorted({*_MODULES, *_ANALYSES})

    def options(self, name: str) -> type:
        return find_analysis(name).options

    def name_of(self, options: Any) -> str:
        """The name of an object of options; of an analysis from outside with its module, so that a file can name it."""
        cls = type(options)
        for name in self.names():
            entry = find_analysis(name)
            if entry.options is cls:
                return name if name in _MODULES else f"{entry.build.__module__}:{name}"
        raise InputError(f"kind: {options!r} is not the options of an analysis. Known: {self.names()}.")
