from __future__ import annotations

import numpy as np
import pytest

from frepa.datasets.labels import LabelMap, agreed_maps, label_map
from frepa.errors import InputError


@pytest.mark.parametrize(("values", "written"), [((0, 1), 1), ((0, 255), 255), ((255,), 255), ((0, 1, 255), 255)])
def test_two_values_are_background_and_foreground(values: tuple[float, ...], written: int) -> None:
    labels = label_map(values, "set")
    mask = np.array([0, max(values)])
    np.testing.assert_array_equal(labels.to_classes(mask, "m"), [0, 1])
    np.testing.assert_array_equal(labels.to_values(np.array([0, 1])), [0, written])


def test_other_values_are_one_class_each_and_come_back_as_they_were() -> None:
    labels = label_map({0, 128, 255}, "cells")
    mask = np.array([[0, 128], [255, 128]], dtype=np.uint8)
    np.testing.assert_array_equal(labels.to_classes(mask, "m"), [[0, 1], [2, 1]])
    np.testing.assert_array_equal(labels.to_values(labels.to_classes(mask, "m")), mask)
    assert "128 -> class 1" in labels.describe()
    assert label_map({1, 2}, "organs").values == (0, 1, 2)  # 0 is the background even where no mask has it
    assert label_map({0, 1, 300}, "organs").to_values(np.array([2])).dtype == np.uint16


def test_masks_of_two_valued_layouts_are_cut_at_half_their_range() -> None:
    labels = label_map({0, 3, 250, 255}, "DRIVE", binary=True)
    np.testing.assert_array_equal(labels.to_classes(np.array([0, 3, 250, 255]), "m"), [0, 0, 1, 1])


def test_a_threshold_decides_where_it_is_given() -> None:
    labels = label_map(range(256), "soft", threshold=127)
    np.testing.assert_array_equal(labels.to_classes(np.array([127, 128]), "m"), [0, 1])


@pytest.mark.parametrize(
    ("values", "threshold", "message"),
    [
        (range(200), None, "200 different values.*mask-threshold 127"),
        ({0, 0.5, 1}, None, "0.5.*mask-threshold 0.5"),
        ({-1, 0, 1}, None, "-1"),
        ({0}, None, "empty"),
        ({0, 100}, 127, "no mask value is above the threshold 127"),
    ],
)
def test_values_that_are_no_classes_are_refused(values: set[float], threshold: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        label_map(values, "set", threshold=threshold)


def test_a_value_no_mask_had_before_is_named() -> None:
    with pytest.raises(InputError, match=r"late\.png.*64"):
        LabelMap((0, 128, 255)).to_classes(np.array([64]), "late.png")


def test_sets_trained_together_agree_on_classes() -> None:
    two = {"a": label_map({0, 1}, "a"), "b": label_map({0, 255}, "b", binary=True)}
    assert agreed_maps(two) == two  # each keeps its own limit: 1 is foreground in a, not in b
    many = {"c": LabelMap((0, 1, 2)), "d": LabelMap((0, 2, 3))}
    assert agreed_maps(many) == dict.fromkeys("cd", LabelMap((0, 1, 2, 3)))
    with pytest.raises(InputError, match="Train them apart"):
        agreed_maps(two | many)
