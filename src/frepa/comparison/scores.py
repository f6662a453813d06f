"""What the cells of a study scored: per cell and set the measures, and each case's, read from the runs' own tables."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from frepa.comparison.cells import DONE, Cell, Record
from frepa.downstream.classification.metrics import accuracy, macro_auc, macro_auc_of
from frepa.downstream.scores import mean_of_known, summarise

#: Measures by verb, the one that ranks are made of first; what is shown of each.
MEASURES = {
    "segment": {"dsc": "DSC", "dsc_fov": "DSC in FOV", "cldice": "clDice"},
    "classify": {"auc": "AUC", "acc": "ACC"},
    "detect": {
        "ap_50": "AP at IoU 0.5", "ap_10": "AP at IoU 0.1", "cpm": "CPM", "f1": "F1 per image",
        "sensitivity": "sensitivity", "precision": "precision",
    },
}  # fmt: skip
_RANKED = {"segment": ("dsc",), "classify": ("auc",), "detect": ("ap_50", "ap_10")}


@dataclass(frozen=True)
class Ranking:
    """What an area under the curve is made of: of each fold its cases, probabilities and truth, ``(n, K)`` each."""

    rows: tuple[np.ndarray, ...]
    probabilities: tuple[np.ndarray, ...]
    targets: tuple[np.ndarray, ...]

    def value(self) -> float:
        """Macro AUC, mean over folds, each of which ranks its own cases."""
        return summarise(macro_auc(p, t) for p, t in zip(self.probabilities, self.targets)).mean

    def drawn(self, weights: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The same where each case counts as often as ``weights (B, N)`` says; case ``i`` is number ``places[i]``."""
        folds = zip(self.rows, self.probabilities, self.targets)
        return mean_of_known(np.stack([macro_auc_of(p, t, weights[:, places[rows]]) for rows, p, t in folds]))


@dataclass(frozen=True)
class SetScores:
    """One cell on one set of its task.

    Attributes:
        values: of every measure, fractions in [0, 1].
        cases: names of the test cases. groups: of each, equal for cases of one patient.
        of_cases: measures that are means over cases, ``(n,)`` each, NaN where not defined.
        ranking: what the area under the curve is made of, of classes.
        spreads: of measures that are no means over cases: std, low and high over resamples, as the run found them.
    """

    values: Mapping[str, float]
    cases: tuple[str, ...]
    groups: tuple[str, ...]
    of_cases: Mapping[str, np.ndarray]
    ranking: Ranking | None = None
    spreads: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """A cell, what became of it, and its scores by set ("" where a task has one set without a name)."""

    cell: Cell
    record: Record
    sets: Mapping[str, SetScores]
    results: Mapping[str, Any]


def read_scores(cell: Cell, record: Record, folder: Path) -> Scored:
    """The scores of a cell in ``folder``, ``cells`` of its study."""
    if record.status != DONE:
        return Scored(cell, record, {}, {})
    place = folder / cell.key
    results = json.loads((place / "results.json").read_text("utf-8"))
    with open(place / "cases.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sets: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        sets.setdefault(row.get("set", ""), []).append(row)
    read = {"segment": _segmented, "classify": _classified, "detect": _detected}[cell.task.verb]
    return Scored(cell, record, {name: read(own, results) for name, own in sets.items()}, results)


def ranked_by(verb: str, values: Mapping[str, float]) -> str:
    """The measure that encoders are ranked by."""
    return next((name for name in _RANKED[verb] if name in values), _RANKED[verb][0])


def _segmented(rows: Sequence[Mapping[str, str]], results: Mapping[str, Any]) -> SetScores:
    of_cases = {
        name: np.array([_number(row[name]) for row in rows]) for name in MEASURES["segment"] if rows and name in rows[0]
    }
    values = {name: summarise(column).mean for name, column in of_cases.items()}
    return SetScores(values, *_names(rows), of_cases)


def _classified(rows: Sequence[Mapping[str, str]], results: Mapping[str, Any]) -> SetScores:
    classes, several = list(results["classes"]), bool(results["multi_label"])
    found = np.array([[_number(row[f"p_{name}"]) for name in classes] for row in rows])
    # A case without a class has no word; classes are parted by | as in the run's own table.
    truths = [row["truth"] if row["truth"] in classes else row["truth"].removeprefix("'") for row in rows]
    targets = np.array([[name in truth.split("|") for name in classes] for truth in truths], np.uint8)
    right = (found > 0.5) == targets.astype(bool) if several else found.argmax(1) == targets.argmax(1)
    folds = np.array([row["fold"] for row in rows])
    blocks = [np.flatnonzero(folds == fold) for fold in dict.fromkeys(folds.tolist())]
    ranking = Ranking(tuple(blocks), tuple(found[block] for block in blocks), tuple(targets[block] for block in blocks))
    acc = float(np.mean([accuracy(found[block], targets[block], several=several) for block in blocks]))
    values = {"auc": ranking.value(), "acc": acc}
    return SetScores(values, *_names(rows), {"acc": right.reshape(len(rows), -1).mean(1)}, ranking)


def _detected(rows: Sequence[Mapping[str, str]], results: Mapping[str, Any]) -> SetScores:
    hits, misses, wrong = (
        np.array([_number(row[name]) for row in rows]) for name in ("hits", "misses", "false_positives")
    )
    total = 2 * hits + misses + wrong
    f1 = np.divide(2 * hits, total, out=np.full(len(rows), math.nan), where=total > 0)
    mean = results["test"]["mean"]
    level = "ap_50" if results["encoder"]["dims"] == 2 else "ap_10"
    values: dict[str, float] = {}
    spreads: dict[str, tuple[float, float, float]] = {}
    for name in (level, "cpm", "sensitivity", "precision"):
        score = mean[name]
        values[name] = _number(score["value"] if isinstance(score, Mapping) else score)
        if isinstance(score, Mapping):
            spreads[name] = (_number(score.get("std")), _number(score.get("low")), _number(score.get("high")))
    return SetScores({**values, "f1": summarise(f1).mean}, *_names(rows), {"f1": f1}, spreads=spreads)


def case_rows(scored: Scored) -> Iterator[dict[str, Any]]:
    """A line per set, test case and measure of a cell."""
    cell = scored.cell
    common = {
        "row": cell.row.name,
        "draw": cell.draw,
        "task": cell.task.name,
        "head": cell.head or "none",
        "seed": cell.seed,
    }
    for name, item in scored.sets.items():
        for measure, column in item.of_cases.items():
            for case, group, value in zip(item.cases, item.groups, column.tolist()):
                yield {**common, "set": name, "case": case, "group": group, "measure": measure, "value": value}


def _names(rows: Sequence[Mapping[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(row["case"] for row in rows), tuple(row["group"] for row in rows)


def _number(value: Any) -> float:
    return math.nan if value in (None, "") else float(value)
