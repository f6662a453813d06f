"""Figures of a comparison, as a reader meets them."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from frepa.report.comparisons import critical_difference_diagram


@pytest.mark.parametrize("count", [2, 3, 12, 18, 40])
def test_words_of_the_rank_diagram_do_not_touch(count):
    ranks = {f"encoder number {place}": float(place) for place in range(1, count + 1)}
    figure = critical_difference_diagram(ranks, min(3.0, count / 2), [(0, count // 2)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = {text.get_text(): text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts}
    assert "1" in boxes
    assert sum("encoder number" in text for text in boxes) == count
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.overlaps(b), (one, other)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for text, box in boxes.items())
