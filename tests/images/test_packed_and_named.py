"""``.gz`` around any format, pages of TIFF stacks and members of files: the same scans as without."""

from __future__ import annotations

import gc
import gzip
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from dicom_making import MR, series, smooth
from frepa.cli import main
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.readers import packed

VOLUME = smooth((6, 20, 18), low=0, high=900)
PICTURE = smooth((30, 26), low=0, high=255).astype(np.uint8)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def every_format(folder: Path) -> dict[str, int]:
    """One file of each format, and the dims it is read with."""
    folder.mkdir()
    for ending in ("ppm", "pgm", "png", "bmp"):
        Image.fromarray(PICTURE).save(folder / f"a.{ending}")
    tifffile.imwrite(folder / "a.tif", VOLUME.astype(np.uint16), photometric="minisblack")
    np.save(folder / "a.npy", VOLUME)
    np.savez_compressed(folder / "a.npz", images=VOLUME)
    for name in ("a.mha", "a.nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(VOLUME), str(folder / name))
    with h5py.File(folder / "a.h5", "w") as file:
        file["image"], file["label"] = VOLUME, VOLUME > 400
    return {path.name: 3 if path.suffix in (".mha", ".nrrd", ".npy") else 2 for path in folder.iterdir()}


def test_gz_around_every_format(tmp_path: Path, own_temporary_folder: Path) -> None:
    for name, dims in every_format(tmp_path / "plain").items():
        member = "#image" if name.endswith(".h5") else ""
        zipped = tmp_path / f"{name}.gz"
        zipped.write_bytes(gzip.compress((tmp_path / "plain" / name).read_bytes()))
        plain = open_source(f"{tmp_path / 'plain' / name}{member}", dims=dims)
        other = open_source(f"{zipped}{member}", dims=dims)
        assert len(plain) == len(other), name
        for index in range(len(plain)):
            assert np.array_equal(plain.read(index).array, other.read(index).array), name
    assert len(list(own_temporary_folder.rglob("a.*"))) <= packed._KEPT


def test_a_series_of_gz_files(tmp_path: Path) -> None:
    for path in series(tmp_path / "s", VOLUME, Modality="MR", SOPClassUID=MR):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    source = open_source(tmp_path / "s", dims=3)
    assert len(source) == 1
    assert np.array_equal(source.read(0).array[0], VOLUME)


def test_what_killed_processes_left_is_cleaned(tmp_path: Path, own_temporary_folder: Path) -> None:
    left = own_temporary_folder / f"frepa-unpacked-{os.getuid()}-{2**22 + 1}"
    (left / "x").mkdir(parents=True)
    Image.fromarray(PICTURE).save(tmp_path / "a.pgm")
    (tmp_path / "b.pgm.gz").write_bytes(gzip.compress((tmp_path / "a.pgm").read_bytes()))
    assert np.array_equal(open_source(tmp_path / "b.pgm.gz").read(0).array[0], PICTURE)
    assert not left.exists()


@pytest.mark.parametrize(("content", "words"), [(b"", "empty"), (b"no gzip", "fails the check")])
def test_damaged_gz(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.npz.gz").write_bytes(content)
    with pytest.raises(InputError, match=words):
        open_source(tmp_path / "a.npz.gz")
    whole = gzip.compress(PICTURE.tobytes())
    (tmp_path / "a.npz.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        open_source(tmp_path / "a.npz.gz")


def test_pages_members_and_datasets_are_sources_of_their_own(tmp_path: Path) -> None:
    every_format(tmp_path / "s")
    assert len(open_source(tmp_path / "s" / "a.tif")) == 6
    for name in ("a.tif#page=2", "a.tif#2"):
        source = open_source(f"{tmp_path}/s/{name}")
        assert len(source) == 1
        assert np.array_equal(source.read(0).array[0], VOLUME[2])
    for name in ("a.h5#image", "a.npz#images"):
        assert np.array_equal(open_source(f"{tmp_path}/s/{name}", dims=3).read(0).array[0], VOLUME)
    with pytest.raises(InputError, match="has no page 'page=6'; it holds 6"):
        open_source(f"{tmp_path}/s/a.tif#page=6")
    (tmp_path / "m.csv").write_text("path\ns/a.tif#page=1\ns/a.h5#label\n")
    assert len(open_source(tmp_path / "m.csv")) == 7


@pytest.mark.parametrize("name", ["a.tif#page=2", "a.h5#image", "a.npz#images", "a.ppm.gz"])
def test_verbs_take_them(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    every_format(tmp_path / "s")
    (tmp_path / "s" / "a.ppm.gz").write_bytes(gzip.compress((tmp_path / "s" / "a.ppm").read_bytes()))
    source = f"{tmp_path}/s/{name}"
    assert main(["check", source, "--num-workers", "0"]) == 0
    assert main(["prepare", source, "--out", str(tmp_path / "store"), "--num-workers", "0", "--quiet"]) == 0
    assert "1 scans" in (said := capsys.readouterr()).out + said.err or name.startswith(("a.h5", "a.npz"))


def test_a_stack_of_many_pages_is_not_walked_for_each(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for number in range(1000):
            writer.write(np.full((16, 16), number % 251, np.uint8), contiguous=False, metadata=None)
    start = time.process_time()
    source = open_source(tmp_path / "a.tif")
    values = [int(source.read(index).array[0, 0, 0]) for index in range(len(source))]
    assert values == [number % 251 for number in range(1000)]
    assert time.process_time() - start < 6.0  # about 2; it was 5 times as much, and grew with the square


def test_one_record_of_a_stack_is_named_by_its_number(tmp_path: Path) -> None:
    every_format(tmp_path / "data")
    tifffile.imwrite(tmp_path / "data/p.tif", VOLUME.astype(np.uint16), photometric="minisblack")
    rows = ["data/a.npz#images[4]", "data/p.tif#[2]", "data/a.h5#image[1]", "data/a.npz#images[0]", "data/a.npz#images"]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(f"{row},x" for row in rows) + "\n")
    source = open_source(tmp_path / "list.csv")
    numbers = [4, 2, 1, 0, *range(6)]
    assert len(source) == len(numbers)
    for index, number in enumerate(numbers):
        assert np.array_equal(source.read(index).array[0], VOLUME[number])
    assert [source.name(i) for i in range(3)] == [rows[0], "data/p.tif[2]", rows[2]]
    assert np.array_equal(open_source(f"{tmp_path}/data/a.npz#images[5]").read(0).array[0], VOLUME[5])
    assert len(open_source(f"{tmp_path}/data/a.npz#images[5]")) == 1
    # Another number is another source
    other = (tmp_path / "list.csv").read_text().replace("images[4]", "images[3]")
    (tmp_path / "other.csv").write_text(other)
    assert open_source(tmp_path / "other.csv").fingerprint != source.fingerprint
    (tmp_path / "list.csv").write_text("path\ndata/a.npz#images[6]\ndata/a.npz#images[1]\n")
    found = open_source(tmp_path / "list.csv")
    assert [(entry.path, entry.reason) for entry in found.skipped] == [
        ("data/a.npz#images[6]", "has no record 6; it holds 6, counted from 0")
    ]
    assert np.array_equal(found.read(0).array[0], VOLUME[1])


def test_threads_do_not_take_away_what_others_read(tmp_path: Path) -> None:
    """More files than a thread keeps, read by eight threads at once; what they unpacked goes when they end."""
    for number in range(12):
        (tmp_path / f"{number}.txt.gz").write_bytes(gzip.compress(bytes([number]) * 5000))
    names = [tmp_path / f"{number % 12}.txt.gz" for number in range(600)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: packed.unpacked(path).read_bytes(), names))
        folder = packed._own_folder()
    assert found == [bytes([number % 12]) * 5000 for number in range(600)]
    gc.collect()
    own = [packed._kept().folder.name]
    assert {item.name for item in folder.iterdir()} <= set(own)
