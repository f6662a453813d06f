"""The findings of a check as one page, with pictures of what is suspicious."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frepa.checks.findings import KINDS, Finding
from frepa.checks.items import Item
from frepa.checks.run import Checked
from frepa.checks.summary import counts_by_kind, spread, verdict
from frepa.images.geometry import resize_pad
from frepa.images.hidden_names import SOURCE, Names
from frepa.images.intensity import to_unit
from frepa.images.scan import UnreadableScan
from frepa.images.source import Source
from frepa.names import shown
from frepa.report.canvas import bare, new_figure, plane
from frepa.report.page import Page

_SHOWN = 30  # findings of a kind that are listed
_PER_KIND, _PIXELS = 6, 160
# Of these a picture tells more than the words
_PICTURED = {"split duplicate", "label conflict", "looks like labels", "constant", "nearly constant", "duplicate"}
_PICTURED |= {"tiny", "intensity", "size", "spacing", "hu values", "ct without hu", "hu mixed", "hu assumed"}
_MOST_ROWS = 100


def write_page(path: Path, source: Source, checked: Checked, names: Names) -> Path:
    """``report.html``: the verdict, findings by kind with what to do and pictures, what the scans are."""
    page = Page("Scan report", f"{SOURCE if names.hidden else shown(source.location)}, read with dims {source.dims}")
    page.facts(checked.facts)
    found = counts_by_kind(checked.findings)
    text, level = verdict(checked.findings)
    page.note(text, level=level)
    if found:
        page.section("Findings")
        rows = [
            {"level": KINDS[kind].level, "finding": KINDS[kind].title, "count": n, "what to do": KINDS[kind].advice}
            for kind, n in found
        ]
        page.table(rows, caption="Gravest first. `findings.parquet`, beside this page, lists every single one.")
    for kind, count in found:
        page.section(KINDS[kind].title)
        page.text(KINDS[kind].advice)
        of_kind = [finding for finding in checked.findings if finding.kind == kind]
        if kind in _PICTURED:
            _pictures(page, source, of_kind)
        if count > _SHOWN:
            _by_folder(page, of_kind)
        else:
            page.table([{"file": shown(f.file), "what was found": shown(f.message)} for f in of_kind])
    _inventory(page, checked.items, names)
    page.section("What was not looked for")
    page.text(
        "Text burnt into the pixels, such as a patient's name on an ultrasound image or a scanned film, is not looked "
        "for: look at the pictures before you share this page or train on the data. Files are shown under "
        f"{'keyed hashes of their names' if names.hidden else 'the names they have'}; nothing else of their headers "
        "that names a patient, a place or a date is read into this report."
        "\n\nDuplicates are found where every pixel is equal, not where an image was resized or compressed again."
    )
    return page.save(path)


def _by_folder(page: Page, findings: Sequence[Finding]) -> None:
    """Many findings of a kind: how many there are in each folder, and one of them."""
    folders: dict[str, list[Finding]] = {}
    for finding in findings:
        folders.setdefault(posixpath.dirname(finding.file.partition("#")[0]) or ".", []).append(finding)
    fullest = sorted(folders.items(), key=lambda item: -len(item[1]))[:_SHOWN]
    rows = [
        {
            "folder": shown(folder),
            "count": len(members),
            "for example": shown(posixpath.basename(members[0].file)),
            "what was found": shown(members[0].message),
        }
        for folder, members in fullest
    ]
    more = f" The fullest {_SHOWN} of {len(folders):,} folders." if len(folders) > _SHOWN else ""
    page.table(rows, caption=f"{len(findings):,}, by folder.{more}")


def _inventory(page: Page, items: Sequence[Item], names: Names) -> None:
    kinds: dict[tuple[str, str, str, int], list[Item]] = {}
    for item in items:
        top = item.folder.partition("/")[0]
        unit = "label map" if item.is_labels else "HU" if item.first.hu else "arbitrary"
        key = (top or ".", item.first.modality, unit, len(item.first.size))
        kinds.setdefault(key, []).append(item)
    rows = []
    for (top, modality, unit, _), members in sorted(kinds.items())[:_MOST_ROWS]:
        spacing = [item.first.spacing for item in members if item.first.spacing]
        rows.append(
            {
                "folder": shown(top if top == "." else names.name(top)),
                "modality": modality or None,
                "unit": unit,
                "files": len(members),
                "scans": sum(len(item.records) for item in members),
                "size": _range([item.first.size for item in members]),
                "usual spacing (mm)": _shown(np.median(spacing, axis=0), 3) if spacing else None,
                "types": ", ".join(sorted({item.first.dtype for item in members})),
            }
        )
    if not rows:
        return
    if all(row["files"] == row["scans"] for row in rows):
        rows = [{name: cell for name, cell in row.items() if name != "files"} for row in rows]
    page.section("What the scans are")
    more = f" The first {_MOST_ROWS} of {len(kinds):,}." if len(kinds) > _MOST_ROWS else ""
    page.table(rows, caption=f"By top folder; sizes per axis.{more}")


def _range(sizes: Sequence[tuple[int, ...]]) -> str:
    least, usual, most = (_shown(act(sizes, axis=0)) for act in (np.min, np.median, np.max))
    return least if least == most else f"{least} to {most}, usually {usual}"


def _pictures(page: Page, source: Source, findings: Sequence[Finding]) -> None:
    tiles = []
    for finding in spread([finding for finding in findings if finding.record >= 0], _PER_KIND):
        try:
            tiles.append((finding, thumbnail(source, finding.record)))
        except UnreadableScan:
            continue
    if not tiles:
        return
    figure = new_figure(1.9 * _PER_KIND, 2.2)
    grid = np.atleast_1d(figure.subplots(1, _PER_KIND)).reshape(-1)
    for axes in grid:
        bare(axes)
    for axes, (finding, tile) in zip(grid, tiles):
        axes.imshow(tile, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(shown(_short(finding.file)), fontsize=6.5)
    page.figure(figure, "", alt="Examples: " + ", ".join(shown(finding.file) for finding, _ in tiles), wide=True)


def thumbnail(source: Source, index: int) -> np.ndarray:
    """``(160, 160)`` or ``(160, 160, 3)`` in [0, 1] of a record, or of the middle slice of a volume."""
    scan = source.read(index)
    picture = plane(to_unit(scan))
    channels = picture[None] if picture.ndim == 2 else np.moveaxis(picture, -1, 0)
    return plane(resize_pad(np.ascontiguousarray(channels), (_PIXELS, _PIXELS)))


def _short(name: str) -> str:
    return name if len(name) <= 28 else "…" + name[-27:]


def _shown(values: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    return " x ".join(f"{value:.{digits}g}" for value in values)
