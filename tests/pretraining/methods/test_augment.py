"""Augmentation against SciPy's resampling, NumPy's interpolation, MONAI's histogram shift and plain flips."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.transforms import RandHistogramShift
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch.utils._python_dispatch import TorchDispatchMode

from frepa.draws import Draws, sample_keys
from frepa.errors import InputError
from frepa.pretraining.methods.augment import Augmentation, map_intensity, resample

SHAPES = [(20, 31), (24, 24), (9, 12, 10)]
NOTHING = {"flip": 0, "rotation": 0, "affine": 0, "histogram": 0}


def _images(shape: tuple[int, ...], rows: int = 6, channels: int = 2) -> torch.Tensor:
    return torch.rand(rows, channels, *shape, generator=torch.Generator().manual_seed(0))


def _draws(rows: int = 6, seed: int = 0) -> Draws:
    return Draws(sample_keys(seed, range(rows), 0))


def _by_scipy(image: np.ndarray, matrix: np.ndarray, **options) -> np.ndarray:
    """One channel through ``q = M (p - c) + m + c``; scipy's "grid-constant" is zeros outside as torch means it."""
    n = image.ndim
    centre = (np.array(image.shape) - 1) / 2
    offset = centre + matrix[:, n] - matrix[:, :n] @ centre
    return ndimage.affine_transform(image, matrix[:, :n], offset, order=1, mode="grid-constant", **options)


