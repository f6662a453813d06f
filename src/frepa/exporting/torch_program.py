"""A file for ``torch.export.load``: the network with its weights, for torch alone, without frepa."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from frepa.encoders.contract import Encoder
from frepa.exporting.contract import Asked, Exported, Outputs, Target, version
from frepa.exporting.program import Traced, trace

NAME = "encoder.pt2"


def write(encoder: Encoder, folder: Path, asked: Asked) -> Exported:
    """Write ``encoder.pt2`` and let torch open it.

    Raises:
        InputError: the encoder cannot be traced.
    """
    traced = trace(encoder, "torch", asked)
    try:
        _save(traced, folder)
    except Exception:  # torch's own: it can trace operations on extents that it cannot write down
        traced = trace(encoder, "torch", asked, any_size=False)
        _save(traced, folder)
    module = torch.export.load(folder / NAME).module()

    def run(x: Tensor) -> Outputs:
        return dict(zip(traced.outputs, module(x)))

    return Exported(
        run=run,
        shapes=traced.shapes,
        sizes=traced.sizes,
        opened_by=version(torch),
        opens=f'torch.export.load("FOLDER/{NAME}").module()(image)  # {", ".join(traced.outputs)}',
    )


def _save(traced: Traced, folder: Path) -> None:
    # They would be kept as a pickle; without them the file holds JSON and raw tensors
    traced.program.example_inputs = None
    torch.export.save(traced.program, folder / NAME)


TARGET = Target(write, makes_guide=True)
