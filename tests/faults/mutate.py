"""Damaged files of every format, read in child processes with little memory and time: run it for as many as you like.

    python -m tests.faults.mutate --count 2000 --seed 1

Each file is a whole one with something done to it: cut, bits turned over, parts zeroed, repeated or exchanged, numbers
made large. All is drawn from the seed. A child reads it in 2D and 3D as `frepa check` would; a crash, an exception that
is no refusal, more than `SECONDS_EACH` or more than `FILE_MEMORY` on top of what the child had is a failure.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "making"))

import h5py
import imagecodecs
import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
import tifffile
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicom_making import MR, dataset, save, series, smooth

SECONDS_EACH = 20.0
#: What one file may take (`frepa.images.guards.VARIABLE`), and what is allowed for the libraries' own around it.
FILE_MEMORY, AROUND = 256 * 2**20, 64 * 2**20
KINDS = ("cut", "cut near the end", "flip bits", "flip the header", "zero a part", "large numbers", "insert")
KINDS += ("repeat a part", "exchange parts", "digits", "empty")

READ = """
import json, os, sys, time, traceback
from typing import get_args
import torch
torch.set_num_threads(1)
from frepa.checks.measures import measure
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.scan import Trouble, UnreadableScan
import frepa.images.readers.dicom.reader, frepa.images.readers.hdf5, frepa.images.readers.nifti
import frepa.images.readers.raster, frepa.images.readers.simpleitk, frepa.images.readers.tiff

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