def _rotation(angle: float) -> np.ndarray:
    """Output to input, in pixels about the centre, for a content that turns by ``angle`` from rows towards columns."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[[c, s, 0], [-s, c, 0]]])


# ---- resampling


@pytest.mark.parametrize("shape", [*SHAPES, (1, 9), (7, 1), (5, 1, 6)])
def test_resampling_is_scipys_affine_transform(shape):
    n = len(shape)
    g = np.random.default_rng(0)
    matrices = np.concatenate([np.eye(n) + 0.3 * g.normal(size=(6, n, n)), 2 * g.normal(size=(6, n, 1))], axis=2)
    x = _images(shape)
    moved = resample(x, matrices, "linear").numpy()
    for row, channel in itertools.product(range(6), range(2)):
        expected = _by_scipy(x[row, channel].numpy(), matrices[row])
        np.testing.assert_allclose(moved[row, channel], expected, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["linear", "auto"])
def test_the_identity_matrix_changes_nothing(shape, interpolation):
    x = _images(shape)
    identity = np.tile(np.eye(len(shape), len(shape) + 1), (6, 1, 1))
    torch.testing.assert_close(resample(x, identity, interpolation), x, atol=2e-5, rtol=0)


def test_a_quarter_turn_of_a_square_is_rot90_under_every_interpolation():
    x = _images((16, 16), rows=1)
    for interpolation in ("linear", "cubic", "auto"):
        moved = resample(x, _rotation(np.pi / 2), interpolation)
        torch.testing.assert_close(moved, torch.rot90(x, 1, (2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(41, 81), (81, 41)])
def test_rotation_is_rigid_in_pixels_where_the_image_is_not_square(shape):
    """Two points 12 pixels apart stay 12 apart, wherever they turn; stretched coordinates would change that."""
    centre = (shape[0] // 2, shape[1] // 2)
    for start, end in (((0, 6), (0, -6)), ((6, 0), (-6, 0))):
        x = torch.zeros(1, 1, *shape)
        for row, column in (start, end):
            x[0, 0, centre[0] + row, centre[1] + column] = 1
        moved = resample(x, _rotation(0.7), "linear")[0, 0].numpy()
        labels, count = ndimage.label(moved > 0.02)
        found = np.array(ndimage.center_of_mass(moved, labels, range(1, count + 1)))
        assert count == 2
        assert np.linalg.norm(found[0] - found[1]) == pytest.approx(12, abs=0.35)


def test_rotation_in_a_volume_is_rigid_in_voxels():
    x = torch.zeros(1, 1, 9, 21, 35)
    x[0, 0, 4, 10, 17 - 8] = x[0, 0, 4, 10, 17 + 8] = 1
    matrices = np.zeros((1, 3, 4))
    matrices[:, 0, 0] = 1
    matrices[:, 1:, 1:3] = _rotation(0.6)[:, :, :2]
    moved = resample(x, matrices)[0, 0, 4].numpy()
    labels, count = ndimage.label(moved > 0.02)
    found = np.array(ndimage.center_of_mass(moved, labels, range(1, count + 1)))
    assert np.linalg.norm(found[0] - found[1]) == pytest.approx(16, abs=0.35)


def test_a_shift_is_in_pixels_and_brings_in_zeros():
    x = _images((8, 10), rows=1)
    matrices = np.array([[[1.0, 0, -2], [0, 1, 3]]])
    expected = torch.zeros_like(x)
    expected[:, :, 2:, :7] = x[:, :, :6, 3:]
    for interpolation in ("linear", "cubic"):
        torch.testing.assert_close(resample(x, matrices, interpolation), expected, atol=1e-5, rtol=0)


def test_cubic_keeps_detail_that_linear_blurs():
    waves = torch.sin(torch.arange(64) * 1.6).expand(1, 1, 64, 64) * 0.4 + 0.5
    half = np.array([[[1.0, 0, 0], [0, 1, 0.5]]])
    wanted = torch.sin((torch.arange(64) + 0.5) * 1.6)[8:-8] * 0.4 + 0.5
    error = {kind: (resample(waves, half, kind)[0, 0, 32, 8:-8] - wanted).abs().max() for kind in ("linear", "cubic")}
    assert error["cubic"] < 0.5 * error["linear"]
    torch.testing.assert_close(resample(waves, half), resample(waves, half, "cubic"))


def test_cubic_is_refused_for_volumes():
    with pytest.raises(InputError, match="2D alone"):
        Augmentation(affine=1, interpolation="cubic")(_images((5, 6, 7)), _draws())


def test_low_precision_matrix_products_do_not_move_pixels():
    x = _images((64, 64))
    matrices = np.repeat(_rotation(0.3), 6, axis=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = resample(x, matrices)
    assert torch.equal(moved, resample(x, matrices))


# ---- the composed geometry


@pytest.mark.parametrize("shape", SHAPES)
def test_one_resampling_equals_flip_then_affine_in_turn(shape):
    """The composed matrix does what flipping exactly and resampling the flipped image does."""
    x, draws = _images(shape), _draws()
    options = {**NOTHING, "rotation": 1, "affine": 1, "interpolation": "linear"}
    both, flips_only, straight = (
        Augmentation(**{**options, "flip": 0.5}),
        Augmentation(**{**NOTHING, "flip": 0.5}),
        Augmentation(**options),
    )
    flips, _, matrices = both.matrices(shape, draws)
    assert flips.any()
    assert not flips.all()
    in_turn = straight(flips_only(x, draws), draws)
    torch.testing.assert_close(both(x, draws), in_turn, atol=2e-5, rtol=0)
    for row in range(6):
        expected = _by_scipy(x[row, 0].numpy(), matrices[row])
        np.testing.assert_allclose(both(x, draws)[row, 0].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_that_are_only_flipped_keep_their_exact_values(shape):
    x, draws = _images(shape, rows=24), _draws(24)
    augmentation = Augmentation(histogram=0)
    flips, warps, _ = augmentation.matrices(shape, draws)
    out = augmentation(x, draws)
    only = [row for row in range(24) if not warps[row]]
    assert len({tuple(flips[row]) for row in only}) > 2
    assert all(0 < share < 1 for share in flips.mean(0))  # along every axis
    for row in only:
        assert torch.equal(out[row], x[row].flip([int(axis) + 1 for axis in np.flatnonzero(flips[row])]))
    assert all(not torch.equal(out[row], x[row]) for row in np.flatnonzero(warps))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pure_rotation_is_orthonormal_and_within_its_range(shape):
    n = len(shape)
    _, warps, matrices = Augmentation(**{**NOTHING, "rotation": 1}, max_rotation=20).matrices(shape, _draws(200))
    turn = matrices[:, :, :n]
    np.testing.assert_allclose(turn @ turn.transpose(0, 2, 1), np.tile(np.eye(n), (200, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turn), 1)
    assert warps.all()
    assert np.all(matrices[:, :, n] == 0)
    if n == 2:
        degrees = np.degrees(np.arctan2(turn[:, 1, 0], turn[:, 0, 0]))
        assert np.abs(degrees).max() <= 20
        assert degrees.min() < -15
        assert degrees.max() > 15
    else:
        # The content turns in all three planes, each by an angle of its own
        degrees = Rotation.from_matrix(turn.transpose(0, 2, 1)).as_euler("ZYX", degrees=True)
        assert np.abs(degrees).max() <= 20 + 1e-9
        assert np.all(degrees.min(0) < -15)
        assert np.all(degrees.max(0) > 15)
        assert np.abs(np.corrcoef(degrees.T) - np.eye(3)).max() < 0.25


@pytest.mark.parametrize("shape", SHAPES)
def test_an_affine_scales_shears_and_shifts_within_its_ranges(shape):
    n = len(shape)
    options = {"max_scale": 0.2, "max_shear": 0.3, "max_shift": 0.1}
    _, _, matrices = Augmentation(**{**NOTHING, "affine": 1}, **options).matrices(shape, _draws(200))
    forward = np.linalg.inv(matrices[:, :, :n])
    scale = np.stack([forward[:, i, i] for i in range(n)], axis=1)
    shear = np.stack([forward[:, i, j] for i, j in itertools.combinations(range(n), 2)], axis=1)
    shift = (-forward @ matrices[:, :, n:])[:, :, 0] / np.array(shape)
    for drawn, limit in ((scale - 1, 0.2), (shear, 0.3), (shift, 0.1)):
        assert np.abs(drawn).max() <= limit + 1e-9
        assert drawn.min(0).max() < -0.8 * limit
        assert drawn.max(0).min() > 0.8 * limit
        if drawn.shape[1] > 1:
            assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.25


def test_each_part_is_drawn_as_often_as_asked():
    draws = _draws(2000)
    flips, warps, _ = Augmentation(flip=0.3, rotation=0.2, affine=0.5).matrices((8, 8), draws)
    assert flips.mean(0) == pytest.approx([0.3, 0.3], abs=0.04)
    assert np.mean(flips[:, 0] & flips[:, 1]) == pytest.approx(0.09, abs=0.03)
    assert warps.mean() == pytest.approx(1 - 0.8 * 0.5, abs=0.04)


# ---- intensity


@pytest.mark.parametrize("shape", SHAPES)
def test_the_histogram_shift_is_numpys_interpolation_over_the_images_own_range(shape):
    x = 0.2 + 0.5 * _images(shape)
    points = np.sort(np.random.default_rng(0).random((6, 10)), axis=1)
    points[:, 0], points[:, -1] = 0, 1
    mapped = map_intensity(x, points).numpy()
    for row, image in enumerate(x.numpy()):
        low, high = image.min(), image.max()
        steps = low + np.linspace(0, 1, 10) * (high - low)
        np.testing.assert_allclose(mapped[row], np.interp(image, steps, low + points[row] * (high - low)), atol=1e-6)


def test_the_histogram_shift_applies_points_as_monai_does():
    x = 0.1 + 0.6 * _images((12, 13), rows=1)
    monai = RandHistogramShift(num_control_points=7, prob=1.0)
    monai.set_random_state(3)
    expected = monai(x[0])
    mapped = map_intensity(x, monai.floating_control_points[None])
    torch.testing.assert_close(mapped[0], torch.as_tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("control_points", [3, 10])
def test_the_drawn_map_is_monotone_keeps_the_range_and_moves_the_middle(control_points):
    x = torch.linspace(0.1, 0.9, 500).expand(40, 1, 500)[..., None].contiguous()
    out = Augmentation(**{**NOTHING, "histogram": 1}, control_points=control_points)(x, _draws(40))[..., 0]
    assert (out.diff(dim=-1) >= -1e-6).all()
    torch.testing.assert_close(out[..., [0, -1]], x[..., [0, -1], 0], atol=1e-6, rtol=0)
    middle = out[:, 0, 250]
    assert middle.max() > 0.55
    assert middle.min() < 0.45
    assert middle.mean() == pytest.approx(0.5, abs=0.1)


def test_all_channels_of_an_image_share_the_map_and_the_geometry():
    grey = _images((16, 15), channels=1)
    out = Augmentation(flip=0.5, rotation=0.8, affine=0.8, histogram=0.8)(grey.expand(-1, 3, -1, -1), _draws())
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])


# ---- the whole


@pytest.mark.parametrize("shape", [*SHAPES, (1, 9), (7, 1), (1, 1), (1, 6, 7)])
def test_output_has_the_inputs_shape_and_stays_in_the_unit_range(shape):
    x = (_images(shape, rows=16) > 0.5).float()  # hard edges: cubic overshoots before it is clamped
    kept = x.clone()
    out = Augmentation(flip=0.5, rotation=0.9, affine=0.9, histogram=0.9)(x, _draws(16))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert torch.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(x, kept)


def test_constant_images_stay_finite_and_keep_their_value_inside():
    for value in (0.0, 0.4, 1.0):
        x = torch.full((8, 1, 32, 32), value)
        out = Augmentation(flip=0.5, rotation=1, affine=1, histogram=1)(x, _draws(8))
        torch.testing.assert_close(out[..., 12:20, 12:20], x[..., 12:20, 12:20])
    x = torch.full((8, 1, 32, 32), 0.4)
    assert torch.equal(Augmentation(**{**NOTHING, "histogram": 1})(x, _draws(8)), x)


def test_axes_of_one_pixel_take_no_part():
    shape = (1, 12, 13)
    _, _, matrices = Augmentation(rotation=1, affine=1, flip=0).matrices(shape, _draws())
    np.testing.assert_array_equal(matrices[:, 0], np.tile([1.0, 0, 0, 0], (6, 1)))
    np.testing.assert_array_equal(matrices[:, 1:, 0], 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rows_augmentation_depends_on_its_key_alone(shape):
    x = _images(shape)
    augmentation = Augmentation(flip=0.5, rotation=0.5, affine=0.5, histogram=0.5)
    whole = augmentation(x, _draws())
    for rows in ([0], [5], [4, 1], [3, 2, 0]):
        assert torch.equal(augmentation(x[rows], _draws().select(rows)), whole[rows])
    assert not torch.equal(augmentation(x, _draws(seed=1)), whole)


def test_nothing_drawn_is_nothing_done_and_global_random_state_is_untouched():
    x, before = _images((8, 9)), torch.get_rng_state()
    assert torch.equal(Augmentation(**NOTHING)(x, _draws()), x)
    Augmentation()(x, _draws())
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_reads_a_value_back_from_the_device():
    with _NoReadBack():
        Augmentation(rotation=0.5, affine=0.5, histogram=0.5)(_images((16, 15)), _draws())


class _NoReadBack(TorchDispatchMode):
    """Fails on the operations that make the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in (
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::equal",
            "aten::is_nonzero",
        )
        return func(*args, **(kwargs or {}))


def test_half_precision_images_come_back_as_they_were():
    x = _images((16, 15)).half()
    out = Augmentation(rotation=1, affine=1, histogram=1)(x, _draws())
    assert out.dtype == torch.float16
    wanted = Augmentation(rotation=1, affine=1, histogram=1)(x.float(), _draws())
    torch.testing.assert_close(out.float(), wanted, atol=3e-3, rtol=0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("flip", 1.5),
        ("histogram", -0.1),
        ("affine", float("nan")),
        ("max_rotation", 400),
        ("max_scale", 1.0),
        ("control_points", 2),
        ("interpolation", "sinc"),
    ],
)
def test_impossible_options_are_refused_by_name(option, value):
    with pytest.raises(InputError, match=option):
        Augmentation(**{option: value})
