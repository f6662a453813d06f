"""Found boxes over an image, and how many findings are found at how many false positives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from frepa.report.canvas import COLOURS, bare, dress, new_figure, pixel_size, plane
from frepa.report.overlays import FALSE_ALARM, HIT, MISS

_TRUE = "#FFFFFF"
_BEHIND = "#4D4D4D"
_OF_KINDS = (HIT, MISS, "#CC79A7", FALSE_ALARM, "#009E73", "#E69F00", "#0072B2")
_DASHES = (0, (3, 2))
# With more boxes than this their scores would cover the image
_MOST_SCORES = 16


def box_overlay(
    image: np.ndarray,
    truth: np.ndarray,
    found: np.ndarray,
    scores: np.ndarray,
    hits: np.ndarray,
    *,
    missed: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """The image, and beside it the true boxes and what was found, wrongly found and missed.

    Args:
        image: ``(C, *S)`` in [0, 1], C = 1 or 3, S = (H, W) or (D, H, W).
        truth, found: ``(n, 2 * dims)`` and ``(m, 2 * dims)`` corners in pixels, pixel i covering [i, i + 1): the lower
            corner in the axis order of ``S``, then the upper one. Of a volume the slice through the middle of the
            first true box is shown (without one, of the highest found box; without any, the middle slice), with the
            boxes that cross it.
        scores: ``(m,)``, written beside the found boxes where these are few.
        hits: ``(m,)`` bool, found boxes that hit a true one; the others are false positives.
        missed: ``(n,)`` bool, true boxes that nothing hit; None does not tell true boxes apart.

    Raises:
        ValueError: the arrays do not go together.
    """
    image = np.asarray(image, dtype=float)
    dims = image.ndim - 1
    truth, found = (np.asarray(corners, dtype=float).reshape(-1, 2 * dims) for corners in (truth, found))
    hits = np.asarray(hits, dtype=bool)
    missed_ones = np.zeros(len(truth), dtype=bool) if missed is None else np.asarray(missed, dtype=bool)
    scores = np.asarray(scores, dtype=float)
    if not len(found) == len(scores) == len(hits) or len(missed_ones) != len(truth):
        raise ValueError(
            f"{len(found)} found boxes with {len(scores)} scores and {len(hits)} hits, {len(truth)} true boxes with "
            f"{len(missed_ones)} missed or not: the numbers differ"
        )
    note = ""
    if dims == 3:
        z = _slice(image.shape[1], truth, found, scores)
        note = f"slice {z + 1} of {image.shape[1]}"
        image = image[:, z]
        (truth, here), (found, there) = (_across(corners, z) for corners in (truth, found))
        missed_ones, hits, scores = missed_ones[here], hits[there], scores[there]

    picture = np.clip(plane(image), 0, 1)
    height, width = picture.shape[:2]
    scale = 4.6 / max(height, width)
    figure = new_figure(2 * width * scale + 0.2, height * scale + 0.75)
    left, right = figure.subplots(1, 2)
    left.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    right.imshow(0.75 * picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for axes in (left, right):
        bare(axes)
    for corners in truth[~missed_ones]:
        _draw(right, corners, _TRUE, dashed=True)
    for corners in truth[missed_ones]:
        _draw(right, corners, MISS)
    for corners, hit, score in sorted(zip(found, hits, scores), key=lambda box: float(box[2])):
        label = f"{score:.2f}" if len(found) <= _MOST_SCORES else ""
        _draw(right, corners, HIT if hit else FALSE_ALARM, label=label)
    if title or note:
        figure.suptitle(", ".join(part for part in (title, note) if part), fontsize=10)
    names = [("true box", _TRUE), ("true positive", HIT), ("false positive", FALSE_ALARM)]
    names += [("false negative", MISS)] if missed is not None else []
    # On a dark ground, as in the image: white does not show on the page
    lines = [Line2D([], [], color=colour, linewidth=1.6) for _, colour in names]
    lines[0].set_linestyle(_DASHES)
    handles: list[Any] = [(Patch(facecolor=_BEHIND), line) for line in lines]
    figure.legend(
        handles, [name for name, _ in names], loc="outside lower center", ncols=len(names), frameon=False, fontsize=9
    )
    return figure


def found_overlay(
    image: np.ndarray,
    found: np.ndarray,
    scores: np.ndarray,
    *,
    labels: Sequence[str] | None = None,
    kinds: Sequence[str] = (),
    voxels: Sequence[float] | None = None,
) -> Figure:
    """An image without truth, and beside it the boxes that were found.

    Args:
        image, found, scores: as in `box_overlay`; of a volume the slice through the highest box is shown.
        labels: of each box, written beside it with its score where boxes are few; None writes the score alone.
        kinds: all names there are, in order, each of a colour of its own, for a legend where there are several.
        voxels: extent per axis of the image, for pixels in their proportions.
    """
    image = np.asarray(image, dtype=float)
    dims = image.ndim - 1
    found, names = np.asarray(found, dtype=float).reshape(-1, 2 * dims), np.asarray(labels or [""] * len(scores))
    note = ""
    if dims == 3:
        z = _slice(image.shape[1], np.zeros((0, 6)), found, scores)
        note = f"slice {z + 1} of {image.shape[1]}"
        image = image[:, z]
        found, there = _across(found, z)
        scores, names = scores[there], names[there]
    picture = np.clip(plane(image), 0, 1)
    down, right = pixel_size(voxels)
    height, width = picture.shape[0] * down, picture.shape[1] * right
    scale = 4.6 / max(height, width)
    legend = len(kinds) > 1
    figure = new_figure(2 * width * scale + 0.2, height * scale + 0.2 + 0.3 * bool(note) + 0.35 * legend)
    kinds = list(dict.fromkeys([*kinds, *names.tolist()]))
    for axes, dim in zip(figure.subplots(1, 2), (1.0, 0.75)):
        axes.imshow(dim * picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=down / right)
        bare(axes)
    for place in np.argsort(scores).tolist():
        label = f"{names[place]} {scores[place]:.2f}".strip() if len(found) <= _MOST_SCORES else ""
        _draw(axes, found[place], _OF_KINDS[kinds.index(names[place]) % len(_OF_KINDS)], label=label)
    if note:
        figure.suptitle(note, fontsize=10)
    if legend:
        handles: list[Any] = [
            (Patch(facecolor=_BEHIND), Line2D([], [], color=_OF_KINDS[k % len(_OF_KINDS)], linewidth=1.6))
            for k in range(len(kinds))
        ]
        across = min(len(kinds), 4)
        figure.legend(handles, kinds, loc="outside lower center", ncols=across, frameon=False, fontsize=9)
    return figure


def froc_curve(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    rates: Sequence[float],
    *,
    intervals: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Figure:
    """Sensitivity against false positives per image, on a logarithmic axis over ``rates``.

    Args:
        curves: name to ``(false positives per image, sensitivity)`` at falling thresholds; linear between points, level
            after the last one. A curve of NaN (no findings) is left out.
        rates: false positives per image at which a sensitivity is read, rising and above 0; marked on the curves.
        intervals: name to ``(lower, upper)`` sensitivity at each of ``rates``.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    known = {name: curve for name, curve in curves.items() if np.isfinite(np.asarray(curve[1], dtype=float)).all()}
    fine = np.unique(np.r_[np.geomspace(rates[0], rates[-1], 600), rates])
    for i, (name, (others, sensitivity)) in enumerate(known.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(fine, np.interp(fine, others, sensitivity), color=colour, linewidth=1.7, label=name)
        at = np.interp(rates, others, sensitivity)
        axes.plot(rates, at, color=colour, linestyle="none", marker="o", markersize=4.5)
        if intervals is not None and name in intervals:
            low, high = (np.asarray(side, dtype=float) for side in intervals[name])
            axes.fill_between(rates, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(rates), [str(Fraction(rate).limit_denominator(1000)) for rate in rates])
    axes.minorticks_off()
    axes.set_xlim(rates[0] * 0.93, rates[-1] / 0.93)
    axes.set_ylim(-0.02, 1.02)
    dress(axes, "false positives per image", "sensitivity", legend=len(known) > 1)
    return figure


def _slice(depth: int, truth: np.ndarray, found: np.ndarray, scores: np.ndarray) -> int:
    if not len(truth) and not len(found):
        return depth // 2
    corners = truth[0] if len(truth) else found[np.argmax(scores)]
    return int(np.clip(np.floor((corners[0] + corners[3]) / 2), 0, depth - 1))


def _across(corners: np.ndarray, z: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes ``(n, 6)`` that a slice cuts, as ``(k, 4)`` in its plane, and which they are."""
    cut = (corners[:, 0] < z + 1) & (corners[:, 3] > z)
    return corners[cut][:, [1, 2, 4, 5]], cut


def _draw(axes: Axes, corners: np.ndarray, colour: str, *, dashed: bool = False, label: str = "") -> None:
    # imshow puts the middle of pixel i at i
    y, x, bottom, right = corners - 0.5
    box = Rectangle((x, y), right - x, bottom - y, fill=False, edgecolor=colour, linewidth=1.4)
    if dashed:
        box.set_linestyle(_DASHES)
    axes.add_patch(box)
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    if label and x < width and y < height and right > -0.5 and bottom > -0.5:
        # In the box's corner, or where the box enters the image
        place = (max(x, -0.5), max(y, -0.5))
        axes.annotate(
            label, place, xytext=(1.2, -1.2), textcoords="offset points", fontsize=7, color="black", ha="left",
            va="top", bbox={"facecolor": colour, "alpha": 0.9, "pad": 0.8, "linewidth": 0},
        )  # fmt: skip
