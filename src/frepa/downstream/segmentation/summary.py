"""What is told of tested segmenters: results, tables, and sentences, of a run and of an evaluation alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from frepa.datasets.cases import SegmentationSet
from frepa.downstream.contract import CASE_COLUMNS, Table
from frepa.downstream.division import SHARES
from frepa.downstream.scores import DDOF, over_heads, summarise_cases
from frepa.downstream.segmentation.baselines import NAMES, constant_answer
from frepa.downstream.segmentation.testing import CaseResult, TestedSegmenter
from frepa.downstream.tuning import in_words


def summarise(tested: Sequence[TestedSegmenter]) -> dict[str, Any]:
    """Scores of every set over its test cases; of several seeds each case counts with its mean."""
    data, folds = tested[0].data, tested[0].round.fold is not None
    sets = {}
    for item in data.sets:
        sets[item.name] = {
            "layout": item.layout,
            "split": item.split_note,
            "cases": {"test": len(item.cases)} if folds else _counts(item),
            "images_without_mask": len(item.unpaired),
            "labels": data.labels[item.name].describe(),
            "class_names": list(data.labels[item.name].names),
            "pairs": list(item.notes),
            "test": summarise_cases(_by_case(tested, item.name, lambda case: case.scores)),
            "baselines": summarise_cases(_by_case(tested, item.name, lambda case: case.baselines)),
            "constant": constant_answer(
                [case.constant for one in tested for case in one.cases if case.set_name == item.name]
            ),
        }
        if len(tested) > 1:
            sets[item.name]["heads"] = _spread(tested, item.name)
    return {
        "head": tested[0].model.head.kind,
        "features": tested[0].model.features,
        "classes": data.classes,
        "sets": sets,
        "definitions": {
            "dsc": "2|P and G| / (|P| + |G|) per case, mean over the classes labelled in the case, whole image",
            "_fov": "the same inside the field of view",
            "std": f"over cases, ddof {DDOF}",
            "baselines": NAMES,
            "skipped": "cases in which neither truth nor prediction has anything",
            "unit": "fraction in [0, 1]",
        },
        "test_seconds": sum(item.seconds for item in tested),
        "warnings": list(dict.fromkeys(note for item in tested for note in item.training.notes)),
    }


def tables(tested: Sequence[TestedSegmenter]) -> Iterable[Table]:
    """A line per test case and head."""
    groups = tested[0].data.group_numbers()
    every = [(item.round, case) for item in tested for case in item.cases]
    names = list(dict.fromkeys(name for _, case in every for name in case.scores))
    rows = [
        {
            "set": case.set_name,
            "case": case.name,
            "group": groups[case.set_name, case.name],
            **one.kept,
            **case.scores,
        }
        for one, case in every
    ]
    yield Table("cases.csv", ["set", *CASE_COLUMNS, *names], rows)


def verdicts(summary: Mapping[str, Any]) -> Iterable[str]:
    """DSC of every set."""
    how = f"{in_words(summary['train'])}; guide: {summary['guide']}; {summary['head']} head on {summary['features']}"
    for name, item in summary["sets"].items():
        scores, floors, dsc = item["test"], item["baselines"], item["test"]["dsc"]
        spread = f" ± {100 * dsc.std:.2f}" if math.isfinite(dsc.std) else ""
        text = f"{name}: DSC {100 * dsc.mean:.2f}{spread} % over {dsc.cases} test cases ({how})"
        if "dsc_fov" in scores:
            text += f"; inside the field of view {100 * scores['dsc_fov'].mean:.2f} %"
        text += f"; {dsc.skipped} cases have nothing to find and are left out." if dsc.skipped else "."
        if floors:
            shown = ", ".join(f"{key} {100 * floor.mean:.1f}" for key, floor in floors.items())
            text += f" Without an encoder: {shown}."
        yield f"{text} {item['constant']}" if item["constant"] else text


def _counts(item: SegmentationSet) -> dict[str, int]:
    counts = {part: len(item.part(part)) for part in SHARES}
    return {part: count for part, count in counts.items() if count}


def _by_case(
    tested: Sequence[TestedSegmenter], name: str, scores: Callable[[CaseResult], Mapping[str, float]]
) -> list[Mapping[str, float]]:
    """Scores of each case of a set; of one that several seeds tested their mean."""
    cases: dict[str, list[Mapping[str, float]]] = {}
    for item in tested:
        for case in item.cases:
            if case.set_name == name:
                cases.setdefault(case.name, []).append(scores(case))
    return [own[0] if len(own) == 1 else _means(own) for own in cases.values()]


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {score: summary.mean for score, summary in summarise_cases(scores).items()}


def _spread(tested: Sequence[TestedSegmenter], name: str) -> dict[str, Any]:
    """Every score's mean over the cases of each head, over folds and seeds."""
    each = [_means([case.scores for case in item.cases if case.set_name == name]) for item in tested]
    folds, seeds = [item.round.fold for item in tested], [item.round.seed for item in tested]
    scores = dict.fromkeys(score for means in each for score in means)
    return {score: over_heads([means.get(score, math.nan) for means in each], folds, seeds) for score in scores}
