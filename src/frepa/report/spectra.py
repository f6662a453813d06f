"""Curves over spatial frequency: what was kept of each, for several encoders on one figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from frepa.report.canvas import COLOURS, dress, new_figure

_NYQUIST = 0.5


def share_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    bands: Mapping[str, tuple[float, float]] | None = None,
    null: str | None = None,
    ylabel: str = "share recovered (R²)",
) -> Figure:
    """Shares over radial frequency; a curve may be negative (worse than the mean) and is drawn down to -0.1.

    Args:
        curves: name to (frequency in cycles per pixel, share); NaN leaves a gap.
        bands: name to its limits in cycles per pixel, shaded in turn; they end where the curves do, at 0.5.
        null: the curve to compare with, drawn dashed and grey.
    """
    figure = new_figure(7.2, 3.8)
    axes = figure.add_subplot()
    for number, (name, (low, high)) in enumerate((bands or {}).items()):
        low, high = min(low, _NYQUIST), min(high, _NYQUIST)
        if number % 2:
            axes.axvspan(low, high, color="0.95", zorder=0)
        axes.text((low + high) / 2, 1.03, name, ha="center", va="bottom", fontsize=8, color="0.4")
    colours = iter(COLOURS * math.ceil(len(curves) / len(COLOURS)))
    for name, (frequency, share) in curves.items():
        colour, line = ("0.45", "--") if name == null else (next(colours), "-")
        axes.plot(np.asarray(frequency), np.asarray(share), linewidth=1.7, label=name, color=colour, linestyle=line)
    axes.set_xlim(0, _NYQUIST)
    axes.set_ylim(-0.1, 1.02)
    dress(axes, "cycles per pixel", ylabel, legend=len(curves) > 1)
    return figure
