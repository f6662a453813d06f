"""An export from the encoder to the folder: written aside, opened again, compared, and put in place if it is equal."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import frepa
from frepa.encoders.contract import Encoder
from frepa.encoders.files import describe
from frepa.encoders.reference import EncoderReference, open_encoder
from frepa.errors import InputError, first_line
from frepa.exporting.contract import Asked, Exported, Target
from frepa.exporting.registry import find_target
from frepa.exporting.unguided import without_guide
from frepa.files import write_atomically, write_json
from frepa.run_folders import out_folder

RECORD = "export.json"
#: Of the largest value of the encoder's own output (or of 1, where that is smaller). Float32 sums in another order
#: differ by some 1e-6 of it; a wrong weight, norm or axis by more than 1e-2.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference of an output, and the largest value of the encoder's own.

    shape: of the input that both were given.
    """

    output: str
    shape: tuple[int, ...]
    largest: float
    value: float

    @property
    def small(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return self.largest <= TOLERANCE * max(1.0, self.value)


def export_encoder(
    to: str, asked: Asked, *, out: str, overwrite: bool = False, tell: Callable[[str], None] = print
) -> Path:
    """Write an encoder for another program into ``out``; returns the folder.

    Raises:
        InputError: no such encoder or kind, a kind that cannot express the encoder, or outputs that differ.
    """
    target = find_target(to)
    with out_folder(out, "export", overwrite=overwrite, inputs={"the encoder": asked.source}) as folder:
        encoder, reference = open_encoder(asked.source)
        encoder.requires_grad_(False)
        _check(to, target, encoder, asked)
        with tempfile.TemporaryDirectory(prefix="frepa-export-") as aside:
            with torch.no_grad():
                exported = target.write(without_guide(encoder), Path(aside), asked)
                found = []
                for shape in exported.shapes:
                    found += _compare(target, exported, encoder, asked, shape)
            _refuse_large(to, found)
            folder.start()
            _put(Path(aside), folder.root)
        write_json(folder.root / RECORD, _record(to, encoder, reference, exported, asked, found))
    for line in _sentences(to, encoder, exported, asked, found):
        tell(line)
    return folder.root


def _check(to: str, target: Target, encoder: Encoder, asked: Asked) -> None:
    if not asked.with_guide:
        return
    if encoder.guide == "none":
        raise InputError(f"--with-guide: {encoder.name} has no guide. Leave the option out.")
    if not target.makes_guide:
        raise InputError(
            f"--with-guide: --to {to} holds the network alone, without what is computed before it. Export without the "
            f"option and give the {encoder.guide} guide as the last channel, or use --to onnx or --to torch."
        )


def _compare(
    target: Target, exported: Exported, encoder: Encoder, asked: Asked, shape: tuple[int, ...]
) -> list[Difference]:
    """Both on the same images: noise that is rough in some and smooth in others, in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand((2, encoder.image_channels, *shape), generator=random)
    image[1] = (image[1].cumsum(-1) - 0.5 * torch.arange(1, shape[-1] + 1)).mul(0.1).sigmoid()
    guide = encoder.make_guide(image) if asked.with_guide else torch.rand((2, 1, *shape), generator=random)
    whole = encoder.prepare_input(image, guide)
    given = whole[:, : asked.channels(encoder)]
    ours = target.expected(encoder, whole)
    try:
        theirs = exported.run(given)
    except (RuntimeError, ValueError, AssertionError) as error:  # of the other program, about what was written for it
        raise InputError(
            f"what was written does not run for an input of {' x '.join(map(str, given.shape))} "
            f"({first_line(error)[:200]}), and nothing was kept. Use another kind of export."
        ) from error
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"an export gave the outputs {sorted(theirs)} where {sorted(ours)} were expected.")
    return [_difference(name, tuple(given.shape), ours[name], theirs[name]) for name in ours]


def _difference(name: str, shape: tuple[int, ...], ours: Tensor, theirs: Tensor) -> Difference:
    if ours.shape != theirs.shape:
        return Difference(name, shape, math.inf, float(ours.abs().max()))
    return Difference(name, shape, float((ours - theirs).abs().max()), float(ours.abs().max()))


def _refuse_large(to: str, found: list[Difference]) -> None:
    for item in found:
        if not item.small:
            raise InputError(
                f"--to {to}: what was written does not give what the encoder gives: {item.output} differs by "
                f"{item.largest:.2g}, where its values reach {item.value:.2g}. Nothing was kept."
            )


def _put(aside: Path, root: Path) -> None:
    """Move everything to its place, each file in one step."""
    for path in sorted(path for path in aside.rglob("*") if path.is_file()):
        place = root / path.relative_to(aside)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, partial(shutil.move, path))


def _record(
    to: str, encoder: Encoder, reference: EncoderReference, exported: Exported, asked: Asked, found: list[Difference]
) -> dict[str, Any]:
    return {
        "to": to,
        "encoder": {
            "name": encoder.title,
            "method": reference.method,
            "weights": reference.weights,
            "contract": describe(encoder),
        },
        "input": {
            "channels": asked.channels(encoder),
            "holds": _channels(encoder, asked),
            "sizes": exported.sizes,
        },
        "opened_by": exported.opened_by,
        "opens": exported.opens,
        "notes": list(exported.notes),
        "differences": [asdict(item) for item in found],
        "largest_difference": max(item.largest for item in found),
        "tolerance": f"{TOLERANCE:g} of the largest value, or of 1 where that is smaller",
        "versions": {"frepa": frepa.__version__, "torch": torch.__version__},
    }


def _channels(encoder: Encoder, asked: Asked) -> str:
    """What the channels of the input are, in words."""
    count = encoder.image_channels
    image = f"{count} channel{'s' * (count > 1)} of image in [0, 1]"
    if encoder.guide == "none":
        return image
    if asked.with_guide:
        return f"{image}; the {encoder.guide} guide is made inside"
    return f"{image}, then the {encoder.guide} guide of the clean image as channel {count + 1}"


def _sentences(to: str, encoder: Encoder, exported: Exported, asked: Asked, found: list[Difference]) -> list[str]:
    outputs = list(dict.fromkeys(item.output for item in found))
    worst = {name: max(item.largest for item in found if item.output == name) for name in outputs}
    said = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    done = f"Encoder {encoder.title} written for {to} and opened again by {exported.opened_by}."
    return [
        f"{done} Largest difference: {said}.",
        f"Input: {_channels(encoder, asked)}; {exported.sizes}.",
        *exported.notes,
        exported.opens,
    ]
