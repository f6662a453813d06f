"""Official splits that are ranges of a number in the file's name."""

from __future__ import annotations

from frepa.datasets.catalogue.steps import Context, register


@register("split_ranges")
def split_ranges(context: Context, *, field: str, **ranges: list[list[int]]) -> None:
    """Set the split of every record whose named part ``field`` is a number in one of the ranges.

    Args:
        field: the named part.
        **ranges: split (train, val, test) -> ``[[first, last], ...]``, both ends included.
    """
    column = context.records.column("split")
    for i, fields in enumerate(context.records.fields):
        text = fields.get(field) or ""
        for split, spans in ranges.items():
            if text.isdigit() and any(first <= int(text) <= last for first, last in spans):
                column[i] = split
