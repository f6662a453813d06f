from __future__ import annotations

import io
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from frepa.report.boxes import box_overlay, found_overlay, froc_curve
from frepa.report.figures import png_bytes
from frepa.report.overlays import FALSE_ALARM, HIT, MISS, prediction_overlay

RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)


def decode(figure: Figure) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(png_bytes(figure, dpi=80))).convert("RGB"))
    assert pixels.std() > 1  # something is drawn
    return pixels


def drawn(figure: Figure) -> list[tuple[str, tuple[float, ...]]]:
    """Colour and ``(y0, x0, y1, x1)`` of every box, in the pixels of the image."""
    return [
        (to_hex(box.get_edgecolor()).upper(), tuple(v + 0.5 for v in (y, x, y + box.get_height(), x + box.get_width())))
        for box in figure.axes[1].patches
        for x, y in [box.get_xy()]
    ]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_lie_on_their_pixels_in_the_colours_of_what_they_are(channels: int) -> None:
    image = np.random.default_rng(0).uniform(size=(channels, 40, 60))
    truth = np.array([[2, 4, 12, 16], [20, 30, 28, 44]], float)
    found = np.array([[3, 4, 12, 15], [30, 5, 36, 12]], float)
    figure = box_overlay(
        image, truth, found, np.array([0.9, 0.25]), np.array([True, False]), missed=np.array([False, True]), title="A"
    )
    assert sorted(drawn(figure)) == sorted(
        [("#FFFFFF", (2, 4, 12, 16)), (MISS, (20, 30, 28, 44)), (HIT, (3, 4, 12, 15)), (FALSE_ALARM, (30, 5, 36, 12))]
    )
    # The pixels 4 to 15 of imshow reach from 3.5 to 15.5
    assert figure.axes[1].patches[0].get_x() == 3.5
    assert [text.get_text() for text in figure.axes[1].texts] == ["0.25", "0.90"]  # the highest lies on top
    assert legend(figure) == ["true box", "true positive", "false positive", "false negative"]
    assert figure.get_suptitle() == "A"
    assert not figure.axes[0].patches  # the image beside it is bare
    decode(figure)


def test_without_what_was_missed_true_boxes_are_all_alike() -> None:
    truth = np.array([[2, 4, 12, 16]], float)
    figure = box_overlay(np.zeros((1, 20, 20)), truth, np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool))
    assert drawn(figure) == [("#FFFFFF", (2, 4, 12, 16))]
    assert "false negative" not in legend(figure)
    decode(figure)


def test_many_boxes_are_drawn_without_their_scores() -> None:
    found = np.tile(np.array([2.0, 2, 9, 9]), (30, 1))
    figure = box_overlay(np.zeros((1, 20, 20)), found[:0], found, np.linspace(0, 1, 30), np.zeros(30, bool))
    assert len(drawn(figure)) == 30
    assert not figure.axes[1].texts


def test_a_score_stands_where_its_box_enters_the_image() -> None:
    found = np.array([[-5, -4, 6, 7], [3, 12, 9, 30], [40, 2, 50, 9]], float)  # the last lies outside
    figure = box_overlay(np.zeros((1, 20, 20)), found[:0], found, np.array([0.1, 0.2, 0.3]), np.zeros(3, bool))
    places = [(text.get_text(), *text.xy) for text in figure.axes[1].texts]
    assert places == [("0.10", -0.5, -0.5), ("0.20", 11.5, 2.5)]
    assert figure.axes[1].get_xlim() == (-0.5, 19.5)  # boxes do not widen what is shown
    decode(figure)


