"""Figures from plain arrays. Every function returns a matplotlib Figure; no state is shared between calls."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from frepa.names import shown
from frepa.report.canvas import COLOURS, INK, bare, dress, new_figure, planes


def png_bytes(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG bytes, without a date, so that equal figures have equal bytes.

    Names of files and classes stand in figures as they are: a ``$`` begins no formula, and what cannot be shown is
    written out.
    """
    _plain_texts(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG for print, its letters as text; equal figures have equal bytes, as in `png_bytes`."""
    from matplotlib import rc_context

    _plain_texts(figure)
    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "frepa"}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _plain_texts(figure: Figure) -> None:
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(shown(text.get_text(), keep="\n"))


def loss_curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str = "step",
    ylabel: str = "loss",
    log: bool = False,
    smooth: int = 1,
) -> Figure:
    """Curves over training, for example the terms of a loss.

    Args:
        series: name to ``(x, y)``, each of any length; NaN leaves a gap.
        log: logarithmic vertical axis; values that are not positive are left out.
        smooth: width of a centred moving average in points; above 1 the raw curve stays visible behind it.
    """
    figure = new_figure(7.2, 3.6)
    axes = figure.add_subplot()
    for (name, (x, y)), colour in zip(series.items(), _cycle(len(series))):
        xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if log:
            ys = np.where(ys > 0, ys, np.nan)
        width = min(smooth, len(ys))
        if width > 1:
            axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.25)
            ys = _moving_average(ys, width)
        marker = "o" if len(ys) == 1 else None
        axes.plot(xs, ys, color=colour, linewidth=1.7, label=name, marker=marker, markersize=4)
    if log:
        axes.set_yscale("log")
        # Powers of ten are written as mathematics otherwise, which no text of a figure is read as.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    dress(axes, xlabel, ylabel, legend=len(series) > 1)
    return figure


def panels(
    groups: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    xlabel: str = "step",
    marks: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Curves in panels side by side, for numbers of different units over the same course.

    Args:
        groups: title of each panel -> name of the curve -> ``(x, y)``, each of any length.
        marks: title of a panel -> a point of it to ring.
    """
    figure = new_figure(max(3.6, 3.2 * len(groups)), 3.0)
    for axes, (title, curves) in zip(np.atleast_1d(figure.subplots(1, len(groups))), groups.items()):
        for (name, (x, y)), colour in zip(curves.items(), _cycle(len(curves))):
            axes.plot(x, y, color=colour, linewidth=1.7, label=name, marker="o", markersize=3)
        if marks and title in marks:
            axes.plot(*marks[title], "o", markersize=10, markerfacecolor="none", markeredgecolor=INK)
        axes.set_title(shown(title), fontsize=9, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        dress(axes, xlabel, "", legend=len(curves) > 1)
    return figure


def histograms(
    samples: Mapping[str, np.ndarray],
    *,
    bins: int = 64,
    span: tuple[float, float] | None = None,
    xlabel: str = "intensity",
    log: bool = False,
) -> Figure:
    """Densities of one or more sets of values over the same bins.

    Args:
        samples: name to values of any shape; values that are not finite are left out.
        span: first and last edge; by default the smallest and largest value of all sets.
        log: logarithmic vertical axis.
    """
    values = {name: (v := np.asarray(array, dtype=float).ravel())[np.isfinite(v)] for name, array in samples.items()}
    if span is None:
        lows, highs = zip(*[(v.min(), v.max()) for v in values.values() if v.size]) if values else ((0.0,), (1.0,))
        span = (min(lows), max(highs)) if min(lows) < max(highs) else (min(lows) - 0.5, min(lows) + 0.5)
    edges = np.linspace(*span, bins + 1)
    figure = new_figure(6.4, 3.4)
    axes = figure.add_subplot()
    for (name, v), colour in zip(values.items(), _cycle(len(values))):
        counts, _ = np.histogram(v, edges)
        density = counts / max(1, v.size) / (edges[1] - edges[0])
        axes.stairs(density, edges, color=colour, linewidth=1.6, label=name)
        axes.stairs(density, edges, color=colour, alpha=0.12, fill=True)
    if log:
        axes.set_yscale("log")
    dress(axes, xlabel, "density", legend=len(values) > 1)
    return figure


def relative_error(prediction: np.ndarray, original: np.ndarray) -> float:
    """Relative mean absolute error: mean |prediction - original| over mean |original|."""
    return float(np.abs(prediction - original).mean() / max(float(np.abs(original).mean()), 1e-12))


def root_mean_square_error(prediction: np.ndarray, original: np.ndarray) -> float:
    """Root of the mean squared difference, in the images' unit."""
    return float(np.sqrt(np.square(prediction - original).mean()))


def log_spectrum(image: np.ndarray) -> np.ndarray:
    """Centred log magnitude ``log(1 + |F|)`` of ``(*S)``, 2D or 3D."""
    return np.log1p(np.abs(np.fft.fftshift(np.fft.fftn(np.asarray(image, dtype=np.float64)))))


_ERRORS = {"rmae": ("RMAE", relative_error), "rmse": ("RMSE", root_mean_square_error)}


def reconstruction_grid(
    original: np.ndarray,
    corrupted: np.ndarray,
    reconstruction: np.ndarray,
    guide: np.ndarray | None = None,
    *,
    labels: Sequence[str] | None = None,
    voxels: Sequence[tuple[float, ...] | None] | None = None,
    views: Sequence[str] = ("across axis 1", "across axis 2", "across axis 3"),
    error: str = "rmae",
    spectra: bool = True,
) -> Figure:
    """One row per image: original, guide, corrupted, reconstruction, difference, and spectra (as Frepa Fig. 5).

    A volume has three rows, its three middle planes, and beside each the same plane of its 3D spectrum.

    Args:
        original, corrupted, reconstruction: ``(N, C, *S)`` in [0, 1], C = 1 or 3, S = (H, W) or (D, H, W). The error
            is over all of the array.
        guide: ``(N, 1, *S)``, any range; None leaves the column out.
        labels: one per image.
        voxels: size of a voxel per axis of ``S``, one tuple per image, so that planes have the patient's proportions.
        views: names of the planes across each axis of a volume.
        error: ``rmae`` or ``rmse``, written on the corrupted image and on the reconstruction.
        spectra: add the log magnitude spectra (mean over channels) of original, corrupted and reconstruction, all on
            the original's colour scale.
    """
    if error not in _ERRORS:
        raise ValueError(f"error must be one of {sorted(_ERRORS)}, found {error!r}")
    name, measure = _ERRORS[error]
    titles = ["Original", *(["Guide"] if guide is not None else []), "Corrupted", "Reconstruction", "|Difference|"]
    titles += ["Spectrum of original", "of corrupted", "of reconstruction"] if spectra else []
    per_image = 1 if original.ndim == 4 else 3
    rows, columns = per_image * len(original), len(titles)
    figure = new_figure(1.75 * columns, 1.75 * rows + 0.3)
    grid = np.asarray(figure.subplots(rows, columns, squeeze=False))
    for i in range(len(original)):
        x, c, r = (np.asarray(a[i], dtype=float) for a in (original, corrupted, reconstruction))
        shown: list[tuple[list[np.ndarray], dict[str, Any], str]] = [(planes(x), _GREY, "")]
        if guide is not None:
            # The planes of an image on one scale
            g = np.asarray(guide[i], dtype=float)
            shown.append((planes(g), {"cmap": "gray", "vmin": float(g.min()), "vmax": float(g.max())}, ""))
        shown.append((planes(c), _GREY, f"{name} {measure(c, x):.3f}"))
        shown.append((planes(r), _GREY, f"{name} {measure(r, x):.3f}"))
        difference = np.abs(r - x).mean(0, keepdims=True)
        shown.append((planes(difference), {"cmap": "magma", "vmin": 0}, f"max {difference.max():.2f}"))
        if spectra:
            logs = [planes(log_spectrum(a.mean(0))[None]) for a in (x, c, r)]
            scale = {"cmap": "viridis", "vmin": min(map(np.min, logs[0])), "vmax": max(map(np.max, logs[0]))}
            shown += [(log, scale, "") for log in logs]
        for k in range(per_image):
            here = grid[per_image * i + k]
            for column, (axes, (parts, style, note)) in enumerate(zip(here, shown)):
                part = np.clip(parts[k], 0, 1) if style is _GREY else parts[k]
                spatial = column < columns - (3 if spectra else 0)
                axes.imshow(part, interpolation="nearest", aspect=_aspect(voxels, i, k) if spatial else 1.0, **style)
                bare(axes)
                if note and k == 0:
                    axes.text(0.03, 0.97, note, transform=axes.transAxes, va="top", fontsize=8, color="white",
                              bbox={"facecolor": "black", "alpha": 0.6, "pad": 2, "linewidth": 0})  # fmt: skip
            words = [labels[i]] if labels is not None else []
            words += [views[k]] if per_image == 3 else []
            here[0].set_ylabel("\n".join(words), fontsize=9, color=INK)
    for axes, title in zip(grid[0], titles):
        axes.set_title(title, fontsize=9, color=INK)
    return figure


def _aspect(voxels: Sequence[tuple[float, ...] | None] | None, image: int, across: int) -> float:
    """Height of a pixel over its width in the plane across an axis."""
    size = None if voxels is None else voxels[image]
    if size is None:
        return 1.0
    height, width = size if len(size) == 2 else [n for axis, n in enumerate(size) if axis != across]
    return float(height / width)


_GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}


def _moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Centred average over up to ``width`` points; windows are shorter at the ends, NaN are left out."""
    known = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
