"""From cells to one table: mean, spread and interval of every row on every task, paired tests, ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from frepa.analysis.statistics import Ranks, bootstrap_p, holm, ranks, wilcoxon
from frepa.comparison.cells import DONE
from frepa.comparison.scores import MEASURES, Scored, SetScores, ranked_by
from frepa.comparison.study import Row, Study, StudyTask
from frepa.downstream.scores import mean_of_known, resamples, summarise


class Entry(NamedTuple):
    """A row of the table: one encoder on one task and set, by one measure.

    set: of a task with several. value: mean over its cells (draws and seeds), each a mean over its test cases. std:
    over test cases (each with its mean over the cells); of AUC, ACC and precisions over resamples of the patients.
    low, high: 95 % interval over these. std_runs: over draws and seeds, NaN of one cell. cells: how many. cases: test
    cases with a score. marked: reasons of the cells that are missing.
    """

    row: str
    kind: str
    task: str
    set: str
    verb: str
    protocol: str
    head: str
    guide: str
    parameters: int | None
    measure: str
    value: float
    std: float
    low: float
    high: float
    std_runs: float
    cells: int
    cases: int
    marked: str


class Pair(NamedTuple):
    """Two rows on the same cases: the mean difference ``a - b``, its 95 % interval and p-values.

    ``_holm`` are corrected for all pairs of this task, measure and head, ``_all`` for all pairs of the head's ranked
    measures.
    """

    head: str
    task: str
    set: str
    measure: str
    a: str
    b: str
    cases: int
    difference: float
    low: float
    high: float
    wilcoxon: float
    wilcoxon_holm: float
    wilcoxon_all: float
    bootstrap: float
    bootstrap_holm: float
    bootstrap_all: float


class Ranking(NamedTuple):
    """Ranks of the encoders of one head: ``rows`` on ``tasks``; ``left_out`` says which rows lack a task."""

    head: str
    rows: tuple[str, ...]
    tasks: tuple[str, ...]
    ranks: Ranks
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """What a study found."""

    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    rankings: tuple[Ranking, ...]


@dataclass(frozen=True)
class _Aligned:
    """Rows on one task, set and head over the same cases.

    rows: names. scores: of each row its cells, and of each cell the places of its cases. groups: of every case.
    """

    rows: tuple[str, ...]
    scores: Mapping[str, list[tuple[SetScores, np.ndarray]]]
    groups: tuple[str, ...]

    def means(self, row: str, measure: str) -> np.ndarray | None:
        """Each case's mean over the cells, ``(N,)``, NaN where it has none; None where it is no score of cases."""
        found = np.full((len(self.scores[row]), len(self.groups)), math.nan)
        for number, (item, places) in enumerate(self.scores[row]):
            if measure not in item.of_cases:
                return None
            found[number, places] = item.of_cases[measure]
        return mean_of_known(found)

    def drawn(self, row: str, measure: str, weights: np.ndarray) -> np.ndarray | None:
        """The row's score in every resample, ``(B,)``; None where the runs keep too little to tell."""
        means = self.means(row, measure)
        if means is not None:
            return _weighted(means, weights)
        if measure != "auc" or any(item.ranking is None for item, _ in self.scores[row]):
            return None
        rankings = [(item.ranking, places) for item, places in self.scores[row]]
        return np.mean([ranking.drawn(weights, places) for ranking, places in rankings if ranking is not None], axis=0)


def make_table(study: Study, scored: Sequence[Scored]) -> Table:
    """Everything that is said of a study, from its cells."""
    entries: list[Entry] = []
    pairs: list[Pair] = []
    heads = list(dict.fromkeys(item.cell.head for item in scored if item.cell.head))
    for task in study.tasks:
        own = [item for item in scored if item.cell.task.name == task.name]
        sets = list(dict.fromkeys(name for item in own for name in item.sets)) or [""]
        for head in [head for head in heads if head in task.heads] or [""]:
            # What needs no encoder has no head, and stands beside every one.
            here = [item for item in own if item.cell.head in (head, "")]
            for name in sets:
                _of_set(study, task, head, name, here, entries, pairs, name if len(sets) > 1 else "")
    pairs = _corrected(pairs)
    rankings = tuple(_ranking(study, head, entries) for head in heads)
    # What needs no encoder was told beside every head.
    once = {(e.row, e.task, e.set, e.head, e.measure): e for e in reversed(entries)}
    return Table(tuple(reversed(once.values())), tuple(pairs), rankings)


