"""The findings of a check as one page, with pictures of what is suspicious."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from frepa.images.checks.findings import KINDS, LEVELS, NOTE, Finding
from frepa.images.checks.measures import Measured
from frepa.images.geometry import resize_pad
from frepa.images.intensity import to_unit
from frepa.images.scan import UnreadableScan
from frepa.images.source import Source
from frepa.report.canvas import bare, new_figure, plane
from frepa.report.page import Page

_SHOWN = 30  # findings of a kind that are listed
_PICTURES, _PER_KIND, _PIXELS = 24, 4, 160
_PICTURED = ["constant", "nearly constant", "looks like labels", "tiny", "intensity", "size", "spacing", "hu values"]
_PICTURED += ["ct without hu", "duplicate", "split duplicate", "label conflict"]


def counts_by_kind(findings: Sequence[Finding]) -> list[tuple[str, int]]:
    """Kinds with their numbers, the gravest first."""
    counts = Counter(finding.kind for finding in findings)
    order = {name: i for i, name in enumerate(KINDS)}
    return sorted(counts.items(), key=lambda item: (LEVELS.index(KINDS[item[0]].level), order[item[0]]))


def write_page(
    path: Path, source: Source, findings: Sequence[Finding], records: Mapping[int, Measured], facts: Mapping[str, int]
) -> Path:
    """``report.html``: facts, findings by kind with what to do, what the scans are, pictures."""
    page = Page("Scan report", f"{source.location}, read with dims {source.dims}")
    page.facts(facts)
    found = counts_by_kind(findings)
    if not found:
        page.note("Nothing was found that is wrong with these scans.")
    else:
        page.section("Findings")
        rows = [
            {"level": KINDS[kind].level, "finding": KINDS[kind].title, "count": n, "what to do": KINDS[kind].advice}
            for kind, n in found
        ]
        page.table(rows, caption="Gravest first. `findings.parquet`, beside this page, lists every single one.")
    _pictures(page, source, findings)
    _inventory(page, records)
    for kind, count in found:
        page.section(KINDS[kind].title)
        page.text(KINDS[kind].advice)
        listed = [finding for finding in findings if finding.kind == kind][:_SHOWN]
        caption = f"The first {_SHOWN} of {count:,}." if count > _SHOWN else ""
        page.table([{"file": finding.file, "what was found": finding.message} for finding in listed], caption=caption)
    page.section("What was not looked for")
    page.text(
        "Text burnt into the pixels, such as a patient's name on an ultrasound image or a scanned film, is not looked "
        "for: look at the pictures before you share this page or train on the data. Files are shown under the names "
        "they have; nothing else of their headers that names a patient, a place or a date is read into this report."
        "\n\nDuplicates are found where every pixel is equal, not where an image was resized or compressed again."
    )
    return page.save(path)


def _inventory(page: Page, records: Mapping[int, Measured]) -> None:
    if not records:
        return
    kinds: dict[tuple[str, str, int], list[Measured]] = {}
    for one in records.values():
        unit = "HU" if one.hu else "arbitrary"
        kinds.setdefault((one.modality or "not given", unit, len(one.size)), []).append(one)
    rows = []
    for (modality, unit, _), members in sorted(kinds.items()):
        spacing = [one.spacing for one in members if one.spacing]
        rows.append(
            {
                "modality": modality,
                "unit": unit,
                "scans": len(members),
                "smallest": _shown(np.min([one.size for one in members], axis=0)),
                "usual": _shown(np.median([one.size for one in members], axis=0)),
                "largest": _shown(np.max([one.size for one in members], axis=0)),
                "usual spacing (mm)": _shown(np.median(spacing, axis=0), 3) if spacing else None,
                "types": ", ".join(sorted({one.dtype for one in members})),
            }
        )
    page.section("What the scans are")
    page.table(rows, caption="Sizes per axis.")


def _pictures(page: Page, source: Source, findings: Sequence[Finding]) -> None:
    chosen: list[Finding] = []
    for kind in _PICTURED:
        chosen += [finding for finding in findings if finding.kind == kind and finding.record >= 0][:_PER_KIND]
    tiles = []
    for finding in chosen[:_PICTURES]:
        try:
            tiles.append((finding, thumbnail(source, finding.record)))
        except UnreadableScan:
            continue
    if not tiles:
        return
    columns = min(6, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    figure = new_figure(1.9 * columns, 2.35 * rows)
    grid = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
    for axes in grid:
        bare(axes)
    for axes, (finding, tile) in zip(grid, tiles):
        axes.imshow(tile, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"{finding.kind}\n{_short(finding.file)}", fontsize=6.5)
    page.section("Suspicious scans")
    page.figure(figure, "Examples of what was found, scaled by their own percentiles.", wide=True)


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


def summary(findings: Sequence[Finding], facts: Mapping[str, int], *, examples: int = 3) -> str:
    """The report in a few lines for a terminal."""
    lines = [
        ", ".join(
            f"{value:,} {name}" if isinstance(value, int) else f"{name}: {value}" for name, value in facts.items()
        )
    ]
    for kind, count in counts_by_kind(findings):
        lines.append(f"{KINDS[kind].level:<8}{count:>8,}  {KINDS[kind].title}")
        if KINDS[kind].level != NOTE:
            named = [finding for finding in findings if finding.kind == kind][:examples]
            lines += [f"{'':18}{finding.file}: {finding.message}" for finding in named]
    if len(lines) == 1:
        lines.append("Nothing was found that is wrong with these scans.")
    return "\n".join(lines)
