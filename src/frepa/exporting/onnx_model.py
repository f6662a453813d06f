"""An ONNX file, compared by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor

from frepa.encoders.contract import Encoder
from frepa.errors import InputError, first_line
from frepa.exporting.contract import Asked, Exported, Outputs, Target, version
from frepa.exporting.program import INPUT, Traced, trace

NAME = "encoder.onnx"
# What one file of protocol buffers can hold
_MOST_BYTES = 2**31 - 2**20


def write(encoder: Encoder, folder: Path, asked: Asked) -> Exported:
    """Write ``encoder.onnx`` and let onnxruntime open it.

    Raises:
        InputError: the encoder cannot be traced, or has operations that ONNX has not.
    """
    import onnxruntime

    traced = trace(encoder, "onnx", asked)
    _convert(encoder, traced, folder / NAME)
    session = onnxruntime.InferenceSession(str(folder / NAME), providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Outputs:
        found = session.run(list(traced.outputs), {INPUT: x.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(traced.outputs, found)}

    return Exported(
        run=run,
        shapes=traced.shapes,
        sizes=traced.sizes,
        opened_by=version(onnxruntime),
        opens=f'onnxruntime.InferenceSession("FOLDER/{NAME}").run({list(traced.outputs)}, {{"{INPUT}": image}})',
    )


def _convert(encoder: Encoder, traced: Traced, path: Path) -> None:
    size = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            converted = torch.onnx.export(
                traced.program,
                dynamo=True,
                input_names=[INPUT],
                output_names=list(traced.outputs),
                verbose=False,
            )
        except Exception as error:
            raise InputError(
                f"--to onnx: {encoder.name} cannot be written as ONNX ({first_line(error)[:200]}). Use --to torch."
            ) from None
        assert converted is not None
        converted.save(path, external_data=size > _MOST_BYTES)


TARGET = Target(write, needs=("onnx", "onnxscript", "onnxruntime"), makes_guide=True)
