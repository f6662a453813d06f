"""Steps that read a dataset's folder into records. One file and one registration each.

A dataset entry lists steps in order. The first finds the images (``files``, ``dicom_series``, ``dicom_slices``,
``npz``, ``hdf5``); the others join what belongs to them (``masks``, ``table``, ``split_lists``, ``boxes_voc``,
``points_csv``, ``decathlon``, ``dicom_seg``). A step's keyword options are what the entry may write under its name.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from frepa.datasets.catalogue.patterns import FileIndex
from frepa.datasets.catalogue.records import Records
from frepa.errors import InputError, nearest


@dataclass(frozen=True)
class Context:
    """What a step is given: the files, the records so far, and the dataset's defaults.

    Attributes:
        index: every file of the folder.
        records: the table under construction; the step adds to it in place.
        dataset: the dataset's identifier.
        modality: of records whose step does not say otherwise.
        dims: 2 or 3, likewise.
        options: what the user selected (``size=64``, ``target=vein``), by option name.
    """

    index: FileIndex
    records: Records
    dataset: str
    modality: str
    dims: int
    options: dict[str, str]


Step = Callable[..., None]
_STEPS: dict[str, Step] = {}


def register(name: str) -> Callable[[Step], Step]:
    """Decorator: make a function ``step(context, **options)`` available to dataset entries as ``name``."""

    def add(step: Step) -> Step:
        _STEPS[name] = step
        return step

    return add


def steps() -> dict[str, Step]:
    """Every registered step by name."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return dict(_STEPS)


def check_step(name: str, options: dict[str, Any], where: str) -> None:
    """Raise InputError in plain words when a step does not exist, or does not take one of its options, or lacks one."""
    known = steps()
    if name not in known:
        raise InputError(f"{where}: there is no reading step {name!r}. {nearest(name, known)}")
    parameters = list(inspect.signature(known[name]).parameters.values())[1:]
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option not in allowed and not takes_any:
            raise InputError(f"{where}: the step {name!r} has no option {option!r}. {nearest(option, allowed)}")
    for parameter in parameters:
        if (
            parameter.kind is parameter.KEYWORD_ONLY
            and parameter.default is parameter.empty
            and parameter.name not in options
        ):
            raise InputError(f"{where}: the step {name!r} needs the option {parameter.name!r}.")
