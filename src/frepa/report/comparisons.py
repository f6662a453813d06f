"""Many rows side by side: scores with their intervals, and mean ranks with what differs by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from frepa.names import shown
from frepa.report.canvas import COLOURS, INK, LINE, QUIET, dress, new_figure


def interval_plot(columns: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Figure:
    """Scores with their intervals, a panel per column and a line per row.

    Args:
        columns: title -> name of the row -> ``(value, low, high)``; NaN ends draw the value alone.
    """
    names = list(dict.fromkeys(name for own in columns.values() for name in own))
    figure = new_figure(2.0 + 2.6 * len(columns), 0.9 + 0.27 * len(names))
    panels = np.atleast_1d(figure.subplots(1, len(columns), sharey=True))
    for axes, (title, own) in zip(panels, columns.items()):
        for place, name in enumerate(names):
            if name in own:
                value, low, high = own[name]
                axes.plot([low, high], [place, place], color=QUIET, linewidth=1.6, solid_capstyle="round")
                axes.plot([value], [place], "o", color=COLOURS[0], markersize=5)
        axes.set_title(shown(title), fontsize=9.5, color=INK)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), [shown(name) for name in names])
        dress(axes, "", "", legend=False)
    return figure


def critical_difference_diagram(
    ranks: Mapping[str, float], difference: float, groups: Sequence[tuple[int, int]]
) -> Figure:
    """Mean ranks on a line, the best on the left, and what differs by chance joined by bars (Demšar 2006).

    Args:
        ranks: mean rank by name, 1 the best.
        difference: the critical one, drawn as a length above the line; NaN draws none.
        groups: first and last place, in the order of ranks, of what does not differ beyond chance.
    """
    names = sorted(ranks, key=lambda name: ranks[name])
    values = [ranks[name] for name in names]
    count, half = len(names), (len(names) + 1) // 2
    depth = 0.28 * len(groups) + 0.35
    figure = new_figure(8.4, 1.15 + 0.26 * (half + len(groups)))
    axes = figure.add_subplot()
    span = max(count - 1, 1)
    left, right = 1 - 0.12 * span, count + 0.12 * span
    axes.plot([1, max(count, 2)], [0, 0], color=INK, linewidth=1.2)
    every = -(-count // 12)  # more numbers than a dozen would touch each other
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [0, 0.12], color=INK, linewidth=1)
        if (tick - 1) % every:
            continue
        axes.text(tick, 0.2, str(tick), ha="center", va="bottom", fontsize=9, color=QUIET)
    for place, (name, value) in enumerate(zip(names, values)):
        on_left = place < half
        row = place if on_left else count - 1 - place
        y = -depth - 0.42 * row
        end = left if on_left else right
        axes.plot([value, value, end], [0, y, y], color=LINE if count > 24 else QUIET, linewidth=0.9)
        axes.plot([value], [0], "o", color=COLOURS[0], markersize=4.5)
        text = f"{shown(name)}  {value:.2f} " if on_left else f" {value:.2f}  {shown(name)}"
        axes.text(end, y, text, ha="right" if on_left else "left", va="center", fontsize=9.5, color=INK)
    for number, (first, last) in enumerate(groups):
        y = -0.2 - 0.28 * number
        axes.plot([values[first] - 0.02 * span, values[last] + 0.02 * span], [y, y], color=COLOURS[1], linewidth=3.4,
                  solid_capstyle="round")  # fmt: skip
    if difference == difference:
        length = min(difference, span)
        axes.plot([1, 1 + length], [0.95, 0.95], color=INK, linewidth=1.6)
        for end in (1, 1 + length):
            axes.plot([end, end], [0.87, 1.03], color=INK, linewidth=1.2)
        words = f"critical difference {difference:.2f}" + (" (more than all ranks)" if difference > span else "")
        axes.text(1 + length / 2, 1.1, words, ha="center", va="bottom", fontsize=9, color=QUIET)
    axes.set_xlim(left - 0.62 * span, right + 0.62 * span)
    axes.set_ylim(-depth - 0.42 * half, 1.6)
    axes.axis("off")
    return figure
