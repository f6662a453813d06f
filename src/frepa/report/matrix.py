"""Tables of numbers in [0, 1] as coloured cells."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from frepa.names import shown
from frepa.report.canvas import INK, bare, new_figure


def heatmap(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Cells coloured from 0 to 1 with their number; NaN is left empty.

    Args:
        values: a row of cells for each of ``rows``, one for each of ``columns``.
    """
    cells = np.asarray(values, dtype=float)
    if cells.shape != (len(rows), len(columns)):
        raise ValueError(f"{cells.shape} cells for {len(rows)} rows and {len(columns)} columns")
    widest = max(len(name) for name in rows)
    figure = new_figure(1.2 + 0.075 * widest + 0.85 * len(columns), 1.5 + 0.5 * len(rows))
    axes = figure.add_subplot()
    axes.imshow(np.nan_to_num(cells), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    bare(axes)
    long = max(len(name) for name in columns) > 10
    words = [textwrap.fill(shown(name), 18) for name in columns]
    turn, side = (35, "right") if long else (0, "center")
    axes.set_xticks(range(len(columns)), words, rotation=turn, ha=side)
    axes.set_yticks(range(len(rows)), [shown(name) for name in rows])
    axes.tick_params(colors=INK, labelsize=9, length=0)
    for row, column in np.ndindex(*cells.shape):
        value = cells[row, column]
        if not math.isnan(value):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9.5,
                      color="white" if value > 0.55 else INK)  # fmt: skip
    return figure
