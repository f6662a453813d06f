"""The page of a downstream run: what is the same for every task."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frepa.downstream.tuning import in_words
from frepa.files import read_json_lines
from frepa.report.figures import loss_curves
from frepa.report.page import MeanStd, Page
from frepa.run_folders import CONFIG

# Longer lists are in cases.csv beside the page.
_MOST_CASES_SHOWN = 200


class RunPage(Page):
    """A report that a task fills from top to bottom; `finish` adds how the run was made and writes it.

    Attributes:
        root: the run folder.
        summary: what ``results.json`` holds.
    """

    def __init__(self, root: Path, summary: Mapping[str, Any]) -> None:
        self.root, self.summary = root, summary
        super().__init__(f"{summary['task'].capitalize()} with {summary['encoder']['name']}")

    def begin(self, about: str, facts: Mapping[str, Any]) -> None:
        """Subtitle and key facts; ``facts`` are the task's own."""
        encoder, training = self.summary["encoder"], self.summary["training"]
        applied = "" if training else "a trained head, applied as it is; "
        state = f"{applied}{in_words(self.summary['train'])}"
        self.subtitle = f"{about}; {state}, guide channel: {self.summary['guide']}"
        blocks = {"Trained with the head": f"{encoder['trained'] / 1e6:.2f} M in blocks"} if encoder["trained"] else {}
        if "tuned" in self.summary:
            rates = self.summary["tuned"]
            blocks["Rates of the encoder"] = f"{rates['encoder_lr']:g}, x {rates['layer_decay']:g} from layer to layer"
        steps = {item["steps"] for item in training}
        heads = len(training) or len(self.summary["heads"])
        own: dict[str, Any] = {"Heads": heads if training else f"{heads}, averaged"} if heads > 1 else {}
        if len(steps) == 1:
            own["Steps"] = training[0]["steps"]
        if len(training) == 1:
            own["Head kept from step"] = training[0]["best_step"]
        seconds = sum(item["seconds"] for item in training)
        if training:
            own["Training"] = f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
        self.facts(
            {
                "Encoder": encoder["name"],
                "Pretrained by": encoder["method"] or "not stated",
                "Guide channel": self.summary["guide"],
                "Encoder parameters": f"{encoder['parameters'] / 1e6:.2f} M",
                **blocks,
                **facts,
                **own,
                "Device": self.summary["device"],
            }
        )

    def remarks(self, of_the_guide: str) -> None:
        """The warnings; and where there is a guide, what it does by itself: ``of_the_guide`` is a sentence."""
        for sentence in self.summary["warnings"]:
            self.note(sentence, level="warning")
        if self.summary["guide"] != "none":
            self.note(
                f"{of_the_guide} Compare with encoders that were given the same channel; the floor is an untrained "
                f"one: `{self.summary['encoder']['untrained']}`."
            )

    def training(self, loss: str, key: str, name: str, caption: str, solved: Sequence[str] = ()) -> None:
        """Loss and validation score over the steps, a curve per head.

        Args:
            loss: caption of the loss.
            key: of the score in ``metrics.jsonl``, a fraction; ``name`` and ``caption`` are shown with it.
            solved: sentences about what was solved in closed form.
        """
        if not self.summary["training"]:
            return
        self.section("Training")
        for sentence in dict.fromkeys(solved):
            self.text(sentence)
        path = self.root / "metrics.jsonl"
        lines = read_json_lines(path)
        if losses := courses(lines, "loss"):
            longest = max(len(steps) for steps, _ in losses.values())
            self.figure(loss_curves(losses, smooth=max(1, longest // 50)), loss)
        if losses and (scores := courses(lines, key, 100)):
            self.figure(
                loss_curves(scores, ylabel=f"validation {name} (%)"),
                f"{caption}; the head of the highest point was kept.",
            )

    def finish(self) -> Path:
        """Add the test cases, the configuration and the versions, and write ``report.html``."""
        self.section("How it was made")
        lines = (self.root / "cases.csv").read_text(encoding="utf-8").splitlines()
        more = len(lines) - 1 - _MOST_CASES_SHOWN
        shown = lines[: _MOST_CASES_SHOWN + 1] + ([f"({more:,} more in cases.csv)"] if more > 0 else [])
        self.code("Test cases", "\n".join(shown))
        self.code("Configuration", (self.root / CONFIG).read_text(encoding="utf-8"))
        versions = "\n".join(f"{name} {number}" for name, number in self.summary["versions"].items())
        self.code("Encoder and versions", f"{json.dumps(self.summary['encoder'], indent=2)}\n\n{versions}")
        return self.save(self.root / "report.html")


def courses(lines: Sequence[Mapping[str, Any]], key: str, factor: float = 1) -> dict[str, tuple[Any, Any]]:
    """``{name: (steps, values)}`` of every head, points without a value left out; one head is called by ``key``."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        value = line.get(key)
        if value is not None and math.isfinite(value):
            marks = ", ".join(f"{name} {line[name]}" for name in ("fold", "seed") if name in line)
            points.setdefault(marks or key, []).append((line["step"], factor * value))
    return {name: tuple(np.asarray(own).T) for name, own in points.items()}


def best_median_worst(scores: Sequence[float], names: Sequence[str]) -> list[tuple[str, int]]:
    """Places of the cases with the highest, middle and lowest score, as far as there are; NaN are left out.

    Of equal scores the first by name is the best.
    """
    ranked = sorted(
        (place for place, score in enumerate(scores) if math.isfinite(score)),
        key=lambda place: (-scores[place], names[place]),
    )
    if not ranked:
        return []
    chosen: dict[int, str] = {}
    for word, place in {"best": 0, "median": (len(ranked) - 1) // 2, "worst": len(ranked) - 1}.items():
        chosen.setdefault(place, word)
    return [(word, ranked[place]) for place, word in chosen.items()]


def percent(score: Any) -> Any:
    """A table cell in per cent: a score, or its mean and spread over heads or resamples."""
    if isinstance(score, Mapping):
        return MeanStd(100 * value_of(score), 100 * value_of(score["std"]))
    return 100 * value_of(score)


def value_of(score: Any) -> float:
    """A score, or its mean over heads; NaN where it is not defined."""
    value = score["value"] if isinstance(score, Mapping) else score
    return math.nan if value is None else float(value)
