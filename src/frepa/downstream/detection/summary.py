"""What is told of tested detectors: results, tables, and sentences, of a run and of an evaluation alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from frepa.downstream.contract import CASE_COLUMNS, Table, over_words
from frepa.downstream.detection.baselines import NAME, constant_answer, usual_precision
from frepa.downstream.detection.metrics import CRITERIA, mostly_single
from frepa.downstream.detection.testing import SCORE_COLUMNS, TestedDetector, case_row, finding_rows, found_columns
from frepa.downstream.detection.training import VALIDATION_AP
from frepa.downstream.division import numbered
from frepa.downstream.scores import DDOF, over_heads, summarise
from frepa.downstream.tuning import in_words


def summarise_heads(tested: Sequence[TestedDetector], criterion: str) -> dict[str, Any]:
    """Scores of one head with their spread over resamples, or of several heads over these."""
    data, rounds, several = tested[0].data, [item.round for item in tested], len(tested) > 1
    constant = constant_answer([case.case for item in tested for case in item.cases])
    notes = dict.fromkeys(note for item in tested for note in item.training.notes)
    return {
        "head": "conv",
        "features": "last",
        "boxes": data.origin,
        "split": data.split_note,
        "classes": list(data.classes),
        "images": len(data.records),
        "cases": None if tested[0].round.fold else data.sizes(),
        "criterion": criterion,
        "grid_step": tested[0].model.head.step,
        "crop": tested[0].model.settings.crop,
        "test": _over_heads(tested) if several else tested[0].scores,
        "baselines": _usual(tested),
        "constant": constant,
        "thresholds": [item.thresholds for item in tested],
        "definitions": {
            "criterion": CRITERIA[criterion].words,
            "marks": "of several boxes on one finding the best counts and the others are ignored; at most the 100 "
            "best per image and class; boxes on ignored findings are dropped (LUNA16)",
            "cpm": "mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image (LUNA16)",
            "threshold": "the score of best F1 on the validation images",
            "usual": NAME,
            "ap": "average precision, COCO's definition",
            "top_one": "Of images with one finding the best box alone: its IoU (0 if there is none), and the share "
            "whose centre lies in the finding, or whose IoU is 0.5 or more",
            "std": f"over {over_words(rounds)}, ddof {DDOF}" if several else "over resamples of the test groups",
            "unit": "fraction in [0, 1]; false positives per image",
        },
        "warnings": [*_blind(tested), *notes, *([constant] if constant else [])],
    }


def tables(tested: Sequence[TestedDetector], criterion: str) -> Iterable[Table]:
    """A line per test image, and a line per box."""
    data = tested[0].data
    columns, groups = [*CASE_COLUMNS, *SCORE_COLUMNS], numbered(data.groups)
    rows = [
        {"group": groups[case.row], **item.round.kept, **case_row(case, item.thresholds, criterion)}
        for item in tested
        for case in item.cases
    ]
    yield Table("cases.csv", columns, rows)
    found = [
        {**item.round.marks, **row}
        for item in tested
        for case in item.cases
        for row in finding_rows(case, data.classes, item.thresholds)
    ]
    yield Table("findings.csv", [*tested[0].round.marks, *found_columns(data.source.dims)], found)


def verdicts(summary: Mapping[str, Any]) -> Iterable[str]:
    """CPM, sensitivity and precision, AP; detection ratio where most images have one finding."""
    mean, top = summary["test"]["mean"], summary["test"]["top_one"]
    cpm, key = mean["cpm"], VALIDATION_AP[summary["encoder"]["dims"]]
    over = "resamples" if "low" in cpm else "folds" if "folds" in cpm else "seeds"
    text = (
        f"CPM {100 * cpm['value']:.2f} ± {100 * cpm['std']:.2f} % (± over {over}), sensitivity "
        f"{_shown(mean['sensitivity'])}, precision {_shown(mean['precision'])}, AP at IoU "
        f"{'0.5' if key == 'ap_50' else '0.1'} {_shown(mean[key])}"
    )
    if mostly_single(summary["test"]):
        text += (
            f"; of images with one finding: IoU {_shown(top['iou']['mean'])}, detection ratio "
            f"{_shown(top['centre_ratio'])}"
        )
    text += f" ({in_words(summary['train'])}; guide: {summary['guide']})."
    if "usual" in summary["baselines"]:
        text += f" Without an encoder: usual box AP {_shown(summary['baselines']['usual'][key])}."
    yield f"{text} {summary['constant']}" if summary["constant"] else text


def _usual(tested: Sequence[TestedDetector]) -> dict[str, dict[str, float]]:
    """Average precision of the usual boxes, mean over heads; empty where nobody knows them."""
    found = []
    for item in tested:
        if item.usual is not None:
            truths, sizes = [case.case.truth for case in item.cases], [item.data.shapes[c.row] for c in item.cases]
            found.append(usual_precision(item.usual, truths, sizes, len(item.data.classes)))
    return {"usual": {level: summarise(each[level] for each in found).mean for level in found[0]}} if found else {}


def _over_heads(tested: Sequence[TestedDetector]) -> dict[str, Any]:
    """Mean and standard deviation over heads of every score, with the scores of each fold and seed."""
    folds, seeds = [item.round.fold for item in tested], [item.round.seed for item in tested]

    def spread(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Mapping):
            if "value" in values[0]:
                return spread([value["value"] for value in values])
            return {name: spread([value[name] for value in values]) for name in values[0] if name != "froc"}
        if isinstance(values[0], int | float):
            return over_heads(values, folds, seeds)
        return values[0]

    parts = {name: spread([item.scores[name] for item in tested]) for name in ("mean", "per_class", "top_one")}
    counts = {name: sum(item.scores[name] for item in tested) // len(set(seeds)) for name in ("images", "findings")}
    return {"criterion": tested[0].scores["criterion"], **counts, **parts}


def _blind(tested: Sequence[TestedDetector]) -> Iterable[str]:
    """Which classes have no threshold, and in which heads."""
    for k, name in enumerate(tested[0].data.classes):
        blind = [item.round for item in tested if math.isnan(item.thresholds[k])]
        if blind:
            where = "; ".join(one.words for one in blind)
            yield (
                f"No box hit a finding of {name} on the images the threshold is chosen on{where and f' ({where})'}: "
                "there is no threshold, and sensitivity and precision count no box as found. CPM and average precision "
                "need none."
            )


def _shown(score: Any) -> str:
    value = score["value"] if isinstance(score, Mapping) else score
    return f"{100 * value:.2f} %" if math.isfinite(value) else "not defined"
