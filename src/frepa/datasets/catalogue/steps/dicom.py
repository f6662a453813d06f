"""DICOM: series as volumes, or every slice as an image. Only headers are read; nothing that names a patient is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from frepa.datasets.catalogue.records import sample
from frepa.datasets.catalogue.steps import Context, register
from frepa.datasets.catalogue.steps.values import group_value, split_name
from frepa.images.readers.dicom.folders import series_numbers
from frepa.images.readers.dicom.opening import read_tags, series_of
from frepa.images.scan import UnreadableScan

_TAGS = ["Modality", "SeriesInstanceUID", "SOPInstanceUID", "ImageType"]
_READERS = 8  # waiting for storage, not computing


@register("dicom_series")
def dicom_series(
    context: Context,
    *,
    patterns: list[str],
    modality: list[str],
    min_slices: int = 1,
    group: str | None = None,
) -> None:
    """One record per series; ``path`` is its folder, or ``folder#series=N`` for the N-th of several in one folder.

    Folder names depend on the program that downloaded the data, so the series is taken from the header. One header in
    the middle of each folder tells its modality; only a folder that may hold several series (its first, middle and last
    file differ) is read whole.

    Args:
        patterns: of the files; several are tried in order, the first that finds any is used.
        modality: DICOM modalities to keep, ``[CT]``; others (SEG, RTSTRUCT, PT) are left out.
        min_slices: series with fewer files (localisers) are left out and counted.
        group: template of the patient, over the parts of the path.
    """
    records = context.records
    folders = _folders(context, patterns)
    short, left_out, unreadable = 0, 0, []
    for folder, (names, parts) in folders.items():
        probes = [_header(context.index.absolute(names[i])) for i in sorted({0, len(names) // 2, len(names) - 1})]
        if all(header is None for header in probes):
            unreadable.append(folder)
            continue
        same = len({_uid(header) for header in probes}) == 1 and None not in probes
        by_series = {_uid(probes[0]): names} if same else _by_series(context, names)
        records.used.update(names)
        # Numbered by the reader that will open them
        numbers = {} if same else series_numbers(Path(context.index.absolute(folder)))
        for uid, members in sorted(by_series.items()):
            header = probes[0] if same else _header(context.index.absolute(members[len(members) // 2]))
            if (
                header is None
                or header.get("Modality") not in modality
                or "LOCALIZER" in (header.get("ImageType") or [])
            ):
                left_out += 1
                records.set_aside.setdefault(str(header and header.get("Modality")), []).extend(members)
            elif len(members) < min_slices:
                short += 1
            else:
                path = context.index.absolute(folder) + (f"#series={numbers[uid]}" if len(numbers) > 1 else "")
                fields = {**parts, "series_uid": uid, "slices": str(len(members))}
                records.add(members[0], fields, _row(context, path, members[0], parts, group, header, dims=3))
    if short:
        records.notes.append(f"{short:,} series with fewer than {min_slices} slices were left out")
    if left_out:
        records.notes.append(f"{left_out:,} series that are no {' or '.join(modality)} images were left out")
    if unreadable:
        records.problems.append(f"{len(unreadable):,} folders hold no readable DICOM file: {sample(unreadable)}")


@register("dicom_slices")
def dicom_slices(context: Context, *, patterns: list[str], modality: list[str], group: str | None = None) -> None:
    """One 2D record per file, with its SOP instance UID as the named part ``uid`` for joins.

    Args:
        patterns: of the files; several are tried in order, the first that finds any is used.
        modality: DICOM modalities to keep.
        group: template of the patient, over the parts of the path.
    """
    records = context.records
    found = _first_that_finds(context, patterns)
    with ThreadPoolExecutor(_READERS) as pool:
        headers = pool.map(lambda item: _header(context.index.absolute(item[0])), found)
        left_out, unreadable = 0, []
        for (path, parts), header in zip(found, headers):
            records.used.add(path)
            if header is None:
                unreadable.append(path)
            elif header.get("Modality") not in modality:
                left_out += 1
            else:
                fields = {**parts, "uid": str(header.get("SOPInstanceUID") or "")}
                row = _row(context, context.index.absolute(path), path, parts, group, header, dims=2)
                records.add(path, fields, row)
    if left_out:
        records.notes.append(f"{left_out:,} files that are no {' or '.join(modality)} images were left out")
    if unreadable:
        records.problems.append(f"{len(unreadable):,} files are no readable DICOM: {sample(unreadable)}")


def _row(
    context: Context, path: str, relative: str, parts: Mapping[str, str], group: str | None, header: Any, dims: int
) -> dict[str, Any]:
    return {
        "path": path,
        "modality": {"CT": "CT", "MR": "MRI"}.get(header.get("Modality"), context.modality),
        "dims": dims,
        "split": split_name(parts.get("split")),
        "group": group_value(context.dataset, group, relative, parts),
        "unit": "HU" if header.get("Modality") == "CT" else None,
    }


def _first_that_finds(context: Context, patterns: list[str]) -> list[tuple[str, dict[str, str]]]:
    for text in patterns:
        found = [(path, parts) for path, parts, _ in context.index.matches([text])]
        if found:
            return found
    return []


def _folders(context: Context, patterns: list[str]) -> dict[str, tuple[list[str], dict[str, str]]]:
    folders: dict[str, tuple[list[str], dict[str, str]]] = {}
    for path, parts in _first_that_finds(context, patterns):
        folders.setdefault(path.rpartition("/")[0], ([], parts))[0].append(path)
    return folders


def _by_series(context: Context, names: list[str]) -> dict[str, list[str]]:
    series: dict[str, list[str]] = {}
    for name, header in zip(names, _headers(context, names)):
        if header is not None:
            series.setdefault(_uid(header), []).append(name)
    return series


def _headers(context: Context, names: list[str]) -> Iterator[Any]:
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(lambda name: _header(context.index.absolute(name)), names)


def _uid(header: Any) -> str:
    return series_of(header) if header is not None else ""


def _header(path: str) -> Any:
    """The few attributes the catalogue needs, or None where the file is no DICOM."""
    try:
        return read_tags(Path(path), _TAGS)
    except UnreadableScan:
        return None
