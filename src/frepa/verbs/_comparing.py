"""What comparisons are made of: the verbs that train and test heads, and rows that need no encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from frepa.comparison.cells import Baseline
from frepa.verbs.classify import classify
from frepa.verbs.detect import detect
from frepa.verbs.segment import segment

VERBS: dict[str, Callable[..., Any]] = {"segment": segment, "classify": classify, "detect": detect}
BASELINES: dict[str, Baseline] = {}