def _of_set(
    study: Study,
    task: StudyTask,
    head: str,
    name: str,
    scored: Sequence[Scored],
    entries: list[Entry],
    pairs: list[Pair],
    called: str,
) -> None:
    present = {row.name: [item for item in scored if item.cell.row.name == row.name] for row in study.rows}
    aligned = _align({row: [item.sets[name] for item in own if name in item.sets] for row, own in present.items()})
    measures = [
        measure
        for measure in MEASURES[task.verb]
        if any(measure in item.values for own in aligned.scores.values() for item, _ in own)
    ]
    weights = _resampled(aligned.groups, study.resamples)
    first = next((item.values for own in aligned.scores.values() for item, _ in own), {})
    for measure in measures or [ranked_by(task.verb, first)]:
        drawn = {row: aligned.drawn(row, measure, weights) for row in aligned.rows}
        for row in study.rows:
            if present[row.name]:
                entries.append(
                    _entry(row, task, head, called, measure, present[row.name], aligned, drawn.get(row.name))
                )
        for a, b in _pairs(study, aligned.rows):
            one, other = drawn[a], drawn[b]
            if one is not None and other is not None:
                pairs.append(_pair(head, task.name, called, measure, a, b, aligned, one, other, weights))


def _resampled(groups: Sequence[str], times: int) -> np.ndarray:
    """How often each case counts in each resample of the groups, ``(B, n)`` float32."""
    if not groups:
        return np.zeros((0, 0), np.float32)
    return np.concatenate([drawn.astype(np.float32) for drawn in resamples(groups, 0, times)])


def _align(scores: Mapping[str, list[SetScores]]) -> _Aligned:
    """Rows that have cells, over the union of their cases."""
    scores = {row: own for row, own in scores.items() if own}
    place: dict[str, int] = {}
    groups: list[str] = []
    for item in itertools.chain.from_iterable(scores.values()):
        for case, group in zip(item.cases, item.groups):
            if case not in place:
                place[case] = len(groups)
                groups.append(group)
    found = {
        row: [(item, np.array([place[case] for case in item.cases], np.int64)) for item in own]
        for row, own in scores.items()
    }
    return _Aligned(tuple(found), found, tuple(groups))


def _entry(
    row: Row,
    task: StudyTask,
    head: str,
    name: str,
    measure: str,
    scored: Sequence[Scored],
    aligned: _Aligned,
    drawn: np.ndarray | None,
) -> Entry:
    found = [item for item, _ in aligned.scores.get(row.name, []) if measure in item.values]
    about = scored[0].cell.about
    reasons = dict.fromkeys(
        f"{item.record.status}: {item.record.reason}" for item in scored if item.record.status != DONE
    )
    values = [item.values[measure] for item in found]
    std = low = high = math.nan
    cases = 0
    means = aligned.means(row.name, measure) if found else None
    if drawn is not None and np.isfinite(drawn).any():
        low, high = np.nanpercentile(drawn, (2.5, 97.5)).tolist()
        std = float(np.nanstd(drawn, ddof=1))
    if means is not None:
        summary = summarise(means)
        cases = summary.cases
        # Whether a case is right is 0 or 1: the spread of that says nothing that its mean does not.
        std = std if measure == "acc" else summary.std
    elif found:
        cases = len(set().union(*(item.cases for item in found)))
    if drawn is None and len(found) == 1 and measure in found[0].spreads:
        std, low, high = found[0].spreads[measure]
    return Entry(
        row.name, row.kind, task.name, name, task.verb, task.protocol, head if row.kind == "encoder" else "none",
        str(about.get("guide", "")), about.get("parameters"), measure, summarise(values).mean, std, low, high,
        summarise(values).std, len(values), cases, "; ".join(reasons),
    )  # fmt: skip


def _pairs(study: Study, rows: Sequence[str]) -> Iterable[tuple[str, str]]:
    if study.reference is None:
        return itertools.combinations(rows, 2)
    return [(row, study.reference) for row in rows if study.reference in rows and row != study.reference]


