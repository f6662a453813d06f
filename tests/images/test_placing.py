"""Crops at a spacing and around foreground: against closed forms, PyTorch, SciPy, SimpleITK, nibabel and counting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

import frepa
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.geometry import per_axis, resampled_affine, resampled_size, resampling_weights, resize
from frepa.images.loading import Preparation, load_images, make_loader
from frepa.images.placing import _span, _weights, foreground_level, make_crop
from frepa.images.sampling import SampleStream
from frepa.images.scan import HU, Scan
from frepa.images.source import Source
from frepa.images.store.source import StoreSource

FOUR_NUMBERS = (0.0, 1.0)  # bounds that leave values as they are


class _One(Source):
    """A source of one scan."""

    def __init__(self, scan: Scan) -> None:
        super().__init__()
        self.scan, self.dims, self.location = scan, len(scan.size), "one"

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "one"

    def read(self, index: int) -> Scan:
        return self.scan

    def header(self, index: int) -> Any:
        raise NotImplementedError

    fingerprint = "one"
    channels = 1


def _prepared(scan: Scan, size: Any, position: int = 0, **how: Any) -> tuple[np.ndarray, np.ndarray | None]:
    return Preparation(_One(scan), size, mode="crop", window=FOUR_NUMBERS, channels=1, **how).one(0, position)[:2]


@pytest.mark.parametrize(("n", "m"), [(40, 73), (73, 40), (9, 90), (90, 9), (31, 30), (1, 7), (7, 1)])
def test_weights_are_those_of_pytorch(n: int, m: int) -> None:
    whole = resampling_weights(n, m, "bicubic").numpy()
    for first, length in {(0, m), (m // 3, max(1, m // 4)), (m - 1, 1)}:
        low, high = _span(n, m, first, length)
        rows = whole[first : first + length]
        assert np.abs(_weights(n, m, first, length, low, high - low) - rows[:, low:high]).max() < 2e-6
        # and nothing outside is needed
        assert np.abs(np.delete(rows, np.arange(low, high), axis=1)).max(initial=0) < 1e-7


@pytest.mark.parametrize("wanted", [0.7, 1.9, (2.0, 0.6, 1.0)])
def test_a_crop_is_a_piece_of_the_whole_at_that_spacing(wanted: Any) -> None:
    values = np.random.default_rng(0).random((1, 24, 37, 30), np.float32)
    scan = Scan(values, (2.5, 0.9, 1.0), np.diag([2.5, 0.9, 1.0, 1.0]))
    assert scan.spacing is not None
    assert scan.affine is not None
    grid = resampled_size(scan.size, scan.spacing, per_axis(wanted, 3))
    whole, at = resize(values, grid), resampled_affine(scan.affine, scan.size, grid)
    size = (8, 9, 10)
    for position in range(5):
        crop, affine = _prepared(scan, size, position, spacing=wanted)
        assert affine is not None
        first = np.rint(np.linalg.solve(at, affine[:, 3])[:3]).astype(int)
        piece = whole[0][tuple(slice(a, a + n) for a, n in zip(first, size))]
        # Only where the whole is clamped to the range of the scan can they differ, and there by rounding as well
        assert np.abs(crop[0] - piece).max() < 2e-5
        assert np.allclose(affine[:3, :3], at[:3, :3])


def _smooth(world: np.ndarray) -> np.ndarray:
    """A function of a point, in [0, 1]; its waves are 25 mm and more."""
    x, y, z = world
    return 0.5 + 0.2 * np.sin(x / 5) + 0.15 * np.cos(y / 6) + 0.1 * np.sin((x + z) / 4.5)


@pytest.mark.parametrize("spacing", [(1.2, 1.0, 0.8), (3.0, 0.6, 0.6), (0.5, 1.0, 2.0)])
def test_a_resampled_crop_shows_the_patient_where_its_affine_says(spacing: tuple[float, ...]) -> None:
    size = tuple(int(50 / step) for step in spacing)
    turn = np.array([[0, 0.6, -0.8], [0, 0.8, 0.6], [1.0, 0, 0]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, (5, -7, 11)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij")).reshape(3, -1)
    values = _smooth(affine[:3, :3] @ index + affine[:3, 3:]).reshape(size).astype(np.float32)
    scan = Scan(values[None], spacing, affine)
    crop, own = _prepared(scan, 16, position=3, spacing=1.0)
    assert own is not None
    at = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij")).reshape(3, -1)
    world = own[:3, :3] @ at + own[:3, 3:]
    # SciPy at the same points of the patient, and the function itself
    inverse = np.linalg.inv(affine)
    points = inverse[:3, :3] @ world + inverse[:3, 3:]
    inside = np.all((points > 2) & (points < np.array(size)[:, None] - 3), axis=0)
    assert inside.mean() > 0.4
    scipys = ndimage.map_coordinates(values.astype(np.float64), points, order=3)
    assert np.abs(crop.ravel() - scipys)[inside].max() < 0.01
    assert np.abs(crop.ravel() - _smooth(world))[inside].max() < 0.01


def test_ten_to_one_as_simpleitk_resamples_it() -> None:
    index = np.arange(40)
    wave = (np.sin(np.arange(8) * 1.1)[:, None, None] + np.sin(index * 0.2)[None, :, None] + 2 + 0 * index) / 4
    scan = Scan(wave[None].astype(np.float32), (10.0, 1.0, 1.0), np.diag([10.0, 1.0, 1.0, 1.0]))
    crop, affine = _prepared(scan, (64, 24, 24), spacing=1.0, centre=True)
    assert affine is not None
    image = SimpleITK.GetImageFromArray(scan.array[0].astype(np.float64))
    image.SetSpacing((1.0, 1.0, 10.0))
    wanted = SimpleITK.GetImageFromArray(np.zeros((64, 24, 24)))
    wanted.SetOrigin(tuple(float(v) for v in affine[[2, 1, 0], 3]))
    spline = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(image, wanted, SimpleITK.Transform(), SimpleITK.sitkBSpline)
    )
    assert affine[0, 3] == 3.5  # 80 slices of 1 mm from -4.5 mm on, the middle 64 of them
    # Two kinds of cubic interpolation of waves of 5.7 slices
    assert np.abs(crop[0] - spline)[12:-12].max() < 0.03


def test_fine_texture_does_not_alias_in_crops() -> None:
    checkers = np.indices((32, 32, 32)).sum(0) % 2
    crop, _ = _prepared(Scan(checkers[None].astype(np.float32), (1.0,) * 3), 6, spacing=2.0)
    assert np.abs(crop - 0.5).max() < 0.05  # sampling alone would give 0 or 1


@pytest.mark.parametrize("dims", [2, 3])
def test_resizing_at_a_spacing_keeps_the_patients_proportions(dims: int) -> None:
    scan = Scan(np.ones((1, 6, *(30,) * (dims - 1)), np.float32), (10.0, *(1.0,) * (dims - 1)))
    plain, upright = (
        Preparation(_One(scan), 48, window=FOUR_NUMBERS, channels=1, spacing=spacing).one(0, 0)[0]
        for spacing in (None, 1.0)
    )

    def extent(image: np.ndarray) -> tuple[int, ...]:
        return tuple(int(n) for n in np.ptp(np.argwhere(image[0] > 0.5), axis=0) + 1)

    assert extent(plain) == (10, *(48,) * (dims - 1))
    assert extent(upright) == (48, *(24,) * (dims - 1))  # 60 mm by 30 mm


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Two volumes of 130 voxels and one that is thin, each with a bright block; turned and of different spacing."""
    folder = tmp_path / "volumes"
    folder.mkdir()
    for number, (size, spacing) in enumerate([((130, 90, 70), (1.0, 1.5, 2.0)), ((50, 9, 60), (1.0, 4.0, 1.0))]):
        values = np.random.default_rng(number).integers(0, 30, size).astype(np.int16)
        values[tuple(slice(n // 4, 3 * n // 4) for n in size)] += 500
        affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
        affine[:3, 3] = (3, -4, 5)
        nibabel.save(nibabel.Nifti1Image(values, affine), folder / f"{number}.nii.gz")
    return folder


@pytest.mark.parametrize("spacing", [None, 1.25])
def test_a_store_reads_only_what_the_crop_needs(volumes: Path, tmp_path: Path, monkeypatch: Any, spacing: Any) -> None:
    files = open_source(volumes, dims=3)
    store = open_source(
        frepa.prepare(str(volumes), out=str(tmp_path / "store"), dims=3, num_workers=0, quiet=True), dims=3
    )
    read: list[int] = []
    whole = StoreSource.read_crop

    def counted(self: StoreSource, index: int, start: Any, size: Any) -> Scan:
        read.append(int(np.prod(size)))
        return whole(self, index, start, size)

    monkeypatch.setattr(StoreSource, "read_crop", counted)
    monkeypatch.setattr(StoreSource, "read", None)
    how = {"mode": "crop", "spacing": spacing, "foreground": 0.5, "seed": 1}
    from_store, from_files = (Preparation(source, 32, **how) for source in (store, files))
    for position in range(12):
        unit, affine, *_ = from_store.one(position % 2, position)
        expected, same, *_ = from_files.one(position % 2, position)
        assert np.array_equal(unit, expected)
        assert affine is not None
        assert same is not None
        assert np.allclose(affine, same)
    margin = 0 if spacing is None else 5
    assert max(read) <= (32 * (spacing or 1) + margin) ** 3
    assert sum(n == 1 for n in read) < 12 * 64


@pytest.mark.parametrize("dims", [2, 3])
def test_the_share_of_crops_around_foreground_is_counted(dims: int) -> None:
    values = np.zeros((1, *(60,) * dims), np.float32)
    block = (slice(0, 1), *(slice(20, 28),) * dims)
    values[block] = 1.0
    values[0][(5,) * dims] = 0.08  # below a tenth of the range: background
    source, size, count = _One(Scan(values, (1.0,) * dims, np.eye(4))), 9, 1500

    def centres(foreground: float, count: int = count) -> np.ndarray:
        how = Preparation(source, size, mode="crop", window=FOUR_NUMBERS, channels=1, foreground=foreground)
        affines = [how.one(0, position)[1] for position in range(count)]
        return np.array([affine[:dims, 3] for affine in affines if affine is not None]).astype(int) + size // 2

    there = centres(0.3)
    inside = np.all((there >= 20) & (there < 28), axis=1)
    share = 0.3 + 0.7 * (8 / 52) ** dims
    assert abs(inside.mean() - share) < 4 * np.sqrt(share * (1 - share) / count)
    # Each voxel of the block as likely as another, and the rest where it was without the option
    spread = np.bincount(there[inside][:, 0] - 20, minlength=8) / inside.sum()
    assert np.abs(spread - 1 / 8).max() < 0.05
    assert np.array_equal(there[~inside], centres(0.0)[~inside])
    assert np.isin(centres(1.0, 100), np.arange(20, 28)).all()


def _start(scan: Scan, size: int, position: int, foreground: float) -> np.ndarray:
    _, affine = _prepared(scan, size, position, foreground=foreground)
    assert affine is not None
    return affine[: len(scan.size), 3].round().astype(int)


def test_foreground_at_the_border_and_nowhere() -> None:
    values = np.zeros((1, 40, 40, 40), np.float32)
    where = [tuple(_start(Scan(values, None, np.eye(4)), 8, position, 0.0)) for position in range(5)]
    assert where == [tuple(_start(Scan(values, None, np.eye(4)), 8, position, 1.0)) for position in range(5)]
    values[0, 39, 0, 5] = 1.0  # one voxel of 64,000 is found too, and the crop stays inside
    assert {tuple(_start(Scan(values, None, np.eye(4)), 8, position, 1.0)) for position in range(5)} == {(32, 0, 1)}
    alone = Scan(values, None, np.eye(4), padding=1.0)
    assert where == [tuple(_start(alone, 8, position, 1.0)) for position in range(5)]


def test_foreground_of_ct_is_what_is_denser_than_half_air() -> None:
    ct = Scan(np.zeros((1, 2, 2, 2), np.int16), unit=HU)
    assert foreground_level(ct, (-1000, 400)) == foreground_level(ct, (-30, 90)) == -500
    assert foreground_level(Scan(np.zeros((1, 2, 2))), (100.0, 600.0)) == pytest.approx(150.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_resuming_change_no_crop(volumes: Path, workers: int) -> None:
    source = open_source(volumes, dims=3)
    options: dict[str, Any] = {"size": 16, "mode": "crop", "spacing": 1.5, "foreground": 0.7, "seed": 4}
    options |= {"batch_size": 2, "stream": SampleStream(2, seed=4), "stop_position": 12}
    alone = list(make_loader(source, **options))
    later = list(make_loader(source, num_workers=workers, start_position=6, **options))
    assert len(later) == 3
    for batch, expected in zip(later, alone[3:]):
        assert batch["position"] == expected["position"]
        assert batch["image"].equal(expected["image"])


@pytest.mark.parametrize("spacing", [None, 1.25])
@pytest.mark.parametrize("mode", ["crop", "resize"])
def test_a_voxel_of_the_sample_lies_where_the_file_says(volumes: Path, mode: str, spacing: Any) -> None:
    """The bright block has the same place in the patient in the sample as in the file, read with nibabel."""
    source = open_source(volumes, dims=3)
    batch = load_images(source, [0, 1], size=64, mode=mode, spacing=spacing)
    for number, (unit, affine) in enumerate(zip(batch["image"][:, 0].numpy(), batch["affine"])):
        image: Any = nibabel.load(volumes / f"{number}.nii.gz")
        file = np.asarray(image.dataobj, np.float64)
        assert affine is not None
        at = np.stack(np.meshgrid(*[np.arange(n) for n in unit.shape], indexing="ij")).reshape(3, -1)
        to_file = np.linalg.inv(image.affine) @ affine
        points = to_file[:3, :3] @ at + to_file[:3, 3:]
        inside = np.all((points > 1) & (points < np.array(file.shape)[:, None] - 2), axis=0)
        linear = ndimage.map_coordinates(file, points, order=1) > 250
        bright = unit.ravel() > 0.5
        # Equal but for voxels at the block's faces, where two interpolations may differ
        assert linear[inside].any() == bright[inside].any()
        assert (linear[inside] == bright[inside]).mean() > (0.999 if spacing is None and mode == "crop" else 0.97)
        if spacing is None and mode == "crop":
            exact = ndimage.map_coordinates(file, points, order=0)[inside]
            assert np.allclose(np.rint(points), points)
            low, high = np.percentile(file, (0.5, 99.5))
            assert np.allclose(np.clip((exact - low) / (high - low), 0, 1), unit.ravel()[inside], atol=1e-5)


def test_an_unknown_spacing_is_named_and_the_scan_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((20, 20, 20), np.float32))
    batch = load_images(open_source(tmp_path / "a.npy", dims=3), [0], size=16, mode="crop", spacing=1.0)
    assert len(batch["image"]) == 0
    assert "voxel size is not known" in batch["skipped"][0].reason


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"spacing": (1.0, 2.0)}, "3 positive numbers"),
        ({"spacing": 0.0}, "positive"),
        ({"spacing": float("nan")}, "positive"),
        ({"foreground": 1.5}, "from 0 to 1"),
        ({"foreground": 0.5, "mode": "resize"}, "use crop"),
    ],
)
def test_wrong_options_are_explained(volumes: Path, how: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Preparation(open_source(volumes, dims=3), 16, **({"mode": "crop"} | how))


def test_crops_of_everything_are_the_scan_itself() -> None:
    crop = make_crop((10, 12), (10, 12), (16, 8), (0, 3))
    assert (crop.start, crop.size, crop.inner) == ((0, 3), (10, 8), (10, 8))
    part = np.random.default_rng(0).random((1, 10, 8), np.float32)
    assert np.array_equal(crop.resample(part), part)
    assert np.array_equal(crop.affine(np.eye(4), (16, 8))[:2, 3], (-3, 3))
