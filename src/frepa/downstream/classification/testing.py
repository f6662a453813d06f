"""Test of a classifier: the probabilities of every test image, and as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from frepa.downstream.classification.data import ClassificationData
from frepa.downstream.classification.model import Classifier
from frepa.downstream.contract import Tested
from frepa.downstream.division import numbered


@dataclass(frozen=True)
class TestedClassifier(Tested[ClassificationData, Classifier]):
    """One trained head on its test part: probabilities ``(n, K)`` in the order of ``rows``."""

    probabilities: np.ndarray

    __test__ = False  # no test class

    @property
    def rows(self) -> np.ndarray:
        """Rows of the data that were tested."""
        return self.data.rows("test")

    @property
    def targets(self) -> np.ndarray:
        """What is true of them, ``(n, K)``."""
        return self.data.targets[self.rows]

    @property
    def usual(self) -> np.ndarray | None:
        """See `shares`; None where nobody knows."""
        return shares(self.data)


@dataclass(frozen=True)
class AppliedClassifier(TestedClassifier):
    """Heads trained elsewhere on a set they have not seen; ``known`` are the `shares` of their own training part."""

    known: np.ndarray | None

    @property
    def usual(self) -> np.ndarray | None:
        """As it was known where the heads were trained."""
        return self.known


def shares(data: ClassificationData) -> np.ndarray:
    """Share of the training part that is of each class ``(K,)``: what a guess that is blind to the image goes by."""
    known: np.ndarray = data.targets[data.rows("train")].mean(0)
    return known


def case_rows(item: TestedClassifier) -> Iterator[dict[str, Any]]:
    """Lines of ``cases.csv``: what is true, what was answered, the probability of every class."""
    data, classes, groups = item.data, item.data.classes, numbered(item.data.groups)
    for row, found in zip(item.rows.tolist(), item.probabilities):
        true = [name for name, there in zip(classes, data.targets[row]) if there]
        said = [n for n, p in zip(classes, found) if p > 0.5] if data.several else [classes[found.argmax()]]
        line = {"case": data.source.name(int(data.records[row])), "group": groups[row], **item.round.kept}
        line |= {"truth": "|".join(true), "predicted": "|".join(said)}
        # With every digit: answers near 0 and 1 are told apart by their last ones, and the AUC ranks them.
        yield line | {f"p_{name}": repr(float(p)) for name, p in zip(classes, found)}
