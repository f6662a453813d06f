"""Where a segmentation is right and where it is wrong, drawn over the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from frepa.report.canvas import bare, new_figure, pixel_size, plane

# Sky blue, vermillion, yellow and reddish purple of Okabe and Ito: distinct with every common colour blindness on grey.
HIT, FALSE_ALARM, MISS, CONFUSED = "#56B4E9", "#D55E00", "#F0E442", "#CC79A7"
_OF_CLASSES = (HIT, MISS, CONFUSED, FALSE_ALARM, "#009E73", "#E69F00", "#0072B2")
# Names of a legend side by side
_ACROSS = 4


def segmentation_overlay(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, *, title: str = "", inside: np.ndarray | None = None
) -> Figure:
    """The image, and beside it what was found, wrongly found and missed.

    Args:
        image: ``(C, *S)`` in [0, 1], C = 1 or 3, S = (H, W) or (D, H, W).
        truth, prediction: ``(*S)`` labels, 0 = background. Of a volume the slice with the most labelled voxels is
            shown.
        inside: ``(*S)`` bool, the field of view; outside it the overlay is darkened and nothing is marked.
    """
    image = np.asarray(image, dtype=float)
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape or truth.shape != image.shape[1:]:
        raise ValueError(
            f"image {image.shape[1:]}, truth {truth.shape} and prediction {prediction.shape} differ in size"
        )
    if truth.ndim == 3:
        z = int(np.argmax((truth > 0).sum(axis=(1, 2))))
        image, truth, prediction = image[:, z], truth[z], prediction[z]
        inside = None if inside is None else inside[z]
    picture = np.clip(plane(image), 0, 1)
    marks, names = mark_errors(truth, prediction, inside)
    base = picture.mean(-1) if picture.ndim == 3 else picture
    canvas = np.repeat((0.75 * base)[..., None], 3, axis=-1)
    if inside is not None:
        canvas[~np.asarray(inside, dtype=bool)] *= 0.4
    for value, colour in enumerate((HIT, FALSE_ALARM, MISS, CONFUSED), start=1):
        rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        canvas[marks == value] = 0.2 * canvas[marks == value] + 0.8 * rgb

    height, width = base.shape
    scale = 4.6 / max(height, width)
    figure = new_figure(2 * width * scale + 0.2, height * scale + 0.75)
    left, right = figure.subplots(1, 2)
    left.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    right.imshow(canvas, interpolation="nearest")
    for axes in (left, right):
        bare(axes)
    if title:
        figure.suptitle(title, fontsize=10)
    handles = [Patch(facecolor=colour, label=name) for colour, name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def mark_errors(
    truth: np.ndarray, prediction: np.ndarray, inside: np.ndarray | None = None
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Each pixel's mark, ``(*S)`` uint8, and the legend as ``(colour, name)``.

    1 = true positive (the right class), 2 = false positive, 3 = false negative, 4 = a wrong class on labelled ground
    (only with several classes); 0 = background in both, or outside.
    """
    found, there = prediction > 0, truth > 0
    marks = np.zeros(truth.shape, dtype=np.uint8)
    marks[found & there & (prediction == truth)] = 1
    marks[found & ~there] = 2
    marks[~found & there] = 3
    marks[found & there & (prediction != truth)] = 4
    if inside is not None:
        marks[~np.asarray(inside, dtype=bool)] = 0
    names = [(HIT, "true positive"), (FALSE_ALARM, "false positive"), (MISS, "false negative")]
    if max(int(truth.max(initial=0)), int(prediction.max(initial=0))) > 1:
        names.append((CONFUSED, "wrong class"))
    return marks, names


