"""frepa: pretrain medical image encoders that keep fine detail, in 2D and 3D, and measure how much they keep.

Every verb of the command line is a function here (``frepa.pretrain``, ``frepa.segment``, ...), and
``frepa.load_encoder`` and ``frepa.load_head`` bring a pretrained encoder or a trained head into Python. Nothing heavy
is imported before it is used.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frepa.downstream.trained import load_head
    from frepa.encoders.files import load_encoder
    from frepa.pretraining.methods import all as methods
    from frepa.verbs._result import RunResult
    from frepa.verbs.ablate import ablate
    from frepa.verbs.analyze import analyze
    from frepa.verbs.check import check
    from frepa.verbs.classify import classify
    from frepa.verbs.compare import compare
    from frepa.verbs.demo import demo
    from frepa.verbs.detect import detect
    from frepa.verbs.embed import embed
    from frepa.verbs.evaluate import evaluate
    from frepa.verbs.export import export
    from frepa.verbs.predict import predict
    from frepa.verbs.prepare import prepare
    from frepa.verbs.pretrain import pretrain
    from frepa.verbs.segment import segment

# Threads of one step that wait for each other spin before they sleep, so long that where another program takes one of
# two cores a step took 28 times as long; with a fifteenth of it 6.6 times, and on a calm machine as long as before.
# libgomp reads it when PyTorch is first imported; a wait policy that somebody set is left alone
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

try:
    __version__ = version("frepa")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

_WHERE = {
    "ablate": "frepa.verbs.ablate",
    "analyze": "frepa.verbs.analyze",
    "check": "frepa.verbs.check",
    "compare": "frepa.verbs.compare",
    "pretrain": "frepa.verbs.pretrain",
    "predict": "frepa.verbs.predict",
    "embed": "frepa.verbs.embed",
    "prepare": "frepa.verbs.prepare",
    "classify": "frepa.verbs.classify",
    "segment": "frepa.verbs.segment",
    "detect": "frepa.verbs.detect",
    "demo": "frepa.verbs.demo",
    "export": "frepa.verbs.export",
    "evaluate": "frepa.verbs.evaluate",
    "RunResult": "frepa.verbs._result",
    "load_encoder": "frepa.encoders.files",
    "load_head": "frepa.downstream.trained",
}

__all__ = [
    "RunResult", "ablate", "analyze", "check", "classify", "compare", "demo", "detect", "embed", "evaluate", "export",
    "load_encoder", "load_head", "methods", "predict", "prepare", "pretrain", "segment",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "methods":  # frepa.methods.Frepa(...): the options of the pretraining methods
        return importlib.import_module("frepa.pretraining.methods.all")
    if name not in _WHERE:
        raise AttributeError(f"module 'frepa' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
