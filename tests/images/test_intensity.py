"""Scaling against NumPy's own percentile and hand-made values."""

from __future__ import annotations

import numpy as np
import pytest

from frepa.errors import InputError
from frepa.images.intensity import WINDOWS, bounds, exact_percentiles, scale, to_unit
from frepa.images.scan import HU, Scan

RNG = np.random.default_rng(0)
ARRAYS = {
    "uint8": RNG.integers(0, 256, (3, 61, 47), dtype=np.uint8),
    "uint8_sparse": (RNG.random((1, 50, 50)) < 0.01).astype(np.uint8) * 200,
    "uint16": RNG.integers(0, 65536, (1, 80, 90), dtype=np.uint16),
    "int16": RNG.normal(0, 3000, (1, 8, 40, 40)).clip(-32768, 32767).astype(np.int16),
    "int8": RNG.integers(-128, 128, (1, 9, 9), dtype=np.int8),
    "int32": RNG.integers(-(10**6), 10**6, (1, 70, 70), dtype=np.int32),
    "float32_small": RNG.normal(0, 1, (1, 33, 21)).astype(np.float32),
    "float32_large": RNG.normal(-5, 100, (1, 300, 301)).astype(np.float32),
    "float32_ties": np.round(RNG.normal(0, 1, (1, 300, 300)), 1).astype(np.float32),
    "float64": RNG.normal(0, 1, (1, 20, 20)),
    "one_pixel": np.array([[[7]]], np.uint8),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_percentiles_equal_numpys_to_the_last_bit(name: str) -> None:
    array = ARRAYS[name]
    wanted = [0.0, 0.5, 1 / 3, 50.0, 99.5, 100.0]
    oracle = np.percentile(array.astype(np.float64), wanted)
    assert exact_percentiles(array, wanted) == tuple(oracle.tolist())


def test_percentiles_leave_out_nan_infinity_and_padding() -> None:
    values = RNG.normal(0, 1, 90_000).astype(np.float32)
    dirty = values.copy()
    dirty[:3000], dirty[3000:3100] = np.nan, np.inf
    assert exact_percentiles(dirty, (1, 99)) == tuple(np.percentile(values[3100:].astype(np.float64), (1, 99)))
    for kind in (np.int16, np.int32):
        stored = RNG.integers(-1000, 1000, 5000).astype(kind)
        padded = np.concatenate([stored, np.full(9000, -2000, kind)])
        assert exact_percentiles(padded, (0.5, 99.5), ignore=-2000) == tuple(np.percentile(stored, (0.5, 99.5)))
    assert exact_percentiles(np.full(4, np.nan, np.float32), (0.5, 99.5)) == (0.0, 0.0)
    assert exact_percentiles(np.full(4, 3, np.uint8), (0.5, 99.5), ignore=3) == (0.0, 0.0)


@pytest.mark.parametrize("name", ARRAYS)
def test_unit_range_against_the_definition(name: str) -> None:
    array = ARRAYS[name]
    unit = to_unit(Scan(array))
    assert unit.dtype == np.float32
    assert unit.shape == array.shape
    low, high = np.percentile(array.astype(np.float64), (0.5, 99.5))
    if low == high:
        low, high = float(array.min()), float(array.max())
    oracle = np.zeros(array.shape) if low == high else np.clip((array.astype(np.float64) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(unit, oracle, atol=2e-6)


def test_colour_keeps_its_hue() -> None:
    # The second channel is half the first everywhere; channels scaled apart would come out equal
    red = RNG.integers(100, 200, (1, 64, 64)).astype(np.uint8)
    array = np.concatenate([red, red // 2, np.zeros_like(red)])
    unit = to_unit(Scan(array), percentiles=(0, 100))
    np.testing.assert_allclose(unit[1], array[1] / array.max(), atol=1e-6)
    assert unit[2].max() == 0


def test_constant_nan_and_padding_become_zero() -> None:
    assert to_unit(Scan(np.full((1, 5, 5), 77, np.uint16))).max() == 0
    array = np.linspace(1, 2, 100, dtype=np.float32).reshape(1, 10, 10)
    array[0, 0, 0] = np.nan
    unit = to_unit(Scan(array))
    assert unit[0, 0, 0] == 0
    assert np.isfinite(unit).all()
    stored = np.linspace(0, 1000, 100).astype(np.int16).reshape(1, 10, 10)
    stored[0, -1] = 30000
    unit = to_unit(Scan(stored, padding=30000))
    assert unit[0, -1].max() == 0
    assert unit[0, -2, -1] == 1


@pytest.mark.parametrize("name", WINDOWS)
def test_hounsfield_windows(name: str) -> None:
    low, high = {"lung": (-1000, 400), "abdomen": (-160, 240), "brain": (-30, 90), "bone": (-300, 1200)}[name]
    array = np.array([low - 500, low, (low + high) // 2, high, high + 500], np.int16).reshape(1, 1, 5)
    unit = to_unit(Scan(array, unit=HU), window=name)
    np.testing.assert_allclose(unit.ravel(), [0, 0, 0.5, 1, 1], atol=1e-6)


def test_a_named_window_leaves_other_scales_to_percentiles() -> None:
    scan = Scan(ARRAYS["uint16"])
    assert bounds(scan, window="brain") == bounds(scan)
    assert bounds(scan, window=(10, 20)) == (10.0, 20.0)


def test_window_drawn_by_a_number() -> None:
    scan = Scan(np.zeros((1, 2, 2), np.int16), unit=HU)
    drawn = [bounds(scan, window="any", draw=draw) for draw in (0.0, 0.25, 0.5, 0.75, 0.999999)]
    assert drawn == [*WINDOWS.values(), WINDOWS["bone"]]
    with pytest.raises(ValueError, match="draw"):
        bounds(scan, window="any")


def test_wrong_windows_are_refused() -> None:
    scan = Scan(np.zeros((1, 2, 2), np.int16), unit=HU)
    with pytest.raises(InputError, match="Did you mean abdomen"):
        to_unit(scan, window="abdomne")
    with pytest.raises(InputError, match="lower first"):
        to_unit(scan, window=(240, -160))


def test_scale_reads_without_touching_the_input() -> None:
    array = ARRAYS["uint8"].copy()
    array.flags.writeable = False
    scale(array, (10.0, 20.0))
    to_unit(Scan(array))
    assert np.array_equal(array, ARRAYS["uint8"])
