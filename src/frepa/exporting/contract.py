"""What an export is: an encoder in the files of another program, opened again by that program's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from frepa.encoders.contract import Encoder, Features, per_axis
from frepa.errors import InputError

# Pixels per side where an encoder has no size of its own.
_SIDE = {2: 256, 3: 64}

Outputs = Mapping[str, Tensor]
#: What the outputs of an exported encoder are called, as far as it has them.
OUTPUTS = ("dense", "embedding")


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    source: the encoder as the user named it, for messages. image_size: side in pixels, or None for the encoder's own.
    with_guide: what is exported makes the guide channel itself.
    """

    source: str
    image_size: int | None = None
    with_guide: bool = False

    def channels(self, encoder: Encoder) -> int:
        """Channels of the exported input: the image's, and the guide's where it is not made inside."""
        return encoder.image_channels + (encoder.guide != "none" and not self.with_guide)

    def shape(self, encoder: Encoder) -> tuple[int, ...]:
        """Extents (*S) of the images that the export is for, multiples of what the encoder works in.

        Raises:
            InputError: the image size that was asked for is no such multiple.
        """
        steps = per_axis(encoder.size_multiple, encoder.dims)
        side = self.image_size or encoder.options.get("image_size") or _SIDE[encoder.dims]
        if self.image_size is not None and (side < 1 or any(side % step for step in steps)):
            raise InputError(
                f"--image-size {side}: {encoder.name} works in multiples of {max(steps)} pixels. Give "
                f"{max(1, round(side / max(steps))) * max(steps)}."
            )
        return tuple(-(-side // step) * step for step in steps)


@dataclass(frozen=True)
class Exported:
    """What was written, opened again.

    run: the outputs of what the other program's own code opened, for an input (B, channels, *S) as it takes it.
    shapes: extents (*S) to compare at. sizes: which extents it takes, in words. opened_by: name and version of the
    program. opens: lines of Python that open it. notes: what a user must know besides.
    """

    run: Callable[[Tensor], Outputs]
    shapes: tuple[tuple[int, ...], ...]
    sizes: str
    opened_by: str
    opens: str
    notes: tuple[str, ...] = ()


def features(encoder: Encoder, x: Tensor) -> Outputs:
    """``dense`` and, where it is another map, ``embedding`` of (B, in_channels, *S)."""
    return dict(zip(OUTPUTS, different(encoder(x))))


def different(found: Features) -> tuple[Tensor, ...]:
    """The maps that are not one and the same, in the order of `OUTPUTS`."""
    return (found.dense,) if found.dense is found.embedding else tuple(found)


@dataclass(frozen=True)
class Target:
    """A kind of file.

    write: writes an encoder into an empty folder and opens it again; InputError where the kind cannot express it.
    expected: what the outputs must equal, of the encoder as it was, by the same names.
    needs: packages beside what frepa asks for, each by the name it is imported by.
    makes_guide: whether it can hold the making of the guide.
    """

    write: Callable[[Encoder, Path, Asked], Exported]
    expected: Callable[[Encoder, Tensor], Outputs] = features
    needs: tuple[str, ...] = ()
    makes_guide: bool = False
    pip: str = field(default="frepa[export]")


def version(module: object) -> str:
    """``"onnx 1.23"`` of an imported module."""
    return f"{getattr(module, '__name__', '')} {getattr(module, '__version__', '')}".strip()