for line in sys.stdin:
    path, start = line.rstrip("\\n"), time.perf_counter()
    said = []
    reset_peak()
    before = kilobytes("VmRSS")
    for dims in (2, 3):
        try:
            source = open_source(path, dims=dims, canonical=False)
            for i in sorted({0, len(source) // 2, len(source) - 1}):
                try:
                    scan = source.read(i)
                    assert scan.array.ndim == dims + 1 and scan.array.size
                    measure(scan)
                    said.append("read")
                except UnreadableScan as error:
                    assert error.kind in get_args(Trouble)
                    said.append(error.reason)
        except InputError as error:
            said.append(str(error))
        except BaseException as error:
            said.append("BUG " + "".join(traceback.format_exception(error))[-1500:])
    print(json.dumps([path, time.perf_counter() - start, (kilobytes("VmHWM") - before) * 1024, said]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """What one file gave: what was done to it, seconds, bytes on top of what was there, and what was said."""

    name: str
    kind: str
    seconds: float
    memory: int
    said: list[str]

    def wrong(self) -> str:
        """What breaks the promise, or ""."""
        bad = [text for text in self.said if text.startswith(("CRASH", "BUG"))]
        if bad or not self.said:
            return bad[0] if bad else "nothing was said"
        if self.seconds > SECONDS_EACH:
            return f"{self.seconds:.1f} s"
        if self.memory > FILE_MEMORY + AROUND:
            return f"{self.memory / 2**20:.0f} MB"
        if not all(text.strip() for text in self.said):
            return "an empty reason"
        # No Python object, traceback or address in what a user reads
        odd = [text for text in self.said if "Traceback" in text or " object at 0x" in text]
        return odd[0] if odd else ""


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
    tifffile.imwrite(folder / "b.tif", volume, photometric="minisblack", bigtiff=True, compression="lzw")
    deep = np.random.default_rng(2).integers(0, 2**16, (48, 40, 4)).astype(np.uint16)
    (folder / "rgba.png").write_bytes(imagecodecs.png_encode(deep))
    Image.fromarray(colour).quantize(16).save(folder / "palette.png")
    Image.fromarray(colour).save(folder / "a.ppm")
    (folder / "a.ppm.gz").write_bytes(gzip.compress((folder / "a.ppm").read_bytes()))
    (folder / "a.ppm").unlink()
    np.save(folder / "a.npy", volume)
    np.savez_compressed(folder / "a.npz", images=volume)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 2, 1.0])), folder / "a.nii")
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 2, 1.0])), folder / "a.nii.gz")
    nibabel.save(nibabel.Nifti2Image(volume, np.diag([1, 1, 2, 1.0])), folder / "b.nii.gz")
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
    frames = dataset(volume, Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.3.1")
    save(frames, folder / "frames.dcm")
    package = Path(pydicom.__file__).parent / "data" / "test_files"
    for name in ("JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm", "examples_palette.dcm", "image_dfl.dcm"):
        (folder / name).write_bytes((package / name).read_bytes())
    series(folder / "series", volume, RescaleSlope=1, RescaleIntercept=-1024)
    (folder / "one-of-a-series.dcm").write_bytes((folder / "series" / "IM0002.dcm").read_bytes())
    return sorted(path for path in folder.iterdir() if path.is_file())


def damaged(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """``content`` with one kind of damage."""
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
    if kind == "digits":
        for at in [i for i in range(min(size, 2000)) if 48 <= data[i] <= 57][:: int(rng.integers(1, 6))]:
            if rng.random() < 0.3:
                data[at] = int(rng.choice(list(b"0123456789-.")))
        return bytes(data)
    at = int(rng.integers(reach))
    length = int(rng.integers(1, 64))
    if kind == "zero a part":
        data[at : at + length] = bytes(len(data[at : at + length]))
        return bytes(data)
    if kind == "repeat a part":
        return bytes(data[: at + length] + data[at:])
    if kind == "exchange parts":
        other = int(rng.integers(size))
        one, two = bytes(data[at : at + length]), bytes(data[other : other + length])
        data[at : at + len(two)] = two
        data[other : other + len(one)] = one
        return bytes(data[:size])
    number = rng.choice([b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x01\x00", b"9999"])
    data[at : at + 4] = number[: len(data[at : at + 4])]
    return bytes(data)


def damage(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, str]]:
    """``count`` damaged files, formats and kinds taken in turn, with what was done to each."""
    goods = good_files(folder / "good")
    rng = np.random.default_rng(seed)
    for number in range(count):
        good = goods[number % len(goods)]
        turn = (number // len(goods) + number) % len(KINDS)
        kind = KINDS[turn] if number < len(goods) * len(KINDS) else str(rng.choice(KINDS[:-1]))
        content = good.read_bytes()
        wrapped = good.name.endswith((".gz", ".mgz")) and rng.random() < 0.5
        spoilt = damaged(gzip.decompress(content) if wrapped else content, kind, rng)
        path = folder / f"{number:05d}-{good.name}"
        path.write_bytes(gzip.compress(spoilt) if wrapped else spoilt)
        yield path, kind


def read_in_children(paths: list[Path]) -> dict[str, tuple[float, int, list[str]]]:
    """Seconds, bytes and what was said of each file; a child that ends early or hangs loses the file it was at."""
    results: dict[str, tuple[float, int, list[str]]] = {}
    todo = [str(path) for path in paths]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FREPA_FILE_MEMORY": str(FILE_MEMORY)}
    while todo:
        with subprocess.Popen(
            [sys.executable, "-c", READ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as child:
            try:
                output, errors = child.communicate("\n".join(todo), timeout=60 + 2 * len(todo))
                ended = f"CRASH {child.returncode}: {errors[-600:]}"
            except subprocess.TimeoutExpired:
                child.kill()
                output, _ = child.communicate()
                ended = "CRASH it hangs"
        for line in output.splitlines():
            path, seconds, memory, said = json.loads(line)
            results[path] = (seconds, memory, said)
        left = [path for path in todo if path not in results]
        if left:
            results[left[0]] = (0.0, 0, [ended])
        todo = left[1:]
    return results


def run(folder: Path, count: int, seed: int, *, whole: bool = False) -> list[Outcome]:
    """Make, read and judge ``count`` damaged files in ``folder``; with ``whole`` also the files they are made of."""
    files = dict(damage(folder, count, seed))
    if whole:
        files |= {path: "whole" for path in sorted((folder / "good").iterdir()) if path.is_file()}
    results = read_in_children(list(files))
    return [Outcome(path.name, kind, *results[str(path)]) for path, kind in files.items()]


def summary(outcomes: list[Outcome]) -> str:
    """The figures in a line."""
    counts = Counter("still read" if "read" in outcome.said else "refused" for outcome in outcomes)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    largest = max(outcomes, key=lambda outcome: outcome.memory)
    wrong = sum(bool(outcome.wrong()) for outcome in outcomes)
    return (
        f"{len(outcomes)} files: {counts['refused']} refused, {counts['still read']} still read, {wrong} wrong; "
        f"slowest {slowest.seconds:.2f} s ({slowest.name}), most memory {largest.memory / 2**20:.0f} MB "
        f"({largest.name})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(Path(folder), options.count, options.seed)
    for outcome in outcomes:
        if outcome.wrong():
            print(f"{outcome.name} ({outcome.kind}): {outcome.wrong()}")
    print(summary(outcomes))
    return int(any(outcome.wrong() for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
