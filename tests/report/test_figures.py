from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from frepa.report import figures, spectra
from frepa.report.overlays import mark_errors, segmentation_overlay


def decode(figure: figures.Figure) -> np.ndarray:
    data = figures.png_bytes(figure, dpi=80)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert pixels.std() > 1  # something is drawn
    return pixels


def test_loss_curves_smooth_and_leave_out_what_a_log_axis_cannot_show() -> None:
    x = np.arange(5)
    figure = figures.loss_curves({"rmse": (x, [1, 2, 3, 4, 5]), "con": (x, [1, 0, 1, 1, np.nan])}, log=True, smooth=3)
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    decode(figure)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert "1" in labels
    assert not any("math" in label or "$" in label for label in labels)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["rmse", "con"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [1.5, 2, 3, 4, 4.5])
    np.testing.assert_allclose(axes.lines[2].get_ydata(), [1, np.nan, 1, 1, np.nan])
    np.testing.assert_allclose(axes.lines[3].get_ydata(), [1, 1, 1, 1, 1])
    decode(figure)


def test_figures_have_equal_bytes_for_equal_input_and_share_no_state() -> None:
    def draw() -> bytes:
        return figures.png_bytes(figures.loss_curves({"a": ([0, 1], [1, 2])}))

    first = draw()
    figures.histograms({"x": np.arange(4)})
    assert draw() == first


def test_histograms_are_densities_over_common_bins() -> None:
    rng = np.random.default_rng(0)
    samples = {"before": rng.uniform(0, 1, (4, 50)), "after": np.array([0.5, np.nan, 0.5])}
    axes = figures.histograms(samples, bins=10, span=(0, 1)).axes[0]
    for patch in axes.patches:
        values, edges, _ = patch.get_data()
        assert np.sum(values * np.diff(edges)) == pytest.approx(1.0)
    decode(axes.figure)
    decode(figures.histograms({"flat": np.full(7, 0.25)}))


def test_errors_match_their_definitions() -> None:
    original, prediction = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0])
    assert figures.relative_error(prediction, original) == pytest.approx(3 / 6)
    assert figures.root_mean_square_error(prediction, original) == pytest.approx((5 / 3) ** 0.5)


def test_spectrum_is_centred() -> None:
    spectrum = figures.log_spectrum(np.ones((8, 10)))
    assert spectrum[4, 5] == pytest.approx(np.log1p(80))
    assert np.count_nonzero(spectrum > 1e-9) == 1


