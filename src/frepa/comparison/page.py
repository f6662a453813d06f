"""The page of a study: the table, ranks, tests, the same case seen by every encoder, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frepa.analysis.statistics import cliques
from frepa.comparison.cells import CELLS, DONE
from frepa.comparison.contents import TaskContent
from frepa.comparison.overlays import overlays_of
from frepa.comparison.scores import MEASURES, Scored
from frepa.comparison.study import Study
from frepa.comparison.table import Entry, Pair, Ranking, Table
from frepa.comparison.writing import columns_of, lines_of
from frepa.files import write_bytes
from frepa.images.hidden_names import Names
from frepa.report.comparisons import critical_difference_diagram, interval_plot
from frepa.report.figures import png_bytes
from frepa.report.page import MeanStd, Page

_MOST_PAIRS = 60
_PANELS = 4


def write_page(
    root: Path,
    study: Study,
    scored: Sequence[Scored],
    table: Table,
    contents: Mapping[str, TaskContent],
    names: Names,
) -> None:
    """Write ``report.html``, and the overlays of each task into ``overlays``."""
    encoders = sum(row.kind == "encoder" for row in study.rows)
    page = Page("Comparison", f"{encoders} encoders on {len(study.tasks)} tasks")
    page.facts({"Encoders": encoders, "Tasks": len(study.tasks), "Cells": len({item.cell.key for item in scored})})
    page.section("Results")
    page.text(
        "Per cent. `±` is the standard deviation over test cases (of AUC, ACC and precisions over resamples of the "
        "patients); the interval holds 95 % of the resamples of the patients. Of several draws or "
        "seeds each case counts with its mean. An encoder with a guide channel is compared fairly only with others "
        "that have it."
    )
    _results(page, study, table)
    marked = [item for item in scored if item.record.status != DONE]
    if marked:
        page.table(
            [
                {
                    "Encoder": item.cell.row.name, "Task": item.cell.task.name, "Head": item.cell.head or "none",
                    "What": item.record.status, "Reason": item.record.reason,
                }
                for item in marked
            ],
            caption="Cells without a score. Options stand as on the command line: --crop-size is crop_size here.",
        )  # fmt: skip
    for item in scored:
        for sentence in [item.results.get("constant"), *_constant_sets(item)]:
            if sentence:
                page.note(f"{item.cell.row.name} on {item.cell.task.name}: {sentence}", level="warning")
    page.section("Ranks")
    for ranking in table.rankings:
        _ranks(page, ranking)
    page.section("Tests")
    _tests(page, study, table.pairs)
    pictures = overlays_of(study, scored, root / CELLS, names)
    if pictures:
        page.section("The same case")
        (root / "overlays").mkdir(exist_ok=True)
        for number, (caption, figure) in enumerate(pictures, start=1):
            picture = png_bytes(figure)
            write_bytes(root / "overlays" / f"{number:02d}.png", picture)
            page.figure(picture, caption, wide=True)
    page.section("Tasks")
    page.table(
        [
            {
                "Task": task.name, "Verb": task.verb, "Protocol": task.protocol,
                **{part.capitalize(): n for part, n in contents[task.name].parts.items()},
                "Parts": contents[task.name].note,
                "Options": ", ".join(f"{name} {value}" for name, value in task.options.items()) or "as they are",
            }
            for task in study.tasks
        ],
        caption="Cases of each part (of several folds, of the first).",
    )  # fmt: skip
    page.save(root / "report.html")


def _results(page: Page, study: Study, table: Table) -> None:
    every = list(columns_of(table.entries).values())
    lines = lines_of(study, table.entries)
    for head in dict.fromkeys(head for _, head, _, _ in lines if head != "none") or ["none"]:
        shown = [line for line in lines if line[1] in (head, "none")]
        titles = [title for title in every if any(title in found for _, own, _, found in shown if own == head)]
        page.table(
            [
                {"Row": name, "Guide": guide, **{title: _mean_std(found.get(title)) for title in titles}}
                for name, _, guide, found in shown
            ],
            caption=f"Head: {head}. Rows without an encoder have none." if head != "none" else "",
            best=dict.fromkeys(titles, "max"),
        )
        for first in range(0, len(titles), _PANELS):
            columns = {
                title: {
                    name: (100 * found[title].value, 100 * found[title].low, 100 * found[title].high)
                    for name, _, _, found in shown
                    if title in found and math.isfinite(found[title].value)
                }
                for title in titles[first : first + _PANELS]
            }
            columns = {title: own for title, own in columns.items() if own}
            if columns:
                page.figure(interval_plot(columns), f"Per cent with 95 % intervals, {head} head.", wide=True)
    rows = [
        {
            "Row": entry.row, "Head": entry.head, "Task": entry.task, "Set": entry.set,
            "Measure": MEASURES[entry.verb][entry.measure], "Mean": 100 * entry.value, "Std": 100 * entry.std,
            "95 % from": 100 * entry.low, "to": 100 * entry.high, "Std over runs": 100 * entry.std_runs,
            "Runs": entry.cells, "Cases": entry.cases,
        }
        for entry in table.entries
        if math.isfinite(entry.value)
    ]  # fmt: skip
    if rows:
        page.table(_told(rows), caption="Every measure (table.csv; cells.csv has every run, cases.csv every case).")


def _told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without columns in which nothing stands."""
    told = [name for name in rows[0] if any(row[name] == row[name] and row[name] not in ("", None) for row in rows)]
    return [{name: row[name] for name in told} for row in rows]


