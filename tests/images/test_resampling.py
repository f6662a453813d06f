"""Resampling to a voxel size, against SciPy, SimpleITK and closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.resampling import UNKNOWN_SPACING, resample, resampled_header, resampled_size
from frepa.images.scan import Header, Scan

RNG = np.random.default_rng(8)


def affine(spacing: tuple[float, ...], origin: tuple[float, ...] = (3.0, -20.0, 7.0)) -> np.ndarray:
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = origin
    return matrix


def world_ramp(scan: Scan) -> np.ndarray:
    """A function that is linear in world coordinates, at every voxel's centre."""
    assert scan.affine is not None
    index = np.stack(np.meshgrid(*[np.arange(n) for n in scan.size], indexing="ij")).reshape(3, -1)
    world = scan.affine[:3, :3] @ index + scan.affine[:3, 3:]
    return (np.array([2.0, -1.0, 0.5]) @ world + 40).reshape(scan.size)


@pytest.mark.parametrize("order", ["bicubic", "bilinear"])
@pytest.mark.parametrize("wanted", [1.0, (2.0, 3.0, 1.5), (6.0, 0.5, 2.0)])
def test_every_voxel_keeps_its_place_in_the_world(order: str, wanted: float | tuple[float, ...]) -> None:
    source = Scan(np.zeros((1, 24, 30, 26), np.float32), (3.0, 1.5, 1.5), affine((3.0, 1.5, 1.5)))
    source = Scan(world_ramp(source)[None].astype(np.float32), source.spacing, source.affine)
    result = resample(source, wanted, order)
    assert result.spacing is not None
    # At the border there is nothing to interpolate with
    margins = [int(np.ceil(max(3 * have, 2 * now) / now)) for have, now in zip((3.0, 1.5, 1.5), result.spacing)]
    inside = tuple(slice(margin, -margin) for margin in margins)
    wrong = np.abs(result.array[0] - world_ramp(result))[inside]
    assert wrong.size > 100
    # The ramp rises by up to 2 per mm, so this is a tenth of a millimetre
    assert wrong.max() < 0.2
    assert wrong.mean() < 0.05
    assert result.affine is not None
    assert result.spacing == pytest.approx(np.linalg.norm(result.affine[:3, :3], axis=0))
    extent = np.array(result.size) * np.array(result.spacing)
    assert extent == pytest.approx(np.array(source.size) * np.array(source.spacing))


def test_linear_interpolation_equals_simpleitk_inside() -> None:
    array = RNG.random((9, 12, 10)).astype(np.float32)
    result = resample(Scan(array[None], (2.0, 2.0, 2.0)), 1.0, "bilinear")
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 2.0))
    # The outer edge of the first voxel stays where it is
    reference = sitk.Resample(
        image, (20, 24, 18), sitk.Transform(), sitk.sitkLinear, (-0.5, -0.5, -0.5), (1.0, 1.0, 1.0)
    )
    expected = sitk.GetArrayFromImage(reference)[1:-1, 1:-1, 1:-1]
    assert np.abs(result.array[0, 1:-1, 1:-1, 1:-1] - expected).max() < 1e-5


def test_fine_texture_does_not_alias() -> None:
    x = np.cos(np.pi * np.arange(96) * 0.95)  # nearly the highest frequency there is
    array = np.broadcast_to(x, (1, 96, 96, 96)).astype(np.float32)
    shrunk = resample(Scan(array, (1.0, 1.0, 1.0)), 4.0).array
    assert np.abs(shrunk[..., 2:-2]).max() < 0.05
    assert np.abs(array[..., ::4]).max() > 0.9  # which picking voxels would alias


def test_labels_stay_labels_and_images_keep_type_and_range() -> None:
    labels = RNG.integers(0, 3, (1, 20, 20, 20), dtype=np.uint8) * 7
    result = resample(Scan(labels, (1.0, 1.0, 1.0)), (0.7, 1.9, 1.0), "nearest").array
    assert result.dtype == np.uint8
    assert set(np.unique(result)) <= {0, 7, 14}
    image = RNG.integers(-1000, 3000, (1, 20, 20), dtype=np.int16)
    result = resample(Scan(image, (1.0, 1.0)), 0.6).array
    assert result.dtype == np.int16
    assert image.min() <= result.min()
    assert result.max() <= image.max()


def test_the_header_says_what_resampling_gives() -> None:
    scan = Scan(np.zeros((1, 11, 40, 37), np.int16), (5.0, 0.9, 0.9), affine((5.0, 0.9, 0.9)))
    result, header = (
        resample(scan, 1.3),
        resampled_header(Header(1, scan.size, 1, None, scan.spacing, scan.affine), 1.3),
    )
    assert header.size == result.size == resampled_size(scan.size, (5.0, 0.9, 0.9), (1.3,) * 3) == (42, 28, 26)
    assert header.spacing == pytest.approx(result.spacing)
    assert header.affine is not None
    assert np.allclose(header.affine, result.affine)


def test_unknown_spacing_is_said_and_wrong_spacing_refused() -> None:
    scan = resample(Scan(np.zeros((1, 4, 4))), 1.0)
    assert scan.size == (4, 4)
    assert scan.notes == (UNKNOWN_SPACING,)
    with pytest.raises(InputError, match="2 positive numbers"):
        resample(Scan(np.zeros((1, 4, 4)), (1.0, 1.0)), (1.0, 2.0, 3.0))
    with pytest.raises(InputError, match="positive"):
        resample(Scan(np.zeros((1, 4, 4)), (1.0, 1.0)), 0.0)


def test_real_scans_at_a_spacing(shared_data: Path) -> None:
    source = open_source(shared_data / "small_3D_formats" / "pyradiomics_nrrd", dims=3)
    for i in range(len(source)):
        before = source.read(i)
        scan = resample(before, 2.0)
        assert scan.size == resampled_header(source.header(i), 2.0).size
        assert scan.spacing == pytest.approx((2.0, 2.0, 2.0), rel=0.03)
        assert scan.array.dtype == before.array.dtype
