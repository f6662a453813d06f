"""Many images at a time: as points in a plane, and as small pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from frepa.names import shown
from frepa.report.canvas import COLOURS, INK, QUIET, bare, new_figure

# More classes than colours are told apart by shape.
_SHAPES = ("o", "s", "^", "D", "v", "P", "X")
_MOST_NAMES, _NAME, _CAPTION = 24, 28, 20
# Of a row of a contact sheet with its words, and around a picture; a picture with its gap is 1.
_HEIGHT, _GAP = 1.16, 0.02


def scatter(points: np.ndarray, labels: Sequence[str | None]) -> Figure:
    """Points ``(n, 2)`` in the colours of their classes; those without one are grey and behind."""
    kinds = sorted({label for label in labels if label is not None}, key=_by_value)
    figure = new_figure(7.2 if kinds else 5.4, 4.6)
    axes = figure.add_subplot()
    size = float(np.clip(6000 / max(len(points), 1), 5, 40))
    unknown = np.array([label is None for label in labels], dtype=bool)
    x, y = points.T
    axes.scatter(x[unknown], y[unknown], s=size, c=QUIET, linewidths=0, alpha=0.6, label="unknown")
    for number, kind in enumerate(kinds):
        here = np.array([label == kind for label in labels], dtype=bool)
        axes.scatter(
            x[here],
            y[here],
            s=size,
            c=COLOURS[number % len(COLOURS)],
            marker=_SHAPES[number // len(COLOURS) % len(_SHAPES)],
            linewidths=0,
            alpha=0.75,
            label=f"{_cut(kind, _NAME)} ({here.sum():,})" if number < _MOST_NAMES else None,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    bare(axes)
    if kinds:
        handles, names = axes.get_legend_handles_labels()
        first = 0 if unknown.any() else 1
        legend = figure.legend(
            handles[first:], names[first:], loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK
        )
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([36])  # points of many images are small
    return figure


def contact_sheet(rows: Sequence[Sequence[np.ndarray | None]], words: Sequence[Sequence[str]]) -> Figure:
    """Small pictures ``(C, H, W)`` uint8, C = 1 or 3, in rows, with words under each; the first of a row is framed.

    A picture that is None leaves its place empty but for the words.
    """
    across = max(len(row) for row in rows)
    figure = new_figure(across * 1.3, len(rows) * 1.5)
    # One plane for all, in pictures: a plane for each would take seconds to lay out
    axes = figure.add_subplot()
    bare(axes)
    for down, (row, captions) in enumerate(zip(rows, words)):
        top = down * _HEIGHT
        for right, (picture, caption) in enumerate(zip(row, captions)):
            place = (right + _GAP, right + 1 - _GAP, top + 1 - _GAP, top + _GAP)
            if picture is not None:
                image = picture[0] if picture.shape[0] == 1 else np.moveaxis(picture, 0, -1)
                axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=place)
            axes.text(right + 0.5, top + 1, _cut(caption, _CAPTION), fontsize=7.5, color=INK, ha="center", va="top")
        side = 1 - 2 * _GAP
        axes.add_patch(Rectangle((_GAP, top + _GAP), side, side, fill=False, edgecolor=COLOURS[1], linewidth=2))
    axes.set(xlim=(0, across), ylim=(len(rows) * _HEIGHT, 0), aspect="equal")
    return figure


def _by_value(name: str) -> tuple[float, str]:
    """Numbers by value, then names."""
    return (float(name), "") if name.isdigit() else (float("inf"), name)


def _cut(name: str, most: int) -> str:
    name = shown(name)
    return name if len(name) <= most else name[: most - 1] + "…"
