"""The options of every method of this program, as ``frepa.methods.Frepa`` and so on, and what a new method needs."""

from __future__ import annotations

from frepa.pretraining.methods.clip import CLIP
from frepa.pretraining.methods.contract import Batch, Method, Pictures, Setting, StepResult
from frepa.pretraining.methods.frepa import Frepa
from frepa.pretraining.methods.mae import MAE
from frepa.pretraining.methods.masked import MFM, SimMIM
from frepa.pretraining.methods.registry import register_method

__all__ = [
    "CLIP",
    "MAE",
    "MFM",
    "Batch",
    "Frepa",
    "Method",
    "Pictures",
    "Setting",
    "SimMIM",
    "StepResult",
    "register_method",
]
