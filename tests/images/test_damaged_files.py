"""Hundreds of damaged files of every format: none may crash, hang or exhaust memory, and each is reported or read.

The reading happens in child processes with limited memory and time, so that a crash is seen as one. The damage is drawn
from a fixed seed.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicom_making import MR, dataset, save, series, smooth

SECONDS_EACH, MEMORY = 20.0, 6 * 2**30
KINDS = ("cut", "cut near the end", "flip bits", "flip the header", "zero a part", "large numbers", "insert", "empty")

READ = """
import json, resource, sys, time, traceback
import torch
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.scan import UnreadableScan
for line in sys.stdin:
    path, start = line.strip(), time.perf_counter()
    said = []
    for dims in (2, 3):
        try:
            source = open_source(path, dims=dims)
            for i in sorted({0, len(source) // 2, len(source) - 1}):
                try:
                    scan = source.read(i)
                    assert scan.array.ndim == dims + 1 and scan.array.size
                    said.append("read")
                except UnreadableScan as error:
                    said.append(error.reason)
        except InputError as error:
            said.append(str(error))
        except BaseException as error:
            said.append("BUG " + "".join(traceback.format_exception(error))[-1500:])
    print(json.dumps([path, time.perf_counter() - start, said]), flush=True)
"""


def good_files(folder: Path) -> list[Path]:
    """One small file of every format and kind of compression."""
    folder.mkdir()
    grey = smooth((48, 40), low=0, high=255).astype(np.uint8)
    y, x = np.mgrid[:48, :40]
    picture = (120 + 60 * np.sin(x / 5.0) * np.cos(y / 6.0)).astype(np.uint8)
    colour = np.stack([picture, picture.T.repeat(2, 0)[:48, :40] // 2, grey], axis=-1)
    volume = smooth((6, 20, 18))
    Image.fromarray(colour).save(folder / "a.png")
    Image.fromarray(picture).save(folder / "a.jpg")
    Image.fromarray(picture.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(picture).save(folder / "a.bmp")
    Image.fromarray(picture).save(folder / "a.gif")
    Image.fromarray(picture).save(folder / "a.pgm")
    tifffile.imwrite(folder / "a.tif", volume, photometric="minisblack")
    tifffile.imwrite(folder / "z.tif", colour, compression="deflate", photometric="rgb")
    np.save(folder / "a.npy", volume)
    np.savez_compressed(folder / "a.npz", images=volume)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 2, 1.0])), folder / "a.nii")
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 2, 1.0])), folder / "a.nii.gz")
    nibabel.save(nibabel.MGHImage(volume.astype(np.int32), np.eye(4)), folder / "a.mgz")
    for name, compress in (("a.mha", False), ("z.mha", True), ("a.nrrd", False), ("z.nrrd", True)):
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(folder / name), compress)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("volume", data=volume, chunks=(1, 20, 18), compression="gzip")
    dicom = dataset(picture, Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1", PatientID="x")
    save(dicom, folder / "a.dcm")
    for name, syntax in (("rle", RLELossless), ("j2k", JPEG2000Lossless), ("jls", JPEGLSLossless)):
        data = dataset(smooth((48, 40), low=0, high=4000).astype(np.uint16), Modality="MR", SOPClassUID=MR)
        data.compress(syntax)
        save(data, folder / f"{name}.dcm")
    package = Path(pydicom.__file__).parent / "data" / "test_files"
    for name in ("JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm", "examples_palette.dcm", "image_dfl.dcm"):
        (folder / name).write_bytes((package / name).read_bytes())
    series(folder / "series", volume, RescaleSlope=1, RescaleIntercept=-1024)
    (folder / "one-of-a-series.dcm").write_bytes((folder / "series" / "IM0002.dcm").read_bytes())
    return sorted(path for path in folder.iterdir() if path.is_file())


def damaged(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    size = len(data)
    if kind == "empty":
        return b""
    if kind == "cut":
        return bytes(data[: int(rng.integers(1, size))])
    if kind == "cut near the end":
        return bytes(data[: -int(rng.integers(1, min(64, size)))])
    if kind == "insert":
        at = int(rng.integers(size))
        return bytes(data[:at]) + rng.bytes(int(rng.integers(1, 40))) + bytes(data[at:])
    reach = size if kind == "flip bits" else min(size, 600)
    if kind in ("flip bits", "flip the header"):
        for at in rng.integers(0, reach, int(rng.integers(1, 30))):
            data[at] ^= 1 << int(rng.integers(8))
        return bytes(data)
    at = int(rng.integers(reach))
    length = int(rng.integers(1, 64))
    if kind == "zero a part":
        data[at : at + length] = bytes(len(data[at : at + length]))
        return bytes(data)
    number = rng.choice([b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x01\x00", b"9999"])
    data[at : at + 4] = number[: len(data[at : at + 4])]
    return bytes(data)


def damage(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, str]]:
    """``count`` damaged files, formats and kinds taken in turn, with what was done to each."""
    goods = good_files(folder / "good")
    rng = np.random.default_rng(seed)
    for number in range(count):
        good = goods[number % len(goods)]
        kind = (
            KINDS[(number // len(goods)) % len(KINDS)]
            if number < len(goods) * len(KINDS)
            else str(rng.choice(KINDS[:-1]))
        )
        content = good.read_bytes()
        wrapped = good.name.endswith((".gz", ".mgz")) and rng.random() < 0.5
        spoilt = damaged(gzip.decompress(content) if wrapped else content, kind, rng)
        path = folder / f"{number:04d}-{good.name}"
        path.write_bytes(gzip.compress(spoilt) if wrapped else spoilt)
        yield path, kind


def read_in_children(paths: list[Path]) -> dict[str, tuple[float, list[str]]]:
    """Seconds and what was said of each file; a child that ends early loses the file it was at."""
    results: dict[str, tuple[float, list[str]]] = {}
    todo = [str(path) for path in paths]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while todo:
        child = subprocess.run(
            [sys.executable, "-c", READ, str(MEMORY)],
            input="\n".join(todo),
            capture_output=True,
            text=True,
            env=environment,
            timeout=120 + SECONDS_EACH * len(todo),
        )
        for line in child.stdout.splitlines():
            path, seconds, said = json.loads(line)
            results[path] = (seconds, said)
        left = [path for path in todo if path not in results]
        if left:
            results[left[0]] = (0.0, [f"CRASH {child.returncode}: {child.stderr[-600:]}"])
        todo = left[1:]
    return results


def check_all(folder: Path, count: int, seed: int) -> Counter[str]:
    files = dict(damage(folder, count, seed))
    results = read_in_children(list(files))
    assert len(results) == count
    outcome: Counter[str] = Counter()
    for path, kind in files.items():
        seconds, said = results[str(path)]
        assert seconds < SECONDS_EACH, (path.name, kind, seconds)
        assert not any(text.startswith(("CRASH", "BUG")) for text in said), (path.name, kind, said)
        assert said
        assert all(text.strip() for text in said), (path.name, kind, said)
        # No Python object, traceback or address in what a user reads
        assert not any("Traceback" in text or " object at 0x" in text for text in said), said
        if kind == "empty":
            assert all("empty" in text or "No " in text for text in said), said
        outcome["still read" if "read" in said else "refused"] += 1
    print(dict(outcome), "slowest", max(seconds for seconds, _ in results.values()))
    return outcome


def test_good_files_are_read_in_the_child(tmp_path: Path) -> None:
    paths = good_files(tmp_path / "good")
    results = read_in_children(paths)
    for path in paths:
        assert "read" in results[str(path)][1], (path.name, results[str(path)])


def test_damaged_files_of_every_format(tmp_path: Path) -> None:
    outcome = check_all(tmp_path, 64, seed=1)
    assert outcome["refused"] > 30


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [11, 12])
def test_five_hundred_damaged_files_of_every_format(tmp_path: Path, seed: int) -> None:
    outcome = check_all(tmp_path, 500, seed)
    assert outcome["refused"] > 250
