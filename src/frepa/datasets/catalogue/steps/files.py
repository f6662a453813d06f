"""Images that are files of their own: class, split, patient and fold are read from the path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frepa.datasets.catalogue.records import SCHEMA
from frepa.datasets.catalogue.steps import Context, register
from frepa.datasets.catalogue.steps.values import ClassNames, group_value, split_name, template_value


@register("files")
def files(
    context: Context,
    *,
    patterns: list[str | dict[str, Any]],
    exclude: list[str] | None = None,
    label: str | None = None,
    names: Mapping[object, str] | list[str] | None = None,
    split: str | None = None,
    splits: Mapping[str, str] | None = None,
    group: str | None = None,
    fold: str | None = None,
    member: str | None = None,
    rescale: Mapping[str, Any] | None = None,
) -> None:
    """One record per file that a pattern matches.

    Args:
        patterns: path patterns; a mapping ``{pattern: ..., split: test, modality: CT}`` also sets columns or named
            parts.
        exclude: patterns of files to leave out.
        label: template of the class, default ``{label}``.
        names: raw class -> class name, in class order; a value that is not listed is dropped and counted.
        split: template of the split, default ``{split}``; folder names such as ``training`` or ``Val`` are understood.
        splits: further split names -> train, val or test.
        group: template of the patient or study, default ``{group}``.
        fold: template of the fold number, default ``{fold}``.
        member: name inside the file (an npz key); the path becomes ``file#member``.
        rescale: ``{slope, intercept, unit}``: value = slope * stored + intercept.
    """
    records = context.records
    written = [{"pattern": one} if isinstance(one, str) else dict(one) for one in patterns]
    class_names = ClassNames(names)
    strangers: dict[str, int] = {}
    for path, found, number in context.index.matches([one["pattern"] for one in written], exclude or ()):
        constants = {key: value for key, value in written[number].items() if key != "pattern"}
        parts = {**found, **{key: str(value) for key, value in constants.items()}}
        values: dict[str, Any] = {"modality": context.modality, "dims": context.dims, **(rescale or {})}
        values |= {key: value for key, value in constants.items() if key in SCHEMA}
        raw = template_value(label, "label", path, parts)
        if raw is not None:
            values["label"] = class_names(raw)
            if values["label"] is None:
                strangers[raw] = strangers.get(raw, 0) + 1
                continue
        values["split"] = split_name(template_value(split, "split", path, parts), splits)
        values["group"] = group_value(context.dataset, group, path, parts)
        number_of_fold = template_value(fold, "fold", path, parts)
        values["fold"] = None if number_of_fold is None else int(number_of_fold)
        values["path"] = context.index.absolute(path) + (f"#{member}" if member else "")
        records.add(path, parts, values)
    for name, count in sorted(strangers.items()):
        records.problems.append(
            f"{count:,} files left out: {name!r} is none of the classes {', '.join(class_names.known)}"
        )
    for name in class_names.known or sorted({name for name in records.columns["label"] if name}):
        records.add_class(name)
