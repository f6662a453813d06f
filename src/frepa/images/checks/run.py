"""`frepa check`: every record of a source read once, and what is wrong or odd about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from frepa.images.checks.findings import Finding, kind_of
from frepa.images.checks.measures import Measured
from frepa.images.checks.pairs import label_files, labels_beside, pair_findings
from frepa.images.checks.rules import duplicates, mixed_units, shared_patients, single_findings, unlike_the_rest
from frepa.images.checks.scanning import CRASHED, measure_all
from frepa.images.source import Source


@dataclass(frozen=True)
class Checked:
    """What a check gives: findings, measurements of the scans that can be read, and a few numbers."""

    findings: list[Finding]
    records: dict[int, Measured]
    facts: dict[str, int]


def check_source(
    source: Source, *, num_workers: int = 0, progress: Callable[[int], object] = lambda count: None
) -> Checked:
    """Read every record of a source and say what was found.

    Args:
        source: opened with ``canonical=False``, so that orientations are seen as they are stored.
        num_workers: processes that read.
        progress: called with the number of records done since the last call.
    """
    results = measure_all(source, num_workers=num_workers, progress=progress)
    records = {index: result for index, result in results.items() if isinstance(result, Measured)}
    findings = [Finding(kind_of(item.reason, "unreadable"), item.path, item.reason) for item in source.skipped]
    findings += [Finding(kind_of(item.reason, "other"), item.path, item.reason) for item in source.notes]
    for index, result in results.items():
        if isinstance(result, str):
            kind = "crash" if result == CRASHED else kind_of(result, "unreadable")
            findings.append(Finding(kind, source.name(index), result, record=index))
    splits = _splits(source)
    findings += single_findings(records, source.name)
    findings += mixed_units(records)
    findings += duplicates(records, source.name, source.labels, splits)
    findings += shared_patients(source.name, splits, source.group_codes)
    findings += unlike_the_rest(records, source.name)
    findings += pair_findings(source, label_files(source) or labels_beside(source))
    findings = _once(findings)
    left_out = _count(findings, "left out")
    unread = len(source.skipped) + len(results) - len(records)
    facts = {"scans": len(records), "unreadable": unread - left_out, "left out": left_out}
    facts["duplicates"] = _count(findings, "duplicate") + _count(findings, "split duplicate")
    if source.group_codes is not None:
        facts["patients or studies"] = len(set(source.group_codes.tolist()))
    return Checked(findings, records, facts)


def _count(findings: list[Finding], kind: str) -> int:
    return sum(finding.kind == kind for finding in findings)


def _splits(source: Source) -> np.ndarray | None:
    """Names of the parts the records are in, from a manifest or the catalogue; None where there are none."""
    if source.splits is not None:
        return source.splits
    table = getattr(source, "table", None)
    if table is None or "split" not in table.column_names or table["split"].null_count == len(table):
        return None
    return np.array([part or "" for part in table["split"].to_pylist()], object)


def _once(findings: list[Finding]) -> list[Finding]:
    """Without repetitions: the slices of a volume all say the same of it."""
    seen: set[tuple[str, str, str]] = set()
    kept = []
    for finding in findings:
        place = finding.file.rpartition("[")[0] or finding.file
        key = (finding.kind, place if finding.kind in _OF_A_FILE else finding.file, finding.message)
        if key not in seen:
            seen.add(key)
            kept.append(finding)
    return kept


# Said of a file as a whole, however many slices it has
_OF_A_FILE = {"geometry", "hu assumed", "other", "ct without hu", "spacing", "size", "orientation"}
