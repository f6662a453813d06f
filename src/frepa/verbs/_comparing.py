"""What comparisons are made of: the verbs that train and test heads, and rows that need no encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from frepa.comparison.baselines.guide import OPTIONS as GUIDE
from frepa.comparison.baselines.guide import guide_alone
from frepa.comparison.baselines.observer import OPTIONS as OBSERVER
from frepa.comparison.baselines.observer import second_observer
from frepa.comparison.cells import Baseline
from frepa.comparison.study import StudyTask
from frepa.verbs.classify import classify
from frepa.verbs.detect import detect
from frepa.verbs.segment import segment

VERBS: dict[str, Callable[..., Any]] = {"segment": segment, "classify": classify, "detect": detect}
#: Of the supervised network; a task's own options are taken where None stands here. The Dice loss alone leaves a U-Net
#: where the pixels' brightness put it; with cross entropy it learns shapes.
_SUPERVISED: dict[str, Any] = {
    "max_steps": None, "epochs": None, "batch_size": None, "lr": None, "crop_size": None, "loss": "dice_ce"
}  # fmt: skip


def supervised(
    task: StudyTask,
    *,
    out: str,
    seed: int,
    options: Mapping[str, Any],
    dims: int,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Any:
    """A small network trained end to end on the same cases: MONAI's BasicUNet, or a ResNet for classes."""
    own = {name: value for name, value in options.items() if value is not None}
    given = {**task.options, **own, "encoder": f"pixels:{dims}d", "seed": seed, "out": out, "num_workers": 0}
    given |= {"resume": resume, "overwrite": overwrite, "quiet": quiet}
    given.pop("reach", None)
    if task.verb == "segment":
        return segment(task.sources, **{**given, "features": "last", "head": "unet"})
    assert isinstance(task.source, str)
    for name in ("crop_size", "loss"):
        given.pop(name, None)
    return classify(task.source, **{"augment": True, **given, "head": "resnet"})


BASELINES: dict[str, Baseline] = {
    "guide": Baseline(guide_alone, ("segment",), GUIDE, False, "guide alone, thresholded"),
    "supervised": Baseline(supervised, ("segment", "classify"), _SUPERVISED, True, "network trained end to end"),
    "observer": Baseline(second_observer, ("segment",), OBSERVER, False, "second observer"),
}
