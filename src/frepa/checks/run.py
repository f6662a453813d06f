"""`frepa check`: every record of a source read once, and what is wrong or odd about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from frepa.checks.findings import Finding, kind_of
from frepa.checks.items import Item, gather, label_records
from frepa.checks.measures import Measured
from frepa.checks.pairs import label_files, labels_beside, pair_findings
from frepa.checks.peers import unlike_their_peers
from frepa.checks.rules import duplicates, mixed_units, shared_patients, single_findings
from frepa.checks.scanning import Failed, measure_all
from frepa.checks.splits import splits_of
from frepa.images.hidden_names import Names
from frepa.images.source import Source


@dataclass(frozen=True)
class Checked:
    """What a check gives: findings, measurements of the scans that can be read, these by volume, and a few facts."""

    findings: list[Finding]
    records: dict[int, Measured]
    items: list[Item]
    facts: dict[str, int | str]

    def under(self, names: Names) -> Checked:
        """The same with what stands for names of files in the findings."""
        if not names.hidden:
            return self
        findings = [
            replace(
                one,
                file=names.name(one.file),
                message=names.said(one.message),
                other=names.name(one.other) if one.other else "",
            )
            for one in self.findings
        ]
        return replace(self, findings=findings)


def check_source(
    source: Source, *, num_workers: int = 0, progress: Callable[[int], object] = lambda count: None
) -> Checked:
    """Read every record of a source and say what was found.

    Args:
        source: opened with ``canonical=False``, so that orientations are seen as they are stored.
        num_workers: processes that read.
        progress: called with the number of records done since the last call.
    """
    # By number: processes end in any order
    results = dict(sorted(measure_all(source, num_workers=num_workers, progress=progress).items()))
    records = {index: result for index, result in results.items() if isinstance(result, Measured)}
    findings = [Finding(kind_of(item.kind), item.path, item.reason) for item in source.skipped]
    findings += [Finding(kind_of(item.kind), item.path, item.reason) for item in source.notes]
    for index, result in results.items():
        if isinstance(result, Failed):
            findings.append(Finding(kind_of(result.kind), source.name(index), result.reason, record=index))
    splits, said_by = splits_of(source)
    items = gather(records, source)
    labels = label_records(items)
    findings += single_findings(items)
    findings += mixed_units(items)
    findings += duplicates(records, source.name, source.labels, splits, leave_out=labels)
    findings += shared_patients(source.name, splits, source.group_codes)
    findings += unlike_their_peers(items)
    findings += pair_findings(source, label_files(source) or labels_beside(source))
    findings = _once(findings)
    left_out = _count(findings, "left out")
    unread = len(source.skipped) + len(results) - len(records)
    facts: dict[str, int | str] = {"scans": len(records)}
    volumes = sum(item.of_slices for item in items)
    if volumes:
        facts["volumes they are slices of"] = volumes
    facts |= {"unreadable": unread - left_out, "left out": left_out}
    facts["duplicates"] = _count(findings, "duplicate") + _count(findings, "split duplicate")
    if source.groups:
        facts["known patients or studies"] = source.groups
    if splits is not None:
        facts["split by"] = said_by
    return Checked(findings, records, items, facts)


def _count(findings: list[Finding], kind: str) -> int:
    return sum(finding.kind == kind for finding in findings)


def _once(findings: list[Finding]) -> list[Finding]:
    """Without repetitions: what opening a source tells of a series is said again by each slice."""
    kept: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        key = (finding.kind, finding.file, finding.message)
        if key not in kept or kept[key].record < 0:
            kept[key] = finding
    return list(kept.values())
