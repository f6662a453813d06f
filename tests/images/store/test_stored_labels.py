"""Masks and annotations in a store: as they were given, beside the images, checked like these."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from store_helpers import ArraySource, Drawn, contents

from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.scan import Scan, UnreadableScan
from frepa.images.store.layout import StoreFolder
from frepa.images.store.packing import pack_source
from frepa.images.store.source import StoreSource
from frepa.images.store.verify import verify_store

RNG = np.random.default_rng(2)


def scans(dims: int) -> list[Scan | None]:
    """Forty scans of several sizes, one of which cannot be read."""
    sizes = [(20 + i, 30) if dims == 2 else (70 if i == 4 else 5, 66, 20 + i) for i in range(40)]
    return [None if i == 3 else Scan(RNG.integers(0, 255, (1, *size)).astype(np.uint8)) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("dims", [2, 3])
def test_masks_and_classes_come_back_as_they_were(tmp_path: Path, dims: int) -> None:
    source, labels = ArraySource(scans(dims), dims), Drawn(40)
    facts = pack_source(source, tmp_path / "store", labels=labels)
    assert facts["masks"] == ["mask", "mask_fov"]
    store = open_source(tmp_path / "store", dims=dims)
    assert isinstance(store, StoreSource)
    kept = [i for i in range(40) if i != 3]
    assert store.annotations is not None
    assert store.annotations["label"].to_pylist() == [("even", "odd")[i % 2] for i in kept]
    there = [mask is not None for mask in store.annotations["mask"].to_pylist()]
    assert there == [i % 2 == 0 for i in kept]
    for store_ in (store, pickle.loads(pickle.dumps(store))):
        for place, i in enumerate(kept):
            image = source.read(i)
            assert np.array_equal(store_.read(place).array, image.array)
            for target, column in (("", "mask"), ("bright", "mask"), ("fov", "mask_fov")):
                found = store_.read_mask(place, target)
                expected = None if i == 5 else labels.read(i, column, image)
                assert (found is None) == (expected is None)
                if found is not None and expected is not None:
                    assert np.array_equal(found.array, expected)
                    assert found.array.dtype == expected.dtype  # the largest of a type may mean "none"
            assert store_.read_mask(place, "nothing of the kind") is None
    assert verify_store(tmp_path / "store") == []


def test_a_mask_that_does_not_fit_is_listed_and_its_image_kept(tmp_path: Path) -> None:
    pack_source(ArraySource(scans(2), 2), tmp_path / "store", labels=Drawn(40))
    assert "5.img,its mask: another size than its image" in (tmp_path / "store.skipped.csv").read_text()
    inside = (tmp_path / "store/skipped.csv").read_text()
    assert "its mask: another size than its image" in inside
    assert "MILLER" not in inside
    assert len(StoreSource(tmp_path / "store")) == 39


def test_a_damaged_mask_is_found_and_never_used(tmp_path: Path) -> None:
    pack_source(ArraySource(scans(2), 2), tmp_path / "store", labels=Drawn(40))
    place = StoreSource(tmp_path / "store").mask_places(0)[0]
    shard = StoreFolder(tmp_path / "store").shard(0)
    data = bytearray(shard.read_bytes())
    data[int(place["offset"]) + int(place["length"]) // 2] ^= 1
    shard.write_bytes(data)
    assert [(item.record, item.reason) for item in verify_store(tmp_path / "store")] == [
        (0, "the bytes of its mask do not match their hash")
    ]
    store = StoreSource(tmp_path / "store")
    store.read(0)
    with pytest.raises(UnreadableScan, match="bytes of its mask do not match"):
        store.read_mask(0, "bright")


def test_other_annotations_make_another_store(tmp_path: Path) -> None:
    source = ArraySource(scans(2), 2)
    pack_source(source, tmp_path / "store", labels=Drawn(40))
    pack_source(source, tmp_path / "two", labels=Drawn(40), num_workers=2)
    assert contents(tmp_path / "store") == contents(tmp_path / "two")
    for other in (None, Drawn(40, "others")):
        with pytest.raises(InputError, match="with other annotations"):
            pack_source(source, tmp_path / "store", labels=other)
    plain = pack_source(source, tmp_path / "plain")
    assert plain["masks"] == []
    assert StoreSource(tmp_path / "plain").annotations is None
    assert StoreSource(tmp_path / "plain").fingerprint != StoreSource(tmp_path / "store").fingerprint
