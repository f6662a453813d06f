"""What several steps share: split names, class names, the columns a path or a row fills."""

from __future__ import annotations

from collections.abc import Mapping

from frepa.datasets.catalogue.patterns import fill, path_fields
from frepa.datasets.catalogue.records import anonymous

_SPLITS = {
    "train": ("train", "training", "tr", "trainval", "development"),
    "val": ("val", "valid", "validation", "validate", "va", "dev"),
    "test": ("test", "testing", "ts", "te"),
}
_SPLIT_OF = {alias: split for split, aliases in _SPLITS.items() for alias in aliases}


def split_name(raw: str | None, names: Mapping[str, str] | None = None) -> str | None:
    """``train``, ``val`` or ``test`` for a folder or column value, by ``names`` first; None for anything else."""
    if raw is None:
        return None
    plain = plain_value(raw)
    own = {plain_value(key): value for key, value in (names or {}).items()}
    return own.get(plain) or _SPLIT_OF.get(plain)


def plain_value(raw: object) -> str:
    """A cell or name for comparison: no outer blanks, no case, ``1.0`` as ``1``."""
    text = str(raw).strip().casefold()
    return text[:-2] if text.endswith(".0") and text[:-2].lstrip("-").isdigit() else text


class ClassNames:
    """Raw label values to class names.

    Args:
        names: raw value (a folder name, a number) -> class name, or a plain list when the values are the names
            themselves; None takes every value as it is written.
    """

    def __init__(self, names: Mapping[object, str] | list[str] | None) -> None:
        pairs = names.items() if isinstance(names, Mapping) else ((name, name) for name in names or [])
        self._name_of = {plain_value(raw): str(name) for raw, name in pairs}
        self.known = list(dict.fromkeys(self._name_of.values()))
        self.open = names is None

    def __call__(self, raw: object) -> str | None:
        """Class name of a raw value, None for one that is empty or unknown."""
        text = str(raw).strip()
        if self.open:
            return text or None
        return self._name_of.get(plain_value(raw))


def template_value(template: str | None, field: str, relative: str, parts: Mapping[str, str | None]) -> str | None:
    """The filled template; without one, the path's own named part ``field``."""
    if template is None:
        return parts.get(field)
    return fill(template, {**path_fields(relative), **parts})


def group_value(dataset: str, template: str | None, relative: str, parts: Mapping[str, str | None]) -> str | None:
    """Anonymous name of the patient or study that ``template`` (default ``{group}``) names, or None."""
    raw = template_value(template, "group", relative, parts)
    return None if raw is None else anonymous(dataset, raw.casefold())
