"""`frepa prepare` as a user gives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from frepa.cli import main
from frepa.datasets.opening import open_source

RNG = np.random.default_rng(1)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    root = tmp_path / "scans"
    root.mkdir()
    for i in range(20):
        Image.fromarray(RNG.integers(0, 256, (24, 30), dtype=np.uint8)).save(root / f"{i:02}.png")
    (root / "07.png").write_bytes(b"no picture")
    (root / "08.png").write_bytes(b"")
    return root


def test_pack_and_verify(scans: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    assert main(["prepare", str(scans), "--out", str(store), "--num-workers", "2"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(store)
    assert "2 of 20 scans were left out" in said.err
    assert "18 scans in" in said.err
    listed = (tmp_path / "store.skipped.csv").read_text()
    assert "07.png" in listed
    assert "08.png,empty file" in listed
    assert "png" not in (store / "skipped.csv").read_text()
    assert main(["prepare", "--verify", str(store)]) == 0
    assert "All 18 records" in capsys.readouterr().err


@pytest.mark.slow
def test_training_from_a_store_gives_the_weights_of_training_from_its_files(scans: Path, tmp_path: Path) -> None:
    for name in ("07.png", "08.png"):
        (scans / name).unlink()
    assert main(["prepare", str(scans), "--out", str(tmp_path / "store"), "--quiet"]) == 0
    for name, source in (("files", scans), ("packed", tmp_path / "store")):
        words = ["pretrain", str(source), "--out", str(tmp_path / name), "--encoder", "convnext_atto", "--quiet"]
        words += ["--image-size", "32", "--batch-size", "2", "--max-steps", "3", "--num-workers", "1"]
        assert main(words) == 0
    one, other = (load_file(tmp_path / name / "encoder.safetensors") for name in ("files", "packed"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_verify_tells_records_and_ends_with_code_2(scans: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    assert main(["prepare", str(scans), "--out", str(store), "--quiet", "--num-workers", "0", "--keep-names"]) == 0
    shard = store / "shards/00001.b2"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert main(["prepare", str(store), "--verify", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "1 of 18 records" in said
    assert "record 17 (19.png, 00001.b2): its bytes do not match their hash" in said


def test_a_manifest_keeps_labels_groups_and_modalities(scans: Path, tmp_path: Path) -> None:
    lines = [f"scans/{i:02}.png,{'ab'[i % 2]},patient {i // 4},{'us' if i < 10 else 'ct'}" for i in range(20)]
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,label,group,modality\n" + "\n".join(lines) + "\n")
    assert main(["prepare", str(manifest), "--out", str(tmp_path / "store"), "--quiet"]) == 0
    store, files = open_source(tmp_path / "store"), open_source(manifest)
    kept = [i for i in range(20) if i not in (7, 8)]
    assert store.labels.tolist() == ["ab"[i % 2] for i in kept]
    assert [store.modalities[c] for c in store.modality_codes] == ["us" if i < 10 else "ct" for i in kept]
    groups = [i // 4 for i in kept]
    assert [[a == b for b in store.group_codes] for a in store.group_codes] == [
        [a == b for b in groups] for a in groups
    ]
    assert store.read(0).group == files.read(0).group


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SCANS"], "--out is missing"),
        (["SCANS", "--out", "OUT", "--num-workers", "-1"], "expected 0 or more"),
        (["SCANS", "--verify", "--out", "OUT"], "without --out"),
        (["SCANS", "--verify"], "is no store"),
        (["SCANS", "--out", "SCANS"], "no store, and nothing in it will be touched|the source itself"),
        (["SCANS/00.png", "--out", "SCANS/01.png"], "this is a file"),
        (["NOWHERE", "--out", "OUT"], "does not exist"),
        (["SCANS/07.png", "--out", "OUT"], "None of the 1 records"),
    ],
)
def test_what_is_wrong_is_said_and_ends_with_code_2(scans: Path, tmp_path: Path, capsys, words, said: str) -> None:
    given = [word.replace("SCANS", str(scans)).replace("OUT", str(tmp_path / "out")) for word in words]
    before = sorted(path.name for path in scans.iterdir())
    assert main(["prepare", *given]) == 2
    import re

    assert re.search(said, capsys.readouterr().err)
    assert sorted(path.name for path in scans.iterdir()) == before


def test_volumes_whole_and_slice_by_slice(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    for i in range(3):
        np.save(tmp_path / f"volumes/{i}.npy", RNG.normal(size=(1, 12, 20, 16)).astype(np.float32))
    assert main(["prepare", str(tmp_path / "volumes"), "--out", str(tmp_path / "3d"), "--dims", "3", "--quiet"]) == 0
    volumes = open_source(tmp_path / "3d", dims=3)
    assert [volumes.read(i).size for i in range(3)] == [(12, 20, 16)] * 3
    assert np.array_equal(volumes.read(1).array, np.load(tmp_path / "volumes/1.npy"))
