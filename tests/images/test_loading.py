"""Batches: independent of workers and processes, resumable, honest about what could not be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2gray

from frepa.corruption.guide import luminance as guide_luminance
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.geometry import resize_pad
from frepa.images.intensity import to_unit
from frepa.images.loading import Batch, PositionBatches, load_images, make_loader
from frepa.images.sampling import SampleStream
from frepa.images.scan import replace_scan
from frepa.images.source import Source

RNG = np.random.default_rng(6)
SHAPES = [(30, 40), (64, 64), (9, 120, 3), (1, 1), (50, 1), (33, 47, 3), (20, 20), (128, 96), (1, 200), (77, 77, 3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "scans"
    root.mkdir()
    for i, shape in enumerate(SHAPES):
        Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(root / f"{i:02}.png")
    return root


def batches(source: Source, **options) -> list[Batch]:
    settings = {"size": 32, "batch_size": 4, "stop_position": 24, "seed": 1, **options}
    return list(make_loader(source, stream=SampleStream(len(source), 1), **settings))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["grey"], b["grey"])
        assert (a["position"], a["index"], a["skipped"]) == (b["position"], b["index"], b["skipped"])


def test_a_batch_is_what_its_records_say(folder: Path) -> None:
    source = open_source(folder)
    for batch in batches(source):
        assert batch["image"].shape == (4, 3, 32, 32)
        assert batch["image"].dtype == torch.float32
        assert batch["index"] == SampleStream(10, 1).at(batch["position"]).tolist()
        for image, grey, index in zip(batch["image"], batch["grey"], batch["index"]):
            assert bool(grey) == (len(SHAPES[index]) == 2)
            oracle = resize_pad(to_unit(source.read(index)), (32, 32))
            np.testing.assert_array_equal(image.numpy(), np.broadcast_to(oracle, (3, 32, 32)))
    assert [p for batch in batches(source) for p in batch["position"]] == list(range(24))


@pytest.mark.parametrize("mode", ["resize", "crop"])
def test_workers_change_nothing(folder: Path, mode: str) -> None:
    (folder / "04.png").write_bytes(b"broken")
    source = open_source(folder)
    assert_same(batches(source, mode=mode), batches(source, mode=mode, num_workers=2))


def test_resuming_gives_the_batches_that_were_left(folder: Path) -> None:
    source = open_source(folder)
    assert_same(batches(source, mode="crop")[3:], batches(source, mode="crop", start_position=12))


def test_processes_share_the_global_batch(folder: Path) -> None:
    source = open_source(folder)
    together = batches(source, batch_size=8, mode="crop")
    parts = [batches(source, batch_size=4, rank=rank, world_size=2, mode="crop") for rank in (0, 1)]
    for whole, first, second in zip(together, *parts):
        assert whole["position"] == first["position"] + second["position"]
        assert torch.equal(whole["image"], torch.cat([first["image"], second["image"]]))


def test_position_batches() -> None:
    assert list(PositionBatches(0, 10, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(PositionBatches(2, 11, 4, drop_last=False)) == [[2, 3, 4, 5], [6, 7, 8, 9], [10]]
    assert list(PositionBatches(6, 20, 3, rank=1, world_size=2)) == [[9, 10, 11], [15, 16, 17]]
    assert list(PositionBatches(9, 3, 4)) == []
    for sampler in (PositionBatches(0, 11, 4, drop_last=False), PositionBatches(0, 16, 2, rank=2, world_size=3)):
        assert len(sampler) == len(list(sampler))
    with pytest.raises(InputError, match="batch size is 0"):
        PositionBatches(0, 10, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_scan_is_named_and_leaves_no_row(folder: Path, num_workers: int) -> None:
    (folder / "03.png").write_bytes(b"broken")
    source = open_source(folder)
    seen = batches(source, batch_size=10, stop_position=20, num_workers=num_workers)
    for batch in seen:
        assert batch["image"].shape[0] == len(batch["index"]) == len(batch["position"]) == len(batch["grey"]) == 9
        assert 3 not in batch["index"]
        assert [entry.path for entry in batch["skipped"]] == ["03.png"]
        source.add_skipped(batch["skipped"])
    assert [entry.path for entry in source.skipped] == ["03.png"]
    assert "not an image" in source.skipped[0].reason


def test_a_batch_without_any_readable_scan_is_empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    batch = batches(open_source(folder), channels=3)[0]
    assert batch["image"].shape == (0, 3, 32, 32)
    assert len(batch["skipped"]) == 4
    assert batch["index"] == []


def test_grey_source_has_one_channel_and_colour_can_be_made_grey(folder: Path) -> None:
    grey = open_source(folder).select([i for i, shape in enumerate(SHAPES) if len(shape) == 2])
    assert load_images(grey, [0, 1], size=16, channels=1)["image"].shape == (2, 1, 16, 16)
    source = open_source(folder)
    made = load_images(source, [5], size=(33, 47), channels=1)["image"][0, 0].numpy()
    unit = to_unit(source.read(5))
    np.testing.assert_allclose(made, rgb2gray(np.moveaxis(unit, 0, -1)), atol=1e-6)
    # The guide's is the same
    np.testing.assert_allclose(made, guide_luminance(torch.from_numpy(unit)[None])[0], atol=1e-6)


def test_crops_are_pieces_of_the_scaled_image_and_move_with_the_position(folder: Path) -> None:
    source = open_source(folder).select([7])  # 128 x 96
    whole = to_unit(source.read(0))[0]
    windows = np.lib.stride_tricks.sliding_window_view(whole, (16, 16))
    places = set()
    for batch in batches(source, size=16, mode="crop", channels=1, batch_size=1):
        found = np.argwhere((windows == batch["image"][0, 0].numpy()).all(axis=(2, 3)))
        assert len(found) == 1
        places.add(tuple(found[0].tolist()))
    assert len(places) == 24


def test_crop_of_a_small_image_is_padded_with_zeros(folder: Path) -> None:
    source = open_source(folder)
    batch = load_images(source, [0], size=64, mode="crop", channels=1)
    unit = to_unit(source.read(0))[0]
    oracle = np.zeros((64, 64), np.float32)
    oracle[17:47, 12:52] = unit
    np.testing.assert_array_equal(batch["image"][0, 0].numpy(), oracle)


def test_chosen_images_by_number(folder: Path) -> None:
    source = open_source(folder)
    batch = load_images(source, [8, 0, 8], size=(24, 40))
    assert batch["index"] == batch["position"] == [8, 0, 8]
    assert batch["image"].shape == (3, 3, 24, 40)
    assert torch.equal(batch["image"][0], batch["image"][2])


def test_loading_leaves_the_global_generators_alone(folder: Path) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    batches(open_source(folder), num_workers=2, mode="crop")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


def test_volumes_load_like_images(tmp_path: Path) -> None:
    volumes = RNG.integers(-1000, 1000, (3, 10, 24, 20)).astype(np.int16)
    np.save(tmp_path / "v.npy", volumes)
    source = open_source(tmp_path, dims=3)
    (batch,) = batches(source, size=(8, 16, 16), mode="crop", batch_size=3, stop_position=3)
    assert batch["image"].shape == (3, 1, 8, 16, 16)
    assert batch["grey"].all()
    whole = load_images(source, [1], size=(10, 24, 20), mode="crop")["image"][0]
    np.testing.assert_array_equal(whole.numpy(), to_unit(source.read(1)))
    assert load_images(source, [0], size=16)["image"].shape == (1, 1, 16, 16, 16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "resise"}, "Did you mean resize"),
        ({"size": (32, 32, 32)}, "must be 2 positive numbers"),
        ({"size": 0}, "positive"),
        ({"channels": 2}, "expected 1"),
        ({"window": "lnug"}, "Did you mean lung"),
        ({"percentiles": (99, 1)}, "lower first"),
    ],
)
def test_wrong_options_are_explained(folder: Path, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        batches(open_source(folder), **options)


@pytest.mark.parametrize(
    ("where", "channels"),
    [("CHASE_DB1/*.jpg", 3), ("OCTA500_3M/train/image", 1), ("DRIVE/training", 3), ("BUSI_256", 3)],
)
def test_real_images(shared_data: Path, where: str, channels: int) -> None:
    source = open_source(shared_data / where)
    assert source.channels == channels
    batch = batches(source, size=96, batch_size=6, stop_position=6, num_workers=2)[0]
    assert batch["image"].shape == (6, channels, 96, 96)
    assert not batch["skipped"]
    assert batch["image"].min() == 0
    assert batch["image"].max() == 1
    assert batch["image"].flatten(1).std(dim=1).min() > 0.01


@pytest.mark.parametrize("mode", ["resize", "crop"])
def test_what_was_not_recorded_is_told_where_it_is_asked_for(tmp_path, mode):
    """The frame around a scan, and its padding value; and it is the same pixels that are zero."""
    values = np.random.default_rng(0).integers(50, 200, (12, 40), np.uint8)
    Image.fromarray(values).save(tmp_path / "wide.png")
    source = open_source(str(tmp_path), dims=2)
    batch = load_images(source, [0], size=32, mode=mode, inside=True)
    rows = 10 if mode == "resize" else 12
    expected = np.zeros((32, 32), bool)
    expected[(32 - rows) // 2 : (32 - rows) // 2 + rows] = True
    assert np.array_equal(batch["inside"][0, 0].numpy(), expected)
    assert not batch["image"][0, 0].numpy()[~expected].any()
    assert load_images(source, [0], size=32, mode=mode)["inside"] is None
    scan = source.read(0)
    padded = np.where(np.arange(40) < 8, 7, scan.array)
    source.read = lambda index: replace_scan(scan, array=padded, padding=7)
    source.describe = lambda index: None
    found = load_images(source, [0], size=32, mode=mode, inside=True)["inside"][0, 0].numpy()
    left = found[16]
    assert left.sum() == (26 if mode == "resize" else 28)  # 8 of 40 columns; the middle 32 begin at the fourth
    assert not (found & ~expected).any()
