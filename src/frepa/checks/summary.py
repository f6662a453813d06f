"""The findings of a check in a few lines: how many of which kind, and what they come to. Draws nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from frepa.checks.findings import ERROR, KINDS, LEVELS, NOTE, WARNING, Finding
from frepa.names import shown


def counts_by_kind(findings: Sequence[Finding]) -> list[tuple[str, int]]:
    """Kinds with their numbers, the gravest first."""
    counts = Counter(finding.kind for finding in findings)
    order = {name: i for i, name in enumerate(KINDS)}
    return sorted(counts.items(), key=lambda item: (LEVELS.index(KINDS[item[0]].level), order[item[0]]))


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


def spread(findings: Sequence[Finding], count: int) -> list[Finding]:
    """``count`` of them from the first to the last, so that every folder has a chance to be seen."""
    if len(findings) <= count:
        return list(findings)
    return [findings[int(i)] for i in np.unique(np.linspace(0, len(findings) - 1, count).astype(np.int64))]


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
            named = spread([finding for finding in findings if finding.kind == kind], examples)
            lines += [f"{'':18}{shown(finding.file)}: {shown(finding.message)}" for finding in named]
    if len(lines) == 1:
        lines.append("Nothing was found that is wrong with these scans.")
    return "\n".join(lines)
