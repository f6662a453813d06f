"""What comes out of a store is what its source gave: pixels, geometry, labels, groups, limits, batches."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from store_helpers import ArraySource, contents

from frepa.datasets.opening import open_source
from frepa.images.intensity import bounds
from frepa.images.loading import make_loader
from frepa.images.sampling import SampleStream
from frepa.images.scan import HU, Scan
from frepa.images.source import Source
from frepa.images.store.packing import pack_source
from frepa.images.store.records import narrowed, pack_scan
from frepa.pretraining.training_part import training_part

RNG = np.random.default_rng(8)
AFFINE = np.array([[0, 0.7, 0, -3.5], [0, 0, -1.2, 8.25], [2.5, 0, 0, 1e-3], [0, 0, 0, 1]])


def scans(dims: int) -> list[Scan]:
    size = (33, 40) if dims == 2 else (9, 70, 33)
    kinds = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32"]
    made = []
    for kind in kinds:
        dtype = np.dtype(kind)
        ends = (-1e30, 1e30) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        noise = RNG.uniform(-1, 1, (1, *size)).astype(np.float64)
        array = (noise * 100).astype(dtype) if dtype.kind != "f" else noise.astype(dtype)
        array.reshape(-1)[:2] = ends
        made.append(Scan(array))
    made.append(Scan(RNG.integers(0, 255, (3, *size), dtype=np.uint8)))
    made.append(
        Scan(
            RNG.integers(-1024, 2000, (1, *size)).astype(np.float32),
            spacing=(0.1 + 0.2, 1 / 3, 2.5)[:dims],
            affine=AFFINE,
            modality="ct",
            unit=HU,
            group="00ffffffffffffff",
            padding=-1024.0,
        )
    )
    made.append(Scan(np.full((1, *size), 7, np.uint16), modality="mr", group="patient 12"))
    return made


def packed(tmp_path: Path, source: Source, **options) -> Source:
    pack_source(source, tmp_path / "store", **options)
    return open_source(tmp_path / "store", dims=source.dims)


@pytest.mark.parametrize("dims", [2, 3])
def test_every_type_comes_back_bit_for_bit(tmp_path: Path, dims: int) -> None:
    labels = [f"class {i % 3}" for i in range(11)]
    source = ArraySource(scans(dims), dims, labels)
    store = packed(tmp_path, source)
    assert len(store) == 11
    assert store.labels.tolist() == labels
    for i in range(len(source)):
        ours, theirs = store.read(i), source.read(i)
        assert np.array_equal(ours.array, theirs.array)
        assert ours.array.dtype == narrowed(theirs.array).dtype
        for name in ("spacing", "modality", "unit", "id", "padding"):
            # With any modality in a source, records without one have an empty name
            assert (getattr(ours, name) or None) == getattr(theirs, name)
        assert ours.limits == bounds(theirs)
        assert (ours.affine is None) == (theirs.affine is None)
        assert ours.affine is None or np.array_equal(ours.affine, theirs.affine)
        assert store.header(i).size == theirs.size
        known = store.describe(i)
        assert (known.array.shape, known.array.dtype) == (ours.array.shape, ours.array.dtype)
    assert store.read(9).group == "00ffffffffffffff"
    assert len(store.read(10).group) == 16
    assert "patient" not in store.read(10).group
    assert store.read(0).group is None
    assert len(set(store.group_codes.tolist())) == 11


def test_ct_and_whole_numbers_take_16_bits() -> None:
    assert narrowed(np.array([-1024.0, 3071.0], np.float32)).dtype == np.int16
    assert narrowed(np.array([0, 60000], np.int64)).dtype == np.uint16
    assert narrowed(np.array([0.5, 1], np.float32)).dtype == np.float32
    assert narrowed(np.array([-1, 60000], np.int32)).dtype == np.int32
    assert narrowed(np.array([0, 255], np.uint8)).dtype == np.uint8


def test_quantizing_errs_by_half_a_step_and_keeps_padding(tmp_path: Path) -> None:
    array = RNG.normal(size=(1, 40, 50)).astype(np.float32)
    array[0, :5] = -9.25
    ct = (RNG.normal(size=(1, 40, 50)) * 300).astype(np.float32)
    source = ArraySource([Scan(array, padding=-9.25), Scan(ct, unit=HU)], 2)
    store = packed(tmp_path, source, quantize=True)
    quantized = store.read(0)
    step = (array.max() - array.min()) / 65535
    assert quantized.array.dtype == np.float32
    assert np.abs(quantized.array - array).max() <= 0.51 * step
    assert np.array_equal(quantized.array == quantized.padding, array == -9.25)
    assert len(pack_scan(source.read(0), quantize=True)[0]) < 0.7 * len(pack_scan(source.read(0))[0])
    rounded = store.read(1)
    assert rounded.array.dtype == np.int16
    assert np.array_equal(rounded.array, np.rint(ct))


@pytest.mark.parametrize("mode", ["resize", "crop"])
def test_batches_are_those_of_the_folder(tmp_path: Path, pictures: Path, mode: str) -> None:
    folder = open_source(pictures)
    store = packed(tmp_path, folder)
    assert_same_batches(folder, store, size=32, mode=mode)


@pytest.mark.parametrize("window", ["any", None, (-100.0, 400.0)])
def test_crops_of_volumes_are_those_of_the_files(tmp_path: Path, window) -> None:
    volumes = [
        Scan(RNG.integers(-1024, 2000, (1, *size)).astype(np.int16), unit=unit)
        for size, unit in [((100, 70, 90), HU), ((20, 130, 40), "arbitrary"), ((64, 64, 64), HU), ((7, 8, 9), HU)]
    ]
    source = ArraySource(volumes, 3)
    assert_same_batches(source, packed(tmp_path, source), size=48, mode="crop", window=window)


def assert_same_batches(one: Source, other: Source, **options) -> None:
    settings = {"batch_size": 4, "stop_position": 2 * len(one) // 4 * 4, "seed": 3, **options}
    ours, theirs = (
        list(make_loader(source, stream=SampleStream(len(source), 5), **settings)) for source in (one, other)
    )
    assert len(ours) == len(theirs) > 1
    for a, b in zip(ours, theirs):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["grey"], b["grey"])
        assert (a["position"], a["index"]) == (b["position"], b["index"])


def test_modalities_and_weights(tmp_path: Path) -> None:
    names = ["mr", "ct", "mr", "us", "ct", "mr"]
    source = ArraySource([Scan(np.full((1, 4, 4), i, np.uint8), modality=name) for i, name in enumerate(names)], 2)
    store = packed(tmp_path, source)
    assert store.modalities == ("ct", "mr", "us")
    assert store.modality_codes.tolist() == [1, 0, 1, 2, 0, 1]
    stream = pickle.loads(pickle.dumps(training_part(store, val_images=0, seed=0, weights={"ct": 3, "us": 1}).stream))
    drawn = stream.at(range(1000))
    assert np.bincount(drawn, minlength=6)[[0, 2, 5]].sum() == 0
    assert np.bincount(drawn, minlength=6)[3] == 250
    # The same order as with a table made from the codes
    store.by_modality = None
    assert np.array_equal(
        training_part(store, val_images=0, seed=0, weights={"ct": 3, "us": 1}).stream.at(range(1000)), drawn
    )


def test_a_store_crosses_into_a_process_as_its_path(tmp_path: Path, pictures: Path) -> None:
    store = packed(tmp_path, open_source(pictures))
    store.read(3)
    moved = pickle.dumps(store)
    assert len(moved) < 1000
    copy = pickle.loads(moved)
    assert copy.fingerprint == store.fingerprint
    assert np.array_equal(copy.read(7).array, store.read(7).array)
    part = pickle.loads(pickle.dumps(store.select([5, 2])))
    assert np.array_equal(part.read(1).array, store.read(2).array)
    assert np.array_equal(part.read_crop(1, (1, 2), (3, 4)).array, store.read(2).array[:, 1:4, 2:6])


def test_a_store_holds_no_names_unless_asked(tmp_path: Path) -> None:
    made = [Scan(np.full((1, 6, 6), i, np.uint8), group=f"MILLER_ANNE {i}") for i in range(20)]
    made[4] = None
    source = ArraySource(made, 2)
    store = packed(tmp_path, source)
    inside = b"".join(contents(tmp_path / "store").values()) + "".join(contents(tmp_path / "store")).encode()
    assert b"MILLER" not in inside
    assert b"ward" not in inside
    assert b"(file) of (file) is truncated" in (tmp_path / "store/skipped.csv").read_bytes()
    assert "ward/MILLER_ANNE/4.img" in (tmp_path / "store.skipped.csv").read_text()
    assert store.name(4) == source.read(5).id

    pack_source(source, tmp_path / "named", keep_names=True)
    named = open_source(tmp_path / "named")
    assert [named.name(i) for i in (0, 3, 4, 18)] == [source.name(i) for i in (0, 3, 5, 19)]
    assert pq.read_table(tmp_path / "named/index.parquet")["name"].to_pylist()[4] == source.name(5)


def test_parquet_says_the_same_as_the_rows(tmp_path: Path) -> None:
    source = ArraySource(scans(3), 3, list(range(11)))
    store = packed(tmp_path, source)
    table = pq.read_table(tmp_path / "store/index.parquet").to_pylist()
    for i, line in enumerate(table):
        row, scan = store.row(i), store.read(i)
        assert (line["id"], tuple(line["size"]), line["label"]) == (scan.id, scan.size, i)
        assert (line["shard"], line["offset"], line["length"]) == (row["shard"], row["offset"], row["length"])
        assert bytes.fromhex(line["sha256"]) == row["sha256"].tobytes()
        assert (line["low"], line["high"]) == scan.limits
        assert line["affine"] is None or np.array_equal(np.reshape(line["affine"], (3, 4)), AFFINE[:3])
    assert store.labels.dtype == np.int64


def test_a_store_packs_into_a_store(tmp_path: Path, pictures: Path) -> None:
    first = packed(tmp_path, open_source(pictures))
    pack_source(first, tmp_path / "second")
    second = open_source(tmp_path / "second")
    assert all(np.array_equal(first.read(i).array, second.read(i).array) for i in range(len(first)))
    assert [second.read(i).id for i in range(5)] == [first.read(i).id for i in range(5)]


def test_facts_are_json_for_people(tmp_path: Path, pictures: Path) -> None:
    packed(tmp_path, open_source(pictures))
    facts = json.loads((tmp_path / "store/store.json").read_text())
    assert (facts["format"], facts["dims"], facts["records"], facts["channels"]) == ("frepa-store", 2, 60, 3)
