"""The table of a study as files: cells.csv, cases.csv, table.csv, table.md, tests.csv, results.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from frepa.comparison.cells import DONE
from frepa.comparison.contents import TaskContent
from frepa.comparison.scores import MEASURES, Scored, case_rows
from frepa.comparison.study import Study
from frepa.comparison.table import Entry, Pair, Table, column_of, ranked_entries, rows_of
from frepa.files import write_csv, write_json, write_text
from frepa.names import shown

CELL_COLUMNS = (
    "row", "draw", "encoder", "architecture", "method", "guide", "parameters", "weights", "task", "set", "verb",
    "protocol", "head", "seed", "measure", "value", "std", "low", "high", "cases", "status", "reason", "seconds",
    "cell",
)  # fmt: skip
CASE_COLUMNS = ("row", "draw", "task", "set", "head", "seed", "case", "group", "measure", "value")


def write_tables(root: Path, study: Study, scored: Sequence[Scored], table: Table, about: Mapping[str, Any]) -> None:
    """Write everything but the page into ``root``; ``about`` goes into results.json."""
    write_csv(root / "cells.csv", CELL_COLUMNS, _cells(scored))
    write_csv(root / "cases.csv", CASE_COLUMNS, (row for item in scored for row in case_rows(item)))
    write_csv(root / "table.csv", Entry._fields, rows_of(table.entries))
    write_csv(root / "tests.csv", Pair._fields, rows_of(table.pairs))
    write_text(root / "table.md", markdown(study, table))
    test: dict[str, Any] = {}
    for entry in table.entries:
        if math.isfinite(entry.value):
            column = test.setdefault(column_of(entry), {}).setdefault(f"{entry.row}, {entry.head}", {})
            column[entry.measure] = {
                "value": entry.value, "std": entry.std, "low": entry.low, "high": entry.high, "std_runs": entry.std_runs
            }  # fmt: skip
    rankings = {
        ranking.head: {
            "rows": ranking.rows, "tasks": ranking.tasks, "mean_rank": ranking.ranks.mean.tolist(),
            "friedman": ranking.ranks.statistic, "p": ranking.ranks.p,
            "critical_difference": ranking.ranks.difference, "left_out": ranking.left_out,
        }
        for ranking in table.rankings
    }  # fmt: skip
    write_json(root / "results.json", {**about, "test": test, "ranks": rankings})


def _cells(scored: Iterable[Scored]) -> Iterable[dict[str, Any]]:
    for item in scored:
        cell = item.cell
        common = {
            "row": cell.row.name, "draw": cell.draw, "encoder": cell.encoder, "task": cell.task.name,
            "verb": cell.task.verb, "protocol": cell.task.protocol, "head": cell.head or "none", "seed": cell.seed,
            "status": item.record.status, "reason": item.record.reason, "seconds": item.record.seconds,
            "cell": cell.key, **cell.about,
        }  # fmt: skip
        if not item.sets:
            yield common
        for name, scores in item.sets.items():
            for measure, value in scores.values.items():
                std, low, high = scores.spreads.get(measure, (math.nan,) * 3)
                yield {
                    **common, "set": name, "measure": measure, "value": value, "std": std, "low": low, "high": high,
                    "cases": len(scores.cases),
                }  # fmt: skip


def columns_of(entries: Iterable[Entry]) -> dict[tuple[str, str], str]:
    """Task and measure of every column of the short table, with its title: the ranked measure of every set."""
    return {
        (column_of(entry), entry.measure): f"{column_of(entry)} ({MEASURES[entry.verb][entry.measure]})"
        for entry in ranked_entries(entries)
    }


def lines_of(study: Study, entries: Sequence[Entry]) -> list[tuple[str, str, str, dict[str, Entry]]]:
    """Row, head, guide, and its entry by the title of the column: lines of the short table, encoders first."""
    titles = columns_of(entries)
    heads = dict.fromkeys(entry.head for entry in entries)
    lines = []
    for head in sorted(heads, key=lambda head: (head == "none", list(heads).index(head))):
        for row in study.rows:
            own = [entry for entry in entries if entry.row == row.name and entry.head == head]
            if own:
                found = {
                    titles[column_of(entry), entry.measure]: entry
                    for entry in own
                    if (column_of(entry), entry.measure) in titles
                }
                lines.append((row.name, head, own[0].guide, found))
    return lines


def markdown(study: Study, table: Table) -> str:
    """The short table as Markdown, in per cent: mean ± standard deviation [95 % interval]; best of each head bold."""
    titles = list(columns_of(table.entries).values())
    mean_ranks = {
        (row, ranking.head): value
        for ranking in table.rankings
        for row, value in zip(ranking.rows, ranking.ranks.mean.tolist())
    }
    best = _best(table.entries)
    head = ["encoder", "head", "guide", *titles, "mean rank"]
    rows = []
    for name, kind, guide, found in lines_of(study, table.entries):
        cells = [_cell(found.get(title), best) for title in titles]
        rank = mean_ranks.get((name, kind))
        rows.append([name, kind, guide, *cells, "–" if rank is None or math.isnan(rank) else f"{rank:.2f}"])
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(shown(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = dict.fromkeys(
        f"- {entry.row}, {entry.head}, {column_of(entry)}: {entry.marked}" for entry in table.entries if entry.marked
    )
    return text + "\n" + ("\n" + "\n".join(shown(note) for note in notes) + "\n" if notes else "")


def _best(entries: Iterable[Entry]) -> set[tuple[str, str, str, str]]:
    """The best encoders of each task, measure and head."""
    found: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        if entry.kind == "encoder" and math.isfinite(entry.value):
            found.setdefault((column_of(entry), entry.measure, entry.head), []).append(entry)
    return {
        (entry.row, *key)
        for key, own in found.items()
        if len(own) > 1
        for entry in own
        if round(entry.value, 4) == max(round(other.value, 4) for other in own)
    }


def _cell(entry: Entry | None, best: set[tuple[str, str, str, str]]) -> str:
    if entry is None:
        return ""
    if not math.isfinite(entry.value):
        return "does not fit" if entry.marked else "–"
    value = f"{100 * entry.value:.1f}"
    if (entry.row, column_of(entry), entry.measure, entry.head) in best:
        value = f"**{value}**"
    spread = f" ± {100 * entry.std:.1f}" if math.isfinite(entry.std) else ""
    interval = f" [{100 * entry.low:.1f}, {100 * entry.high:.1f}]" if math.isfinite(entry.low) else ""
    return value + spread + interval + ("*" if entry.marked else "")


def counts(scored: Iterable[Scored], contents: Mapping[str, TaskContent]) -> dict[str, Any]:
    """Cells by what became of them, and the parts of every task."""
    every: dict[str, int] = {}
    for item in scored:
        every[item.record.status] = every.get(item.record.status, 0) + 1
    tasks = {name: {"parts": content.parts, "split": content.note} for name, content in contents.items()}
    return {"cells": {DONE: 0, **every}, "tasks": tasks}
