"""An encoder as a program of tensors alone, traced by torch.export: what the torch and the ONNX file hold."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple
from unittest import mock

import timm.layers.padding
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from frepa.corruption.guide import guide_reach, plain_guide
from frepa.encoders.contract import Encoder, per_axis
from frepa.errors import InputError, first_line
from frepa.exporting.contract import OUTPUTS, Asked, different

INPUT = "image"
# Most images of a batch and pixels of a side that a program is proven for.
_MOST_IMAGES, _MOST_PIXELS = 4096, 16384


class Program(nn.Module):
    """``program(image (B, C, *S)) -> (dense,)`` or ``(dense, embedding)``.

    C is the image's channels and, where the encoder has a guide that is not made inside, one of guide. S are multiples
    of ``size_multiple``.
    """

    def __init__(self, encoder: Encoder, with_guide: bool = False) -> None:
        super().__init__()
        self.encoder, self.with_guide = encoder, with_guide
        if hasattr(encoder, "chunk"):  # pieces of a fixed number of slices would fix the number of slices
            self.encoder = copy.copy(encoder)
            self.encoder.chunk = 0  # type: ignore[assignment]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the order of their names, see `different`."""
        encoder = self.encoder
        if self.with_guide:
            image = encoder.prepare_input(image, plain_guide(image, encoder.guide))
        elif encoder.guide == "none":
            image = encoder.prepare_input(image)
        return different(encoder.extract(image))


class Traced(NamedTuple):
    """A program with what must be known about it.

    program: as torch.export gives it. outputs: their names. shapes: extents to compare at. sizes: which ones it takes,
    in words.
    """

    program: ExportedProgram
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    sizes: str


def trace(encoder: Encoder, to: str, asked: Asked, *, any_size: bool = True) -> Traced:
    """The program of an encoder: any number of images, and sizes that vary where the encoder's computation allows it.

    Attention in windows is computed by numbers of windows, which become part of the program: then one size is taken,
    and without ``any_size`` too.

    Raises:
        InputError: the encoder does what no such program can express.
    """
    shape = asked.shape(encoder)
    steps = per_axis(encoder.size_multiple, encoder.dims)
    if asked.with_guide:
        _check_guide(encoder, min(2 * step for step in steps))
    channels = asked.channels(encoder)
    module = Program(encoder, asked.with_guide).eval()
    images: dict[int, Any] = {0: Dim("batch", min=1, max=_MOST_IMAGES)}
    reason = ""
    if any_size and not _windowed(encoder):
        names = "DHW"[-encoder.dims :]
        varying = {
            axis: step * Dim(f"{name}_{step}", min=2, max=_MOST_PIXELS // step) if step > 1 else Dim(name, min=2)
            for axis, (name, step) in enumerate(zip(names, steps), start=2)
        }
        # Extents that differ, so that none is taken for another's
        example = tuple(step * number for step, number in zip(steps, (5, 3, 4)))
        try:
            program = _exported(module, (2, channels, *example), images | varying)
            least = " x ".join(str(2 * step) for step in steps)
            words = f"any number of images, any size from {least} in multiples of {_times(steps)}"
            return Traced(program, _outputs(program), (shape, example), words)
        except Exception as error:  # whatever a library does that has no symbol
            reason = str(error)
    try:
        program = _exported(module, (2, channels, *shape), images)
    except Exception as error:
        first = first_line(str(error) or reason, "no reason given")
        raise InputError(
            f"--to {to}: {encoder.name} computes what torch.export cannot write down ({first[:200]}). The encoder "
            "itself is in encoder.safetensors: open it with frepa.load_encoder."
        ) from None
    words = f"any number of images of {_times(shape)} (--image-size chooses it)"
    return Traced(program, _outputs(program), (shape,), words)


def _outputs(program: ExportedProgram) -> tuple[str, ...]:
    return OUTPUTS[: len(program.graph_signature.user_outputs)]


def _check_guide(encoder: Encoder, least: int) -> None:
    """Raise InputError where a program of any size cannot make this guide."""
    if type(encoder).make_guide is not Encoder.make_guide:
        raise InputError(
            f"--with-guide: {encoder.title} makes its guide slice by slice, which is not written into a program. Leave "
            f"the option out and give the {encoder.guide} guide as the last channel."
        )
    if guide_reach(encoder.guide) > least:
        raise InputError(
            f"--with-guide: the guide {encoder.guide} looks {guide_reach(encoder.guide)} pixels to either side, more "
            f"than the smallest image has ({least}). Leave the option out and give the guide as the last channel."
        )


def _exported(module: nn.Module, shape: tuple[int, ...], varying: dict[int, Any]) -> ExportedProgram:
    with warnings.catch_warnings(), mock.patch.object(timm.layers.padding, "get_same_padding", _same_padding):
        warnings.simplefilter("ignore")  # of what libraries do while they are traced
        example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        return torch.export.export(module, (example,), dynamic_shapes={INPUT: varying}, strict=False)


def _same_padding(extent: int, kernel_size: int, stride: int, dilation: int) -> int:
    """timm's: of its ceil(extent / stride) torch can write no file, and grows endless terms of it.

    A constant where the stride divides the extent, as it does of sizes that are multiples of ``size_multiple``.
    """
    reach = (kernel_size - 1) * dilation + 1
    rest = extent % stride
    return max(reach - (stride if rest == 0 else rest), 0)


def _windowed(encoder: Encoder) -> bool:
    """Whether some attention of it is in windows; all four libraries name their side so."""
    return any(getattr(module, "window_size", 0) not in (0, None) for module in encoder.modules())


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))