def test_of_a_volume_the_slice_through_the_first_true_box_with_the_boxes_that_cross_it() -> None:
    image = np.arange(10.0)[None, :, None, None] / 10 * np.ones((1, 10, 16, 16))
    truth = np.array([[6, 1, 2, 9, 5, 8], [0, 1, 1, 2, 9, 9]], float)
    found = np.array([[7, 2, 2, 8, 6, 7], [8, 0, 0, 10, 3, 3], [0, 0, 0, 7, 4, 4]], float)
    scores = np.array([0.8, 0.9, 0.95])
    figure = box_overlay(image, truth, found, scores, np.array([True, False, False]), missed=np.array([False, True]))
    assert np.unique(figure.axes[0].images[0].get_array()) == 0.7
    assert sorted(drawn(figure)) == sorted([("#FFFFFF", (1, 2, 5, 8)), (HIT, (2, 2, 6, 7))])
    assert figure.get_suptitle() == "slice 8 of 10"
    decode(figure)
    # Without a true box the highest found one decides, without any box the middle
    figure = box_overlay(image, truth[:0], found, scores, np.zeros(3, bool), title="B")
    assert figure.get_suptitle() == "B, slice 4 of 10"
    figure = box_overlay(image, truth[:0], found[:0], scores[:0], np.zeros(0, bool))
    assert figure.get_suptitle() == "slice 6 of 10"
    # A box whose middle lies outside
    figure = box_overlay(image, truth[:1] + 20, found[:0], scores[:0], np.zeros(0, bool))
    assert figure.get_suptitle() == "slice 10 of 10"


def test_numbers_that_do_not_go_together_are_refused() -> None:
    box = np.array([[2, 4, 12, 16]], float)
    with pytest.raises(ValueError, match="1 found boxes with 2 scores"):
        box_overlay(np.zeros((1, 20, 20)), box, box, np.zeros(2), np.zeros(1, bool))
    with pytest.raises(ValueError, match="numbers differ"):
        box_overlay(np.zeros((1, 20, 20)), box, box, np.zeros(1), np.zeros(1, bool), missed=np.zeros(2, bool))


def test_froc_curve_is_linear_between_points_and_level_after_the_last() -> None:
    curves = {"a": ([0, 0, 1, 3], [0, 0.2, 0.6, 0.9]), "b": ([0], [0.5]), "no finding": ([0, 1], [math.nan, math.nan])}
    figure = froc_curve(curves, RATES, intervals={"a": ([0.1] * 7, [0.95] * 7)})
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1/8", "1/4", "1/2", "1", "2", "4", "8"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    line, marks = axes.lines[:2]
    np.testing.assert_allclose(marks.get_ydata(), [0.25, 0.3, 0.4, 0.6, 0.75, 0.9, 0.9])
    x, y = line.get_data()
    assert (x[0], x[-1]) == (0.125, 8)
    np.testing.assert_allclose(y[x <= 1], 0.2 + 0.4 * x[x <= 1])
    np.testing.assert_allclose(axes.lines[3].get_ydata(), 0.5)
    assert len(axes.collections) == 1  # one has an interval
    decode(figure)
    assert froc_curve({"a": curves["a"]}, RATES).axes[0].get_legend() is None


def test_pictures_of_what_was_found_name_the_classes_and_keep_proportions() -> None:
    """A volume whose pixels are three times as high as wide: the plane is drawn as it is in the patient."""
    image, classes = np.zeros((1, 4, 10, 30)), np.zeros((4, 10, 30), np.uint8)
    classes[2, 3:6, 4:9] = 2
    boxes, scores = np.array([[1.0, 2, 3, 3, 6, 9]]), np.array([0.7])
    figures = [
        prediction_overlay(image, classes, names=["front", "back"], voxels=(9.0, 1.5, 0.5)),
        found_overlay(image, boxes, scores, labels=["back"], kinds=["front", "back"], voxels=(9.0, 1.5, 0.5)),
    ]
    for figure in figures:
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["front", "back"]
        figure.canvas.draw()
        for axes in figure.axes:
            shown = axes.get_window_extent()
            assert shown.height / shown.width == pytest.approx(1, rel=0.03)
    assert not prediction_overlay(image, classes, names=["all"]).legends