def _pair(
    head: str,
    task: str,
    name: str,
    measure: str,
    a: str,
    b: str,
    aligned: _Aligned,
    one: np.ndarray,
    other: np.ndarray,
    weights: np.ndarray,
) -> Pair:
    first, second = aligned.means(a, measure), aligned.means(b, measure)
    if first is None or second is None:  # an area under the curve: no score of single cases
        change, p = one - other, math.nan
        value = _mean_value(aligned, a, measure) - _mean_value(aligned, b, measure)
        cases = len(aligned.groups)
    else:
        differences = first - second
        change, cases = _weighted(differences, weights), int(np.isfinite(differences).sum())
        value = summarise(differences).mean
        p = wilcoxon(_of_groups(differences, aligned.groups))
    known = change[np.isfinite(change)]
    low, high = np.percentile(known, (2.5, 97.5)).tolist() if known.size else (math.nan, math.nan)
    none = math.nan
    return Pair(
        head or "none", task, name, measure, a, b, cases, value, low, high, p, none, none, bootstrap_p(change), none,
        none,
    )  # fmt: skip


def _mean_value(aligned: _Aligned, row: str, measure: str) -> float:
    return float(np.mean([item.values[measure] for item, _ in aligned.scores[row]]))


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the values that are there, where each counts so often ``(B, n)``; NaN where none does."""
    known = np.isfinite(values)
    count = weights @ known.astype(float)
    total = weights @ np.where(known, values, 0)
    return np.divide(total, count, out=np.full(len(weights), math.nan), where=count > 0)


def _of_groups(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Mean of each group: cases of one patient are no independent pairs."""
    members: dict[str, list[float]] = {}
    for value, group in zip(values.tolist(), groups):
        if math.isfinite(value):
            members.setdefault(group, []).append(value)
    return np.array([np.mean(own) for own in members.values()])


def _corrected(pairs: list[Pair]) -> list[Pair]:
    """The pairs with their p-values corrected by Holm's method: within task, set and measure, and over all tasks."""
    found = list(pairs)
    families: dict[tuple[str, ...], list[int]] = {}
    for place, pair in enumerate(pairs):
        families.setdefault(("holm", pair.head, pair.task, pair.set, pair.measure), []).append(place)
        if pair.measure in ("dsc", "auc", "f1"):
            families.setdefault(("all", pair.head), []).append(place)
    for family, places in families.items():
        for test in ("wilcoxon", "bootstrap"):
            values = holm([getattr(pairs[place], test) for place in places])
            for place, value in zip(places, values.tolist()):
                found[place] = found[place]._replace(**{f"{test}_{family[0]}": value})
    return found


def _ranking(study: Study, head: str, entries: Sequence[Entry]) -> Ranking:
    """Mean ranks of encoders over the tasks that most of them have; rows that lack one of these are left out."""
    encoders = [row.name for row in study.rows if row.kind == "encoder"]
    scores: dict[str, dict[str, float]] = {}
    for entry in ranked_entries(entries):
        if entry.head == head and entry.row in encoders and math.isfinite(entry.value):
            scores.setdefault(column_of(entry), {})[entry.row] = entry.value
    there = [row for row in encoders if any(row in own for own in scores.values())]
    tasks = [task for task, own in scores.items() if 2 * len(own) >= len(there)]
    whole = [row for row in there if all(row in scores[task] for task in tasks)]
    table = np.array([[scores[task][row] for row in whole] for task in tasks], float).reshape(len(tasks), len(whole))
    # Scores that differ in their last digits alone are equal
    found = ranks(np.round(table, 9))
    return Ranking(head, tuple(whole), tuple(tasks), found, tuple(row for row in encoders if row not in whole))


def ranked_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Those of the one measure that the encoders are ranked by on each task and set."""
    entries = list(entries)
    measures: dict[str, dict[str, float]] = {}
    for entry in entries:
        measures.setdefault(column_of(entry), {})[entry.measure] = 0.0
    return [entry for entry in entries if entry.measure == ranked_by(entry.verb, measures[column_of(entry)])]


def column_of(entry: Entry) -> str:
    """What a task, or one set of several, is called in the table."""
    return f"{entry.task}/{entry.set}" if entry.set else entry.task


def rows_of(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Named tuples as rows of a CSV file."""
    return [dict(item._asdict()) for item in items]
