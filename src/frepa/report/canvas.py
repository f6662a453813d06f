"""What all figures share: colours, an empty figure, calm axes, the plane that is shown of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito: told apart with every common form of colour blindness, and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#A8A000")
INK, QUIET, LINE = "#22252a", "#62676f", "#dfe0dc"


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def dress(axes: Axes, xlabel: str, ylabel: str, *, legend: bool) -> None:
    """Calm axes: no box, faint grid, quiet labels."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.set_axisbelow(True)
    axes.grid(True, color=LINE, linewidth=0.7)
    axes.tick_params(colors=QUIET, labelsize=9, length=0)
    axes.set_xlabel(xlabel, color=QUIET, fontsize=9.5)
    axes.set_ylabel(ylabel, color=QUIET, fontsize=9.5)
    if legend:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def plane(image: np.ndarray) -> np.ndarray:
    """(C, H, W) or (C, D, H, W) -> the image, or the middle slice, as (H, W) or (H, W, 3)."""
    if image.ndim == 4:
        image = image[:, image.shape[1] // 2]
    return image[0] if image.shape[0] == 1 else np.moveaxis(image[:3], 0, -1)


def pixel_size(voxels: Sequence[float] | None) -> tuple[float, float]:
    """Height and width of a pixel of `plane`, in any unit, from the extents per axis; (1, 1) where they are unknown."""
    return (1.0, 1.0) if voxels is None else (float(voxels[-2]), float(voxels[-1]))


def planes(image: np.ndarray) -> list[np.ndarray]:
    """What is shown of an image: (C, H, W) -> itself; (C, D, H, W) -> the middle planes across each axis.

    Each is (H, W) or (H, W, 3). In the planes that hold the first axis of a volume it points upwards, so that heads are
    at the top where slices run from feet to head.
    """
    if image.ndim == 3:
        return [plane(image)]
    middle = [np.take(image, n // 2, axis=axis) for axis, n in enumerate(image.shape[1:], start=1)]
    return [plane(middle[0]), *(plane(cut[:, ::-1]) for cut in middle[1:])]
