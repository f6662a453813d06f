"""The findings of a check as one page, with pictures of what is suspicious."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from frepa.checks.findings import ERROR, KINDS, LEVELS, NOTE, WARNING, Finding
from frepa.checks.items import Item
from frepa.checks.run import Checked
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


def counts_by_kind(findings: Sequence[Finding]) -> list[tuple[str, int]]:
    """Kinds with their numbers, the gravest first."""
    counts = Counter(finding.kind for finding in findings)
    order = {name: i for i, name in enumerate(KINDS)}
    return sorted(counts.items(), key=lambda item: (LEVELS.index(KINDS[item[0]].level), order[item[0]]))


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


def verdict(findings: Sequence[Finding]) -> tuple[str, str]:
    """What it comes to in a sentence or two, and how grave that is: ``note`` or ``warning``."""
    levels = Counter(KINDS[finding.kind].level for finding in findings)
    if not findings:
        return "Nothing was found that is wrong with these scans.", NOTE
    if not levels[ERROR] and not levels[WARNING]:
        return "Nothing was found that needs mending; the notes say what was assumed.", NOTE
    parts = []
    if levels[ERROR]:
        parts.append(f"{levels[ERROR]:,} {_plural(levels[ERROR], 'error')}: data that is lost, or scores that lie.")
    if levels[WARNING]:
        words = "scan is" if levels[WARNING] == 1 else "scans are"
        parts.append(f"{levels[WARNING]:,} {_plural(levels[WARNING], 'warning')}: {words} used, but look first.")
    return " ".join(parts), WARNING


def _plural(count: int, word: str) -> str:
    return word if count == 1 else word + "s"


def _spread(findings: Sequence[Finding], count: int) -> list[Finding]:
    """``count`` of them from the first to the last, so that every folder has a chance to be seen."""
    if len(findings) <= count:
        return list(findings)
    return [findings[int(i)] for i in np.unique(np.linspace(0, len(findings) - 1, count).astype(np.int64))]


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
    for finding in _spread([finding for finding in findings if finding.record >= 0], _PER_KIND):
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


def summary(findings: Sequence[Finding], facts: Mapping[str, int | str], *, examples: int = 3) -> str:
    """The report in a few lines for a terminal."""
    lines = [
        ", ".join(
            f"{value:,} {name}" if isinstance(value, int) else f"{name}: {value}" for name, value in facts.items()
        )
    ]
    for kind, count in counts_by_kind(findings):
        lines.append(f"{KINDS[kind].level:<8}{count:>8,}  {KINDS[kind].title}")
        if KINDS[kind].level != NOTE:
            named = _spread([finding for finding in findings if finding.kind == kind], examples)
            lines += [f"{'':18}{shown(finding.file)}: {shown(finding.message)}" for finding in named]
    if len(lines) == 1:
        lines.append("Nothing was found that is wrong with these scans.")
    return "\n".join(lines)
