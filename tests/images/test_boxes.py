"""Boxes keep their place in the patient when axes are turned; spheres and masks get the boxes they have."""

import itertools

import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from scipy import ndimage

from frepa.images import boxes

ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*order)
]  # fmt: skip


def in_every_orientation(affine, size):
    """(affine of the same volume with its axes turned, order of the axes, which are flipped), 48 of them."""
    for codes in ORIENTATIONS:
        change = axcodes2ornt(tuple(codes))
        yield affine @ inv_ornt_aff(change, size), change


@pytest.fixture
def affine():
    """Odd spacings and an origin that no float holds exactly."""
    matrix = np.diag([0.703125, 0.7, 1.1, 1.0])
    matrix[:3, 3] = -171.3, 102.123456, -47.9
    return matrix


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


def test_turning_and_back_is_exact_in_all_orientations(affine):
    size = (21, 34, 55)
    corners = np.array([[0.0, 3, 7, 21, 8, 55], [2.5, 1.25, 9, 4.75, 30, 10.125]])
    for other, _ in in_every_orientation(affine, size):
        there = boxes.turned(corners, affine, other)
        assert np.array_equal(boxes.turned(there, other, affine), corners)


def test_turned_boxes_are_those_of_the_turned_mask(affine):
    mask = np.zeros((7, 8, 9), np.uint8)
    mask[1:4, 2:8, 5:6] = 1
    corners, _ = boxes.of_components(mask)
    for other, change in in_every_orientation(affine, mask.shape):
        turned = np.transpose(mask, np.argsort(change[:, 0]).astype(int))
        flipped = [int(change[axis, 0]) for axis in range(3) if change[axis, 1] < 0]
        expected, _ = boxes.of_components(np.flip(turned, flipped))
        assert np.array_equal(boxes.turned(corners, affine, other), expected)


def test_turning_works_in_2d():
    affine = np.diag([0.5, 0.25, 1.0])
    exchanged = affine[:, [1, 0, 2]]
    exchanged[:2, 2] = affine[:2, :2] @ [0, 9]  # columns first, from the tenth backwards
    exchanged[:2, 0] *= -1
    assert np.array_equal(boxes.turned(np.array([[2.0, 3, 5, 8]]), affine, exchanged), [[2.0, 2, 7, 5]])


def test_on_an_oblique_grid_the_box_holds_all_corners(affine):
    angle = 0.3
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    other = turn @ affine
    box = np.array([[2.0, 3, 4, 9, 8, 7]])
    points = np.array(list(itertools.product((2.0, 9), (3.0, 8), (4.0, 7)))) - 0.5
    world = points @ affine[:3, :3].T + affine[:3, 3]
    expected = (world - other[:3, 3]) @ np.linalg.inv(other[:3, :3]).T + 0.5
    found = boxes.turned(box, affine, other)
    assert np.allclose(found, [[*expected.min(0), *expected.max(0)]])


def test_a_sphere_touches_the_six_sides_of_its_box(affine):
    rng = np.random.default_rng(0)
    angle = 0.7
    oblique = np.eye(4)
    oblique[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    directions = rng.normal(size=(200_000, 3))
    surface = 4.0 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    for matrix in (affine, oblique @ affine):
        place = matrix[:3, :3] @ [10.0, 12, 7] + matrix[:3, 3]
        inverse = np.linalg.inv(matrix)
        voxels = (place + surface) @ inverse[:3, :3].T + inverse[:3, 3] + 0.5
        found = boxes.around(place[None], np.array([8.0]), matrix)
        assert np.allclose(boxes.centres(found), [[10.5, 12.5, 7.5]])
        assert np.allclose(found, [[*voxels.min(0), *voxels.max(0)]], atol=0.01)
        assert np.all(found[0, :3] <= voxels.min(0))
        assert np.all(found[0, 3:] >= voxels.max(0))


def test_an_unknown_diameter_is_ten_millimetres(affine):
    place = np.array([[3.0, -20, 5]])
    assert np.array_equal(boxes.around(place, np.array([-1.0]), affine), boxes.around(place, np.array([10.0]), affine))


def test_no_sphere_gives_no_box(affine):
    assert boxes.around(np.zeros((0, 3)), np.zeros(0), affine).shape == (0, 6)


@pytest.mark.parametrize("size", [(40, 50), (12, 20, 16)])
def test_components_of_each_value_as_scipy_finds_them(size):
    rng = np.random.default_rng(1)
    mask = rng.choice(3, size=size, p=[0.94, 0.03, 0.03]).astype(np.uint8)
    corners, values = boxes.of_components(mask)
    expected = set()
    for value in (1, 2):
        labels, _ = ndimage.label(mask == value, structure=np.ones((3,) * mask.ndim))
        for place in ndimage.find_objects(labels):
            expected.add((value, *(s.start for s in place), *(s.stop for s in place)))
    found = [(value, *box) for value, box in zip(values.tolist(), corners.tolist())]
    assert set(found) == expected
    assert corners.dtype == np.float64
    assert values.dtype == np.int64


def test_a_mask_of_rows_3_to_7_has_a_box_from_3_to_8():
    mask = np.zeros((10, 10), np.float32)
    mask[3:8, 2] = 200.0
    corners, values = boxes.of_components(mask)
    assert corners.tolist() == [[3.0, 2.0, 8.0, 3.0]]
    assert values.tolist() == [200]
    assert boxes.extents(corners).tolist() == [[5.0, 1.0]]
    assert boxes.of_components(np.zeros((4, 5, 6)))[0].shape == (0, 6)


def test_clipping_keeps_what_lies_inside():
    corners = np.array([[-3.0, 2, 5, 30], [11, 2, 14, 3]])
    assert boxes.clipped(corners, (10, 20)).tolist() == [[0.0, 2, 5, 20], [10, 2, 10, 3]]


def test_empty_boxes_have_the_right_shapes():
    assert boxes.Boxes.empty(3).corners.shape == (0, 6)
    assert boxes.Boxes.empty(2).classes.dtype == np.int64
    assert [part.shape for part in boxes.Detections.empty(2)] == [(0, 4), (0,), (0,)]