@pytest.mark.parametrize("shape", [(2, 1, 16, 12), (1, 3, 16, 16), (1, 1, 6, 16, 16)])
def test_reconstruction_grid_shows_every_column_and_writes_the_error(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    original, corrupted, guide = (rng.uniform(size=shape) for _ in range(3))
    figure = figures.reconstruction_grid(original, corrupted, original, guide[:, :1], error="rmse")
    rows = shape[0] * (3 if len(shape) == 5 else 1)  # a volume is shown in three planes
    assert len(figure.axes) == 8 * rows
    notes = [text.get_text() for text in figure.axes[2].texts + figure.axes[3].texts]
    assert notes == [f"RMSE {np.sqrt(np.mean((corrupted[0] - original[0]) ** 2)):.3f}", "RMSE 0.000"]
    decode(figure)
    assert len(figures.reconstruction_grid(original, corrupted, original, spectra=False).axes) == 4 * rows


def test_a_volume_is_shown_in_its_three_middle_planes_and_those_of_its_spectrum() -> None:
    rng = np.random.default_rng(2)
    volume, guide = rng.uniform(size=(1, 1, 6, 10, 14)), rng.uniform(size=(1, 1, 6, 10, 14))
    figure = figures.reconstruction_grid(
        volume,
        volume,
        volume,
        guide,
        labels=["image"],
        voxels=[(5.0, 2.0, 1.0)],
        views=("axial", "coronal", "sagittal"),
    )
    rows = [figure.axes[8 * k : 8 * k + 8] for k in range(3)]
    v, g = volume[0, 0], guide[0, 0]
    # Slices as they are; in the other two the first slice lies at the bottom
    expected = [(v[3], g[3]), (v[::-1, 5], g[::-1, 5]), (v[::-1, :, 7], g[::-1, :, 7])]
    for row, (plane, other) in zip(rows, expected):
        np.testing.assert_allclose(row[0].images[0].get_array(), plane)
        np.testing.assert_allclose(row[1].images[0].get_array(), other)
    centred = np.log1p(np.abs(np.fft.fftshift(np.fft.fftn(v))))
    for row, plane in zip(rows, (centred[3], centred[::-1, 5], centred[::-1, :, 7])):
        np.testing.assert_allclose(row[5].images[0].get_array(), plane)
    assert [row[0].get_ylabel() for row in rows] == ["image\naxial", "image\ncoronal", "image\nsagittal"]
    assert [row[0].get_aspect() for row in rows] == [2.0, 5.0, 2.5]
    assert [len(row[2].texts) for row in rows] == [1, 0, 0]
    decode(figure)


def test_marks_count_what_is_right_and_wrong() -> None:
    truth = np.array([[0, 1, 1, 2], [0, 0, 2, 2]])
    prediction = np.array([[1, 1, 0, 1], [0, 0, 2, 2]])
    marks, names = mark_errors(truth, prediction)
    np.testing.assert_array_equal(marks, [[2, 1, 3, 4], [0, 0, 1, 1]])
    assert [name for _, name in names] == ["true positive", "false positive", "false negative", "wrong class"]
    inside = np.ones_like(truth, dtype=bool)
    inside[:, 0] = False
    assert mark_errors(truth, prediction, inside)[0][0, 0] == 0
    assert len(mark_errors(truth > 0, prediction > 0)[1]) == 3


def test_overlay_of_a_volume_shows_the_slice_with_most_labels_and_has_a_legend() -> None:
    truth = np.zeros((4, 8, 8), dtype=int)
    truth[2, 2:6, 2:6] = 1
    image = np.zeros((1, 4, 8, 8))
    image[:, 2] = 0.5
    figure = segmentation_overlay(
        image, truth, np.zeros_like(truth), title="worst", inside=np.ones_like(truth, dtype=bool)
    )
    assert float(figure.axes[0].images[0].get_array().max()) == 0.5
    assert figure.legends[0].get_texts()[0].get_text() == "true positive"
    drawn = np.asarray(figure.axes[1].images[0].get_array())
    assert drawn[3, 3, 0] > 0.8 > drawn[3, 3, 2] + 0.3  # missed: yellow
    decode(figure)
    with pytest.raises(ValueError, match="differ in size"):
        segmentation_overlay(image, truth, truth[:, :4])


@pytest.mark.parametrize(
    "name", ["cost $5 and $6", r"$\frac{", "line\nbreak", "bell\x07", "not \udcff utf-8", "<b>&", "\0"]
)
def test_names_of_any_characters_stand_in_a_figure(name: str) -> None:
    assert figures.png_bytes(figures.loss_curves({name: ([0, 1], [1, 2]), "other": ([0, 1], [2, 1])})).startswith(
        b"\x89PNG"
    )


def test_share_curves_end_at_half_a_cycle_and_draw_the_null_apart() -> None:
    x = np.linspace(0, 0.5, 6)
    figure = spectra.share_curves(
        {"encoder": (x, [1, 0.9, 0.5, 0.2, np.nan, 0]), "null": (x, x * 0)},
        bands={"low": (0, 0.1), "high": (0.1, np.inf)}, null="null",
    )  # fmt: skip
    axes = figure.axes[0]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    assert np.array_equal(axes.lines[0].get_ydata(), [1, 0.9, 0.5, 0.2, np.nan, 0], equal_nan=True)
    assert axes.get_xlim() == (0, 0.5)
    assert {text.get_text() for text in axes.texts} == {"low", "high"}
    decode(figure)