def prediction_overlay(
    image: np.ndarray,
    prediction: np.ndarray,
    *,
    names: Sequence[str] = (),
    voxels: Sequence[float] | None = None,
) -> Figure:
    """An image without truth, and beside it what was found, a colour per class.

    Args:
        image: ``(C, *S)`` in [0, 1], C = 1 or 3, S = (H, W) or (D, H, W).
        prediction: ``(*S)`` labels, 0 = background. Of a volume the slice with the most labelled voxels is shown.
        names: of the labels from 1 on, for a legend where there are several.
        voxels: extent per axis of S, for pixels in their proportions.
    """
    note = ""
    if prediction.ndim == 3:
        z = int(np.argmax((prediction > 0).sum(axis=(1, 2))))
        note = f"slice {z + 1} of {len(prediction)}"
        image, prediction = image[:, z], prediction[z]
    picture = np.clip(plane(np.asarray(image, dtype=float)), 0, 1)
    down, right = pixel_size(voxels)
    height, width = picture.shape[0] * down, picture.shape[1] * right
    scale = 4.6 / max(height, width)
    legend = names if len(names) > 1 else ()
    figure = new_figure(2 * width * scale + 0.2, height * scale + 0.2 + 0.3 * bool(note) + 0.35 * bool(legend))
    base = picture.mean(-1) if picture.ndim == 3 else picture
    canvas = np.repeat(base[..., None], 3, axis=-1)
    for value in np.unique(prediction[prediction > 0]).tolist():
        colour = _OF_CLASSES[(value - 1) % len(_OF_CLASSES)]
        rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        canvas[prediction == value] = 0.2 * canvas[prediction == value] + 0.8 * rgb
    for axes, shown in zip(figure.subplots(1, 2), (picture, canvas)):
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=down / right)
        bare(axes)
    if note:
        figure.suptitle(note, fontsize=10)
    if legend:
        colours = [_OF_CLASSES[k % len(_OF_CLASSES)] for k in range(len(legend))]
        handles = [Patch(facecolor=colour, label=name) for colour, name in zip(colours, legend)]
        across = min(len(handles), _ACROSS)
        figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False, fontsize=9)
    return figure


def side_by_side(
    image: np.ndarray, truth: np.ndarray, inside: np.ndarray | None, found: Mapping[str, np.ndarray]
) -> Figure:
    """One image, and what each of several found in it: hits, false alarms and misses on the same ground.

    Args:
        image: ``(C, *S)`` in [0, 1]. truth: ``(*S)`` labels. inside: ``(*S)`` bool, the field of view, or None. Of a
            volume the slice with the most labelled voxels is shown.
        found: ``(*S)`` labels by title.
    """
    image, truth = np.asarray(image, dtype=float), np.asarray(truth)
    if truth.ndim == 3:
        z = int(np.argmax((truth > 0).sum(axis=(1, 2))))
        image, truth = image[:, z], truth[z]
        found = {title: each[z] for title, each in found.items()}
        inside = None if inside is None else inside[z]
    picture = np.clip(plane(image), 0, 1)
    base = picture.mean(-1) if picture.ndim == 3 else picture
    height, width = base.shape
    columns = min(4, len(found) + 1)
    rows = -(-(len(found) + 1) // columns)
    side = 2.9
    figure = new_figure(side * columns, rows * (side * height / width + 0.3) + 0.4)
    grid = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
    grid[0].imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    grid[0].set_title("image", fontsize=9)
    names: dict[str, str] = {}
    for axes, (title, each) in zip(grid[1:], found.items()):
        marks, legend = mark_errors(truth, np.asarray(each), inside)
        names |= {name: colour for colour, name in legend}
        canvas = np.repeat((0.75 * base)[..., None], 3, axis=-1)
        for value, colour in enumerate((HIT, FALSE_ALARM, MISS, CONFUSED), start=1):
            rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
            canvas[marks == value] = 0.2 * canvas[marks == value] + 0.8 * rgb
        axes.imshow(canvas, interpolation="nearest")
        axes.set_title(title, fontsize=9)
    for axes in grid:
        bare(axes)
    handles = [Patch(facecolor=colour, label=name) for name, colour in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, len(handles)), frameon=False, fontsize=9)
    return figure
