"""What is told of tested classifiers: results, tables, and sentences, of a run and of an evaluation alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from frepa.downstream.classification.metrics import accuracy, auc_per_class, bootstrap, confusion, macro_auc
from frepa.downstream.classification.testing import TestedClassifier, case_rows
from frepa.downstream.contract import CASE_COLUMNS, Table, over_words
from frepa.downstream.scores import DDOF, RESAMPLES, over_heads, summarise
from frepa.downstream.tuning import in_words


def summarise_heads(tested: Sequence[TestedClassifier], *, seed: int) -> dict[str, Any]:
    """ACC and AUC of one head with their spread over resamples, or of several heads over these."""
    data, rounds = tested[0].data, [item.round for item in tested]
    probabilities = np.concatenate([item.probabilities for item in tested])
    targets = np.concatenate([item.targets for item in tested])
    scores, std = _scores(tested, seed)
    # Scores of different heads are not on one scale: each head ranks its own cases.
    each_area = np.stack([auc_per_class(item.probabilities, item.targets) for item in tested])
    areas = [summarise(column).mean for column in each_area.T]
    chosen = probabilities > 0.5 if data.several else np.eye(len(data.classes), dtype=bool)[probabilities.argmax(1)]
    hits = (chosen & targets.astype(bool)).sum(0)
    seeds = len({one.seed for one in rounds})  # every case was tested by each of them
    return {
        "head": tested[0].model.settings.head,
        "features": "embedding",
        "labels": data.origin,
        "split": data.split_note,
        "classes": list(data.classes),
        "multi_label": data.several,
        "cases": None if rounds[0].fold else data.sizes(),
        "images": len(data.records),
        "unlabelled": data.unlabelled,
        "image_size": tested[0].model.settings.image_size,
        "test": scores,
        "baselines": majority(tested),
        "constant": constant_answer(chosen, data.classes),
        "per_class": {
            name: {
                "cases": int(targets[:, k].sum()) // seeds,
                "sensitivity": float(hits[k] / targets[:, k].sum()) if targets[:, k].any() else math.nan,
                "auc": float(areas[k]),
            }
            for k, name in enumerate(data.classes)
        },
        "confusion": None if data.several else confusion(probabilities, targets).tolist(),
        "definitions": {
            "acc": "share of classes answered rightly over all cases, yes above 0.5"
            if data.several
            else "share of cases whose most probable class is the true one",
            "auc": "area under the ROC curve of each class against the rest, mean over the classes",
            "std": std,
            "majority": "the answer that is commonest in the training part, for every case; its AUC is 0.5",
            "unit": "fraction in [0, 1]",
        },
        "warnings": list(dict.fromkeys(note for item in tested for note in item.training.notes)),
    }


def _scores(tested: Sequence[TestedClassifier], seed: int) -> tuple[dict[str, Any], str]:
    """ACC and AUC, and what their spread is over, in words."""
    first, data = tested[0], tested[0].data
    if len(tested) == 1:
        groups = [data.groups[row] for row in first.rows]
        spread = bootstrap(first.probabilities, first.targets, groups, several=data.several, seed=seed)
        words = f"standard deviation, 2.5th and 97.5th percentile over {RESAMPLES} resamples of the test groups"
        return {name: item._asdict() for name, item in spread.items()}, words
    folds, seeds = [item.round.fold for item in tested], [item.round.seed for item in tested]
    acc = [accuracy(item.probabilities, item.targets, several=data.several) for item in tested]
    auc = [macro_auc(item.probabilities, item.targets) for item in tested]
    words = f"mean and standard deviation over {over_words([item.round for item in tested])}, ddof {DDOF}"
    return {"acc": over_heads(acc, folds, seeds), "auc": over_heads(auc, folds, seeds)}, words


def tables(tested: Sequence[TestedClassifier]) -> Iterable[Table]:
    """A line per test case and head."""
    columns = [*CASE_COLUMNS, "truth", "predicted", *(f"p_{name}" for name in tested[0].data.classes)]
    yield Table("cases.csv", columns, [row for item in tested for row in case_rows(item)])


def verdicts(summary: Mapping[str, Any]) -> Iterable[str]:
    """ACC and AUC."""
    acc, auc = summary["test"]["acc"], summary["test"]["auc"]
    over = "resamples" if "low" in acc else "folds" if "folds" in acc else "seeds"
    floor = summary["baselines"].get("majority")
    text = (
        f"ACC {100 * acc['value']:.2f} ± {100 * acc['std']:.2f} %, AUC {100 * auc['value']:.2f} ± "
        f"{100 * auc['std']:.2f} % (± over {over}; {in_words(summary['train'])}; guide: {summary['guide']}; "
        f"{summary['head']} head)."
    )
    if floor is not None:
        text += f" Without an encoder: majority class ACC {100 * floor['acc']:.2f} %."
    yield f"{text} {summary['constant']}" if summary["constant"] else text


def majority(tested: Sequence[TestedClassifier]) -> dict[str, dict[str, float]]:
    """ACC and AUC of giving every test case the commonest answer of the training part, mean over heads.

    Empty where the training part is not known.
    """
    scores = []
    for item in tested:
        if item.usual is not None:
            answer = item.usual[None].repeat(len(item.targets), 0)
            scores.append(accuracy(answer, item.targets, several=item.data.several))
    return {"majority": {"acc": float(np.mean(scores)), "auc": 0.5}} if scores else {}


def constant_answer(chosen: np.ndarray, classes: Sequence[str]) -> str | None:
    """A sentence where every test case got the same answer, ``chosen`` (n, classes) bool; else None."""
    if len(chosen) < 2 or (chosen != chosen[0]).any():
        return None
    said = ", ".join(name for name, there in zip(classes, chosen[0]) if there) or "no class"
    return f"The output is constant: {said} for every test case. Its ACC says nothing about the encoder."