def _mean_std(entry: Entry | None) -> Any:
    if entry is None or not math.isfinite(entry.value):
        return math.nan
    return MeanStd(100 * entry.value, 100 * entry.std) if math.isfinite(entry.std) else 100 * entry.value


def _constant_sets(item: Scored) -> list[str]:
    sets = item.results.get("sets")
    return [own["constant"] for own in sets.values() if own.get("constant")] if isinstance(sets, Mapping) else []


def _ranks(page: Page, ranking: Ranking) -> None:
    found = ranking.ranks
    if len(ranking.rows) < 2 or not ranking.tasks:
        page.text(f"Head {ranking.head}: fewer than two encoders have the same tasks, so there is nothing to rank.")
        return
    words = f"Head {ranking.head}: mean rank of {len(ranking.rows)} encoders over {len(ranking.tasks)} tasks."
    if math.isfinite(found.p):
        words += f" Friedman's test that all are alike: p = {found.p:.3g}."
    if ranking.left_out:
        words += f" Left out, because they lack a task: {', '.join(ranking.left_out)}."
    page.text(words)
    names = dict(zip(ranking.rows, found.mean.tolist()))
    groups = cliques(found.mean.tolist(), found.difference) if math.isfinite(found.difference) else []
    page.figure(
        critical_difference_diagram(names, found.difference, groups),
        f"Mean ranks, {ranking.head} head, 1 the best. Bars join what does not differ beyond chance (Nemenyi, 5 %).",
        wide=True,
    )


def _tests(page: Page, study: Study, pairs: Sequence[Pair]) -> None:
    if not pairs:
        page.text("There is no pair to test.")
        return
    against = f"against {study.reference}" if study.reference else "of every pair"
    page.text(
        f"Paired over the same test cases, {against}. Differences in points of per cent with 95 % intervals. Wilcoxon: "
        "signed-rank test over patients (cases where none are known); bootstrap: resamples of the patients. Corrected "
        "by Holm's method for all pairs of the task, and (`all tasks`) for all pairs of the head. tests.csv has all."
    )
    ordered = sorted(pairs, key=lambda pair: _nan_last(pair.bootstrap_holm))[:_MOST_PAIRS]
    page.table(
        _told([
            {
                "Task": pair.task, "Set": pair.set, "Head": pair.head, "Measure": pair.measure,
                "A": pair.a, "B": pair.b,
                "A - B": 100 * pair.difference, "95 % from": 100 * pair.low, "to": 100 * pair.high,
                "Wilcoxon p": _p(pair.wilcoxon_holm), "bootstrap p": _p(pair.bootstrap_holm),
                "all tasks": _p(pair.bootstrap_all), "Cases": pair.cases,
            }
            for pair in ordered
        ]),
        caption=f"The {len(ordered)} surest of {len(pairs)} pairs; p-values are corrected." if len(pairs) > 1 else "",
    )  # fmt: skip


def _p(value: float) -> str | None:
    return None if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
