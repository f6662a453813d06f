"""Spoilt bytes are found by --verify and by reading; a store that is none, or not whole, says so in plain words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from store_helpers import ArraySource, contents

from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.loading import make_loader
from frepa.images.sampling import SampleStream
from frepa.images.scan import Scan, UnreadableScan
from frepa.images.store import layout
from frepa.images.store.packing import pack_source
from frepa.images.store.source import StoreSource
from frepa.images.store.verify import verify_store

RNG = np.random.default_rng(3)


@pytest.fixture
def images(tmp_path: Path) -> StoreSource:
    scans = [Scan(RNG.integers(0, 256, (1, 40, 50), dtype=np.uint8)) for _ in range(40)]
    pack_source(ArraySource(scans, 2), tmp_path / "store")
    return open_source(tmp_path / "store")


def spoil(store: StoreSource, record: int, byte: int = 200) -> None:
    row = store.row(record)
    path = Path(store.location) / "shards" / f"{int(row['shard']):05}.b2"
    data = bytearray(path.read_bytes())
    data[int(row["offset"]) + byte] ^= 1
    path.write_bytes(data)


def test_verify_names_the_damaged_records(images: StoreSource) -> None:
    assert verify_store(images.location) == []
    done = []
    for record in (3, 21):
        spoil(images, record)
    found = verify_store(images.location, num_workers=2, progress=done.append)
    assert [(item.record, item.name) for item in found] == [(3, images.name(3)), (21, images.name(21))]
    assert sum(done) == 40
    assert (
        (Path(images.location) / "damaged.csv").read_text().splitlines()[1].startswith(f"3,{images.name(3)},00000.b2,")
    )


def test_a_damaged_record_is_skipped_in_training_and_listed(images: StoreSource) -> None:
    spoil(images, 3)
    with pytest.raises(UnreadableScan, match=r"damaged in the store \(shards/00000.b2\)"):
        images.read(3)
    with pytest.raises(UnreadableScan, match="checksum"):
        images.read_crop(3, (0, 0), (8, 8))
    for mode in ("resize", "crop"):
        batches = list(
            make_loader(images, size=16, batch_size=8, stream=SampleStream(40, 0), stop_position=40, mode=mode)
        )
        assert sorted(i for batch in batches for i in batch["index"]) == [i for i in range(40) if i != 3]
        skipped = [entry for batch in batches for entry in batch["skipped"]]
        assert [(entry.path, "damaged" in entry.reason) for entry in skipped] == [(images.name(3), True)]


def test_a_damaged_volume_is_read_around(tmp_path: Path) -> None:
    volume = RNG.integers(0, 2000, (1, 128, 128, 128), dtype=np.int16)
    pack_source(ArraySource([Scan(volume), Scan(volume[:, :20])], 3), tmp_path / "store")
    store = open_source(tmp_path / "store", dims=3)
    spoil(store, 0, byte=int(store.row(0)["length"]) - 100_000)  # in the last chunk
    assert np.array_equal(store.read_crop(0, (0, 0, 0), (64, 128, 64)).array, volume[:, :64, :, :64])
    with pytest.raises(UnreadableScan, match="chunk 7"):
        store.read_crop(0, (60, 60, 60), (10, 10, 10))
    with pytest.raises(UnreadableScan, match="checksum"):
        store.read(0)
    assert np.array_equal(store.read(1).array, volume[:, :20])


def test_lost_and_short_shards(images: StoreSource) -> None:
    shard = Path(images.location) / "shards/00001.b2"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    copy = StoreSource(images.location)
    assert [item.record for item in verify_store(images.location)] == list(range(24, 32))
    with pytest.raises(UnreadableScan, match="ends before"):
        copy.read(31)
    shard.unlink()
    copy = StoreSource(images.location)
    with pytest.raises(UnreadableScan, match="cannot be read"):
        copy.read(16)
    assert np.array_equal(copy.read(15).array, images.read(15).array)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "store.json lost": (lambda root: (root / "store.json").unlink(), "has lost its store.json"),
    "store.json cut": (
        lambda root: (root / "store.json").write_text('{"format": "frepa-st'),
        "holds no names and values in JSON",
    ),
    "store.json empty": (lambda root: (root / "store.json").write_text(""), "holds no names and values in JSON"),
    "store.json a list": (lambda root: (root / "store.json").write_text("[]"), "holds no names and values in JSON"),
    "another program's": (lambda root: (root / "store.json").write_text('{"format": "x"}'), "not made by frepa"),
    "entries lost": (
        lambda root: (root / "store.json").write_text(json.dumps({"format": "frepa-store", "version": 1})),
        "lacks affine, channels",
    ),
    "from the future": (
        lambda root: (root / "store.json").write_text('{"format": "frepa-store", "version": 9}'),
        "Update frepa",
    ),
    "rows lost": (lambda root: (root / "index/records.bin").unlink(), "lacks its file index/records.bin"),
    "rows cut": (lambda root: (root / "index/records.bin").write_bytes(b"short"), "has 5 bytes, expected"),
    "unfinished": (
        lambda root: ((root / "store.json").unlink(), shutil.rmtree(root / "index"), _plan(root)),
        "is not finished: give the frepa prepare command",
    ),
}


def _plan(root: Path) -> None:
    (root / "unfinished").mkdir()
    (root / "unfinished/plan.json").write_text("{}")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_store_is_said_in_plain_words(images: StoreSource, fault: str) -> None:
    act, words = FAULTS[fault]
    act(Path(images.location))
    with pytest.raises(InputError, match=words):
        open_source(images.location)


def test_a_changed_index_is_found_by_verify(images: StoreSource) -> None:
    path = Path(images.location) / "index/records.bin"
    data = bytearray(path.read_bytes())
    data[500] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"index/records.bin does not match its hash"):
        verify_store(images.location)


def test_dimensions_are_told(images: StoreSource) -> None:
    with pytest.raises(InputError, match=r"holds images, not volumes: use --dims 2"):
        open_source(images.location, dims=3)


def test_a_folder_of_images_is_no_store(pictures: Path) -> None:
    (pictures / "store.json").write_text("{}")
    assert len(open_source(pictures)) == 60
    (pictures / "shards").mkdir()
    with pytest.raises(InputError, match="not made by frepa"):
        open_source(pictures)


def test_a_store_inside_its_own_source_changes_nothing(pictures: Path) -> None:
    before = open_source(pictures)
    pack_source(before, pictures / "store")
    again = open_source(pictures)
    assert again.fingerprint == before.fingerprint
    whole = contents(pictures / "store")
    pack_source(again, pictures / "store")
    assert contents(pictures / "store") == whole


def test_rows_have_no_gaps() -> None:
    # The rows are the format: another layout needs another version
    assert layout.VERSION == 1
    for dims, affine, width in ((2, False, 124), (2, True, 220), (3, False, 136), (3, True, 232)):
        assert layout.row_type(dims, affine=affine).itemsize == width
