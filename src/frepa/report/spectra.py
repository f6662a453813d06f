"""Curves over spatial frequency: what was kept of each, for several encoders on one figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from frepa.report.canvas import COLOURS, INK, dress, new_figure

_NYQUIST = 0.5
_GREYS = ("0.45", "0.65", "0.25")


def share_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    bands: Mapping[str, tuple[float, float]] | None = None,
    null: str | Sequence[str] | None = None,
    ylabel: str = "share recovered (R²)",
    span: tuple[float, float] = (-0.1, 1.02),
) -> Figure:
    """Shares over radial frequency; a curve may be negative (worse than the mean) and is drawn down to -0.1.

    Args:
        curves: name to (frequency in cycles per pixel, share); NaN leaves a gap.
        bands: name to its limits in cycles per pixel, shaded in turn; they end where the curves do, at 0.5.
        null: the curve to compare with, or several, drawn dashed and grey.
        span: of the vertical axis.
    """
    nulls = [null] if isinstance(null, str) else list(null or ())
    figure = new_figure(7.2, 3.8 + 0.2 * max(0, len(curves) - 4))
    axes = figure.add_subplot()
    for number, (name, (low, high)) in enumerate((bands or {}).items()):
        low, high = min(low, _NYQUIST), min(high, _NYQUIST)
        if number % 2:
            axes.axvspan(low, high, color="0.95", zorder=0)
        axes.text((low + high) / 2, 1.01, name, ha="center", va="bottom", fontsize=8, color="0.4",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    colours = iter(COLOURS * math.ceil(len(curves) / len(COLOURS)))
    for name, (frequency, share) in curves.items():
        colour, line = (_GREYS[nulls.index(name) % 3], "--") if name in nulls else (next(colours), "-")
        axes.plot(np.asarray(frequency), np.asarray(share), linewidth=1.7, label=name, color=colour, linestyle=line)
    axes.set_xlim(0, _NYQUIST)
    axes.set_ylim(*span)
    if span[0] < -0.1:
        axes.axhline(0, color="0.3", linewidth=0.9, zorder=1)
    few = len(curves) <= 4
    dress(axes, "cycles per pixel", ylabel, legend=few and len(curves) > 1)
    if not few:
        legend_below(axes)
    return figure


def legend_below(axes: Axes) -> None:
    """Names under the axes, where there are too many for a corner."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)


def band_points(
    groups: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    ylabel: str,
    null: Sequence[str] = (),
    span: tuple[float, float] | None = None,
) -> Figure:
    """A point with its spread for every band and curve, side by side: values whose differences are small.

    Args:
        groups: band -> name of the curve -> ``(value, half length of the error bar)``.
        null: the curves to compare with, in grey.
        span: of the vertical axis; by default what the points need.
    """
    names = list(dict.fromkeys(name for points in groups.values() for name in points))
    figure = new_figure(7.2, 3.4 + 0.16 * len(names))
    axes = figure.add_subplot()
    colours = iter(COLOURS * math.ceil(max(1, len(names)) / len(COLOURS)))
    for number, name in enumerate(names):
        grey = name in null
        colour = _GREYS[list(null).index(name) % 3] if grey else next(colours)
        at = [place + 0.7 * ((number + 0.5) / len(names) - 0.5) for place in range(len(groups))]
        values, spreads = zip(*(points.get(name, (math.nan, math.nan)) for points in groups.values()))
        axes.errorbar(at, values, yerr=np.nan_to_num(spreads), fmt="s" if grey else "o", color=colour, label=name,
                      markersize=5, elinewidth=1, capsize=2)  # fmt: skip
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.5, len(groups) - 0.5)
    if span is not None:
        axes.set_ylim(*span)
    dress(axes, "", ylabel, legend=False)
    axes.grid(False, axis="x")
    legend_below(axes)
    return figure


def stepped_curves(
    curves: Mapping[str, Sequence[float]],
    ticks: Sequence[str],
    *,
    xlabel: str,
    ylabel: str,
    chance: float | None = None,
) -> Figure:
    """Curves over settings in a row, each as far from the next as any.

    Args:
        curves: name to a value for each of ``ticks``; NaN leaves a gap.
        chance: what guessing would give, drawn dotted.
    """
    figure = new_figure(7.2, 3.8 + 0.2 * max(0, len(curves) - 4))
    axes = figure.add_subplot()
    colours = iter(COLOURS * math.ceil(max(1, len(curves)) / len(COLOURS)))
    for name, values in curves.items():
        axes.plot(range(len(ticks)), np.asarray(values, float), "o-", color=next(colours), markersize=4, label=name)
    if chance is not None:
        axes.axhline(chance, color="0.4", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(ticks)), list(ticks))
    dress(axes, xlabel, ylabel, legend=False)
    legend_below(axes)
    return figure
