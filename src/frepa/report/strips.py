"""Pictures and histograms in rows, each under its name."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from frepa.names import shown
from frepa.report.canvas import COLOURS, INK, bare, dress, new_figure, plane
from frepa.report.figures import log_spectrum, root_mean_square_error

_COLUMNS = 5


def histogram_panels(
    densities: Mapping[str, np.ndarray],
    edges: np.ndarray,
    *,
    reference: str,
    notes: Mapping[str, str],
    columns: int = 3,
) -> Figure:
    """A panel for every histogram but the reference, which is behind each of them in grey.

    Args:
        densities: name to ``(bins,)``. edges: ``(bins + 1,)``. notes: a few words in the corner of a panel.
    """
    names = [name for name in densities if name != reference]
    rows = -(-len(names) // columns)
    figure = new_figure(2.9 * columns, 2.1 * rows)
    grid = np.atleast_1d(figure.subplots(rows, columns, sharex=True, squeeze=False)).ravel()
    # A few bins that hold a constant would flatten all the rest.
    usual = max(float(densities[reference].max()), 1e-9)
    for axes, name in zip(grid, names):
        axes.stairs(densities[reference], edges, color="0.55", alpha=0.45, fill=True)
        axes.stairs(densities[name], edges, color=COLOURS[0], linewidth=1.4)
        axes.set_ylim(0, 1.6 * usual)
        axes.set_title(shown(name), fontsize=9, color=INK)
        axes.text(0.97, 0.92, notes.get(name, ""), transform=axes.transAxes, ha="right", va="top", fontsize=8.5)
        dress(axes, "", "", legend=False)
        axes.set_yticks([])
        if densities[name].max() > 1.6 * usual:
            at = float(edges[int(densities[name].argmax())])
            axes.text(at, 1.55 * usual, f" {densities[name].max():.0f}", fontsize=8, color=COLOURS[0], va="top")
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    return figure


def picture_strip(pictures: Mapping[str, np.ndarray], *, spectra: bool = False, columns: int = _COLUMNS) -> Figure:
    """Images ``(C, *S)`` under their names, clipped to [0, 1]; of a volume the middle slice.

    Args:
        spectra: below each its centred log spectrum, all on the first one's scale.
    """
    names = list(pictures)
    columns = min(columns, len(names))
    per = 2 if spectra else 1
    rows = per * -(-len(names) // columns)
    shape = plane(pictures[names[0]]).shape
    figure = new_figure(1.95 * columns, rows * (1.95 * shape[0] / shape[1] + 0.1) + 0.32 * rows / per)
    grid = np.asarray(figure.subplots(rows, columns, squeeze=False))
    for axes in grid.ravel():
        bare(axes)
        axes.set_visible(False)
    scale: dict[str, Any] = {}
    for number, name in enumerate(names):
        row, column = per * (number // columns), number % columns
        image = pictures[name]
        _shown_image(grid[row, column], image, shown(name))
        if spectra:
            log = _plane_spectrum(image)
            scale = scale or {"vmin": float(log.min()), "vmax": float(log.max())}
            below = grid[row + 1, column]
            below.set_visible(True)
            below.imshow(log, cmap="viridis", interpolation="nearest", **scale)
    return figure


def _plane_spectrum(image: np.ndarray) -> np.ndarray:
    log = log_spectrum(np.asarray(image, dtype=float).mean(0))
    return log if log.ndim == 2 else log[log.shape[0] // 2]


def _shown_image(axes: Any, image: np.ndarray, title: str, note: str = "") -> None:
    axes.set_visible(True)
    axes.imshow(
        np.clip(plane(np.asarray(image, dtype=float)), 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_title(_wrapped(title), fontsize=8.5, color=INK)
    if note:
        axes.text(0.03, 0.97, note, transform=axes.transAxes, va="top", fontsize=8, color="white",
                  bbox={"facecolor": "black", "alpha": 0.6, "pad": 2, "linewidth": 0})  # fmt: skip


def _wrapped(text: str, width: int = 24) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def reconstruction_table(columns: Mapping[str, np.ndarray], count: int) -> Figure:
    """Some images and what was told of them, side by side as in Frepa Fig. 5: a row for each, spread over all of them.

    In the corner the RMSE to the first column, below each image its log spectrum on the first column's scale.

    Args:
        columns: name to ``(N, C, *S)``, the originals first; of volumes the middle slices are shown.
        count: images shown.
    """
    original, *_ = columns.values()
    places = sorted({round((row + 0.5) * len(original) / count - 0.5) for row in range(count)})
    shape = plane(original[0]).shape
    side = 1.85
    figure = new_figure(side * len(columns) + 0.4, 2 * len(places) * side * shape[0] / shape[1] + 0.5)
    grid = np.asarray(figure.subplots(2 * len(places), len(columns), squeeze=False))
    for axes in grid.ravel():
        bare(axes)
    for row, place in enumerate(places):
        scale: dict[str, Any] = {}
        for column, (name, images) in enumerate(columns.items()):
            note = f"RMSE {root_mean_square_error(images[place], original[place]):.3f}" if column else ""
            _shown_image(grid[2 * row, column], images[place], shown(name) if row == 0 else "", note)
            log = _plane_spectrum(images[place])
            scale = scale or {"vmin": float(log.min()), "vmax": float(log.max())}
            grid[2 * row + 1, column].imshow(log, cmap="viridis", interpolation="nearest", **scale)
        grid[2 * row, 0].set_ylabel(f"image {place + 1}", fontsize=8.5, color=INK)
    return figure


def value_map(values: np.ndarray, image: np.ndarray) -> Figure:
    """Values ``(*S)`` above 0 in colour over an image ``(C, *S)``, with a scale; of a volume its fullest slice.

    Colours go by the logarithm where values span more than a factor of 50.
    """
    from matplotlib.colors import LogNorm

    if values.ndim == 3:
        z = int(np.argmax((values > 0).sum(axis=(1, 2))))
        values, image = values[z], image[:, z]
    picture = plane(np.asarray(image, dtype=float))
    grey = picture.mean(-1) if picture.ndim == 3 else picture
    scale = 4.6 / max(grey.shape)
    figure = new_figure(grey.shape[1] * scale + 1.0, grey.shape[0] * scale + 0.2)
    axes = figure.subplots()
    axes.imshow(np.clip(0.7 * grey, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    there = values[values > 0]
    wide = there.size > 0 and there.max() / there.min() > 50
    norm = LogNorm(there.min(), there.max()) if wide else None
    drawn = axes.imshow(np.ma.masked_less_equal(values, 0), cmap="turbo", interpolation="nearest", norm=norm)
    bare(axes)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.01)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)
    if wide:
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        bar.ax.yaxis.set_minor_formatter(lambda value, _: "")
    return figure
