"""What an analysis is: from encoders and images to numbers, figures and a page.

An analysis has its options (a frozen dataclass, whose docstring explains each) and answers one question. What is the
same for all of them, the encoders, the source, the folder, the page, is in `frepa.analysis.run`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from frepa.analysis.parts import Parts
from frepa.datasets.cases import SegmentationSet
from frepa.downstream.trained import TrainedHead
from frepa.encoders.contract import Encoder
from frepa.encoders.reference import EncoderReference
from frepa.files import file_digest, write_bytes
from frepa.images.hidden_names import Names
from frepa.report.figures import png_bytes, svg_bytes
from frepa.report.page import Page

#: Where the figures are, in the folder of an analysis.
FIGURES = "figures"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Subject:
    """An encoder that is looked at.

    Attributes:
        name: what it is called on the page; unique.
        encoder: frozen, in evaluation mode, on the study's device.
        reference: where it is from.
        head: the trained head that it was taken from, where the user named a run of one; else None.
    """

    name: str
    encoder: Encoder
    reference: EncoderReference
    head: TrainedHead[Any] | None = None

    @cached_property
    def content(self) -> tuple:
        """What decides its features: weights, how they are read, and those of the head; no place."""
        known, source = self.reference, self.reference.source
        # What follows the first comma changes how an encoder is read, which the weights alone do not tell.
        options = "" if os.path.exists(source) else source.partition(",")[2]
        heads = [] if self.head is None else [file_digest(file) for file in self.head.files]
        return known.weights, known.name, known.dims, known.guide, known.untrained, options, heads

    @torch.no_grad()
    def dense(self, images: Tensor, guide_of: Tensor | None = None) -> Tensor:
        """The dense map (B, channels, *s) float32 of images (B, C, *S) in [0, 1].

        The guide is that of the images themselves, or of ``guide_of``.
        """
        encoder = self.encoder
        guide = encoder.make_guide(images if guide_of is None else guide_of)
        return encoder(encoder.prepare_input(images, guide)).dense.float()


@dataclass(frozen=True, kw_only=True)
class Study:
    """What an analysis is given.

    Attributes:
        source: as the user named it.
        dims: 2 or 3.
        subjects: the encoders; none where the analysis needs none.
        image_size: longer side that images are resized to; None keeps their own resolution.
        crop_size: side of the parts of an image that are looked at, in pixels; None is the analysis's own.
        images: most images, or parts of images, of each part of the source; None is the analysis's own.
        window: CT window by name.
        batch_size: images that pass through an encoder at once.
        seed: of every random draw.
        num_workers: threads that read ahead.
        device: where is computed.
        quiet: no progress bars.
        names: what stands for names of files; told of every source that is opened.
        notes: sentences for the user, added to on the way.
        inputs: further facts about how images were found and shown, for ``results.json``; added to on the way.
        parts: what is finished of an analysis that is gone on with; see `part`.
    """

    source: str
    dims: int
    subjects: tuple[Subject, ...] = ()
    image_size: int | None = None
    crop_size: int | None = None
    images: int | None = None
    window: str | None = None
    batch_size: int = 16
    seed: int = 0
    num_workers: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quiet: bool = True
    names: Names = field(default_factory=Names)
    notes: list[str] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)
    parts: Parts = field(default_factory=Parts)

    def learn(self, sets: Iterable[SegmentationSet]) -> None:
        """Let `names` know the names in labelled sets."""
        for case in (case for item in sets for case in item.cases):
            self.names.learn(case.source)

    def part(self, compute: Callable[[], Value], *what: Any, subject: Subject | None = None) -> Value:
        """What ``compute`` gives, or gave before the analysis was cut off.

        Images are made known first (`Parts.know`), as `frepa.analysis.views.open_views` does.

        Args:
            compute: gives tensors and plain values in dicts, lists and tuples, and may add to ``notes``.
            what: tells the part from the others of the analysis, by plain values.
            subject: the encoder it is of.
        """
        return self.parts.result((*what, () if subject is None else subject.content), compute, self.notes)

    def each(self, items: Iterable[Any], desc: str, total: int | None = None) -> Iterator[Any]:
        """``items`` under a progress bar."""
        return iter(tqdm(items, desc=desc, total=total, disable=self.quiet, leave=False, dynamic_ncols=True))


class AnalysisPage(Page):
    """A page whose figures are also files, ``figures/NAME.png`` and ``figures/NAME.svg``.

    Nothing is written before `write`: an analysis that finds nothing to look at leaves an earlier one as it was.
    """

    def __init__(self, title: str, subtitle: str) -> None:
        super().__init__(title, subtitle)
        self.files: dict[str, tuple[bytes, bytes]] = {}

    def show(self, name: str, figure: Figure, caption: str, *, wide: bool = False) -> None:
        """A figure on the page and in its two files."""
        self.files[name] = png_bytes(figure), svg_bytes(figure)
        self.figure(self.files[name][0], caption, wide=wide)

    def write(self, root: Path, before: Iterable[str] = ()) -> None:
        """Write the figures and ``report.html``; of the figures that were there ``before`` others go."""
        folder = root / FIGURES
        folder.mkdir(exist_ok=True)
        for name in set(before) - set(self.files):
            for ending in ("png", "svg"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
        for name, contents in self.files.items():
            for ending, content in zip(("png", "svg"), contents):
                write_bytes(folder / f"{name}.{ending}", content, sync=False)
        self.save(root / "report.html")


@dataclass(frozen=True)
class Found:
    """What an analysis gives back.

    Attributes:
        numbers: plain values for ``results.json``.
        scores: the few that matter, by encoder and name: what ``.scores`` of the result shows.
    """

    numbers: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, float]]


class Analysis(ABC):
    """Base of all analyses, built as ``Analysis(options)``; see `frepa.analysis.registry`.

    title, question: on top of the page. least: encoders it cannot do without. reads_runs: whether a run of ``frepa
    segment`` or ``frepa classify`` may stand for an encoder, and its head is used.
    """

    title: ClassVar[str]
    question: ClassVar[str]
    least: ClassVar[int] = 1
    reads_runs: ClassVar[bool] = False

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self) -> None:
        """Raise InputError for options out of range; called before anything is read."""
        return None

    @abstractmethod
    def analyse(self, study: Study, page: AnalysisPage) -> Found:
        """Measure, and fill the page from top to bottom.

        Raises:
            InputError: the source does not hold what is needed.
        """
