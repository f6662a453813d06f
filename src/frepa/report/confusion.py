"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from frepa.names import shown
from frepa.report.canvas import INK, QUIET, bare, new_figure

# With more classes than this the cells are too small for numbers.
_MOST_NUMBERED = 16


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Cases by true class (rows) and predicted class (columns), coloured by their share of the row.

    Args:
        counts: ``(K, K)`` whole numbers.
        names: of the classes.
    """
    counts = np.asarray(counts)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"a matrix of shape {counts.shape} for {len(names)} names")
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(9.0, 2.2 + 0.75 * len(names))
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    bare(axes)
    names = [shown(name) for name in names]
    axes.set_xticks(
        range(len(names)), names, rotation=45 if len(names) > 4 else 0, ha="right" if len(names) > 4 else "center"
    )
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.set_xlabel("predicted", color=QUIET, fontsize=9.5)
    axes.set_ylabel("true", color=QUIET, fontsize=9.5)
    if len(names) <= _MOST_NUMBERED:
        for row in range(len(names)):
            for column in range(len(names)):
                dark = share[row, column] > 0.55
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=9.5,
                          color="white" if dark else INK)  # fmt: skip
    return figure
