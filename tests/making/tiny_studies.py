"""Small images and studies for the tests of analyses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import tiny_encoders  # noqa: F401 (registers them)
from frepa.analysis.contract import AnalysisPage, Study, Subject
from frepa.encoders.contract import Encoder, Features
from frepa.encoders.reference import EncoderReference
from frepa.heads.ridge import blocks_of

TINY = "random:tiny_for_tests,guide=none"
QUIET = {"quiet": True, "num_workers": 0}


def textures(shape: tuple[int, ...], count: int, seed: int, fall: float = 1.0) -> np.ndarray:
    """Noise whose amplitude falls as frequency^-fall, in [0, 1]: (count, *shape) float32. ``fall`` 0 is white."""
    rng = np.random.default_rng(seed)
    radius = np.sqrt(sum(np.square(f) for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    radius.flat[0] = 1
    axes = tuple(range(1, len(shape) + 1))
    found = np.fft.ifftn(np.fft.fftn(rng.normal(size=(count, *shape)), axes=axes) / radius**fall, axes=axes).real
    low, high = found.min(axis=axes, keepdims=True), found.max(axis=axes, keepdims=True)
    return ((found - low) / (high - low)).astype(np.float32)


def write_textures(folder: Path, count: int = 10, side: int = 40, fall: float = 1.0) -> Path:
    """PNG files of `textures`; npy volumes where ``side`` is negative."""
    folder.mkdir(parents=True)
    if side < 0:
        for number, image in enumerate(textures((-side,) * 3, count, 0, fall)):
            np.save(folder / f"{number:02}.npy", image)
        return folder
    for number, image in enumerate(textures((side, side), count, 0, fall)):
        Image.fromarray((image * 255).round().astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


class BlockEncoder(Encoder):
    """The pixels of every block of a grey image, all of them or by a matrix to fewer numbers."""

    def __init__(self, stride: int, dims: int = 2, matrix: Tensor | None = None) -> None:
        channels = stride**dims if matrix is None else matrix.shape[1]
        super().__init__(
            name="blocks", dims=dims, image_channels=1, guide="none", channels=channels, embedding_channels=channels,
            stride=stride, size_multiple=stride, options={},
        )  # fmt: skip
        self.matrix = matrix

    def extract(self, x: Tensor) -> Features:
        rows = blocks_of(x[:, :1], self.stride)
        grid = [n // self.stride for n in x.shape[2:]]
        rows = rows if self.matrix is None else rows @ self.matrix
        found = rows.view(len(x), *grid, -1).movedim(-1, 1)
        return Features(found, found)


def subject(encoder: Encoder, name: str = "blocks") -> Subject:
    """An encoder under a name, without a file."""
    reference = EncoderReference("nowhere", name, name, encoder.dims, 0, encoder.guide, None)
    return Subject(name, encoder.eval(), reference)


def study(source: Path, *encoders: Encoder, **given: object) -> Study:
    """A study of encoders without files."""
    subjects = tuple(subject(encoder, f"blocks {number}") for number, encoder in enumerate(encoders))
    chosen: dict = {"dims": encoders[0].dims if encoders else 2, "num_workers": 0, **given}
    return Study(source=str(source), subjects=subjects, **chosen)


class Unshown(AnalysisPage):
    """A page that keeps its figures undrawn: drawing takes longer than small studies do."""

    def __init__(self) -> None:
        super().__init__("title", "question")
        self.shown: dict[str, Figure] = {}

    def show(self, name: str, figure: Figure, caption: str, *, wide: bool = False) -> None:
        assert caption
        self.shown[name] = figure


def gaussian(rows: int, columns: int, seed: int) -> Tensor:
    """A random matrix."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / rows**0.5
