"""Splits and class lists written as text files of names, one per line."""

from __future__ import annotations

from frepa.datasets.catalogue.patterns import fill, path_fields
from frepa.datasets.catalogue.steps import Context, register
from frepa.datasets.catalogue.steps.values import plain_value


@register("split_lists")
def split_lists(context: Context, *, key: str = "{file}", **lists: str) -> None:
    """Set the split of every record that a list names.

    Args:
        key: template of what a line holds, compared without case.
        **lists: split (train, val, test) -> pattern of the list; a file that does not exist is reported.
    """
    records = context.records
    split_of: dict[str, str] = {}
    for split, text in lists.items():
        found = [path for path, _, _ in context.index.matches([text])]
        if not found:
            records.problems.append(f"the list of the {split} part is missing: no file matches {text}")
        for path in found:
            records.used.add(path)
            with open(context.index.absolute(path), encoding="utf-8-sig", errors="replace") as lines:
                for line in lines:
                    if line.strip():
                        split_of[plain_value(line.split()[0])] = split
    column = records.column("split")
    for i, relative in enumerate(records.relative):
        name = fill(key, {**path_fields(relative), **records.fields[i]})
        column[i] = split_of.get(plain_value(name), column[i]) if name else column[i]
