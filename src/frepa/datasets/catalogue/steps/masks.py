"""Mask files beside the images, in the same folder or in a parallel one, joined by the named parts both paths share."""

from __future__ import annotations

from frepa.datasets.catalogue.patterns import path_fields, pattern
from frepa.datasets.catalogue.records import sample
from frepa.datasets.catalogue.steps import Context, register
from frepa.errors import InputError


@register("masks")
def masks(
    context: Context,
    *,
    member: str | None = None,
    optional: list[str] | None = None,
    only: dict[str, list[str]] | None = None,
    **targets: str | list[str],
) -> None:
    """Join mask files. ``masks: {artery: PATTERN, vein: PATTERN}``.

    An image and a mask belong together when every named part that both paths have is equal (without case); of several
    candidates the one whose folder shares most with the image's wins. The first target that has any file fills the
    column ``mask``, unless the option ``target`` asks for another; every further one fills ``mask_<target>``.

    Args:
        member: name inside the mask file (an npz key).
        optional: targets that need not exist; an image without them is not reported.
        only: column or named part -> values of the records that should have a mask (test parts often have none).
        **targets: target name -> pattern or patterns.
    """
    records = context.records
    candidates = {
        target: _candidates(context, [patterns] if isinstance(patterns, str) else patterns)
        for target, patterns in targets.items()
    }
    present = [target for target, known in candidates.items() if any(by_key for _, by_key in known)]
    default = context.options.get("target", present[0] if present else next(iter(targets)))
    records.facts.update(target=default, targets=list(targets))
    expected = set(records.rows_where(only))
    for target, known in candidates.items():
        column = records.column("mask" if target == default else f"mask_{target}")
        missing = []
        for i, relative in enumerate(records.relative):
            parts = {**path_fields(relative), **records.fields[i]}
            found = None
            for names, by_key in known:
                found = found or _nearest(
                    by_key.get(tuple((parts.get(name) or "").casefold() for name in names), []), relative
                )
            if found:
                column[i] = context.index.absolute(found) + (f"#{member}" if member else "")
                records.used.add(found)
            elif i in expected:
                missing.append(relative)
        if missing and target not in (optional or []):
            records.problems.append(
                f"{len(missing):,} of {len(expected):,} images have no {target} mask: {sample(missing)}"
            )


def _candidates(
    context: Context, patterns: list[str]
) -> list[tuple[tuple[str, ...], dict[tuple[str, ...], list[str]]]]:
    """Per pattern: the names to join on, and the files by the values of these names."""
    out = []
    for text in patterns:
        names = tuple(pattern(text).names)
        if not names:
            raise InputError(f"The mask pattern {text!r} names no part to join on, such as {{stem}} or {{id}}.")
        by_key: dict[tuple[str, ...], list[str]] = {}
        for path, parts, _ in context.index.matches([text]):
            by_key.setdefault(tuple(parts[name].casefold() for name in names), []).append(path)
        out.append((names, by_key))
    return out


def _nearest(candidates: list[str], image: str) -> str | None:
    """The candidate that shares the longest run of folders with the image."""

    def shared(path: str) -> int:
        count = 0
        for one, other in zip(path.split("/")[:-1], image.split("/")[:-1]):
            if one != other:
                break
            count += 1
        return count

    others = [path for path in candidates if path != image]
    return max(others, key=shared, default=None)
