"""Reading from a store against reading the files it was made of. Prints JSON.

    python benchmarks/store.py --slices FOLDER [FOLDER ...] --volume FOLDER [--images 240] [--out FILE.json]

Slices: 512 x 512 parts of the images in each FOLDER, turned and mirrored until there are ``--images`` of each kind, as
PNG, as uncompressed and as JPEG 2000 DICOM, and in the store packed from the PNG files. Volumes: the slices of
``--volume`` (a series) stacked there and back to 240 slices of 512 x 512, as .nii.gz and in the store packed from them.

Every contender is read by the same loader with two workers, in turns, the repeats interleaved, each pass over all
records in an order of its own; files are in the page cache. ``batches`` are scaled batches as training gets them;
``records`` is `Source.read` alone, in two processes. Next to wall time stands the processor time per item, summed over
processes: it hardly depends on what else runs. ``pretrain`` trains a tiny encoder from the store and gives the share of
a step spent waiting for data.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from frepa.datasets.opening import open_source
from frepa.images.loading import make_loader
from frepa.images.sampling import SampleStream
from frepa.images.scan import UnreadableScan
from frepa.images.source import Source
from frepa.images.store.packing import pack_source

SIDE, CROP, WORKERS = 512, 128, 2


def planes(folders: list[str], count: int) -> dict[str, list[np.ndarray]]:
    """``count`` images of 512 x 512 for each kind of image found: 16-bit, 8-bit grey, 8-bit colour."""
    found: dict[str, list[np.ndarray]] = {}
    for folder in folders:
        source = open_source(folder, dims=2)
        for index in range(len(source)):
            try:
                array = source.read(index).array
            except UnreadableScan:
                continue
            if min(array.shape[1:]) < SIDE:
                continue
            top, left = ((n - SIDE) // 2 for n in array.shape[1:])
            array = array[:, top : top + SIDE, left : left + SIDE]
            if array.dtype == np.uint8 and array.shape[0] == 3:
                found.setdefault("8-bit colour", []).append(np.moveaxis(array, 0, -1))
                found.setdefault("8-bit grey", []).append(array[1])
            elif array.dtype.itemsize == 2:
                found.setdefault("16-bit", []).append(
                    (array[0].astype(np.int32) + 1024).clip(0, 65535).astype(np.uint16)
                )
    turned: dict[str, list[np.ndarray]] = {}
    for kind, arrays in found.items():
        variants = [
            np.rot90(a[:, ::-1] if flip else a, quarter) for flip in (0, 1) for quarter in range(4) for a in arrays
        ]
        turned[kind] = [np.ascontiguousarray(variants[i % len(variants)]) for i in range(count)]
    return turned


def write_images(root: Path, arrays: list[np.ndarray]) -> dict[str, Path]:
    """The same images as PNG, plain DICOM and JPEG 2000 DICOM."""
    from PIL import Image

    folders = {name: root / name for name in ("png", "dicom", "dicom jpeg 2000")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folders["png"] / f"{i:05}.png")
        for name in ("dicom", "dicom jpeg 2000"):
            data = as_dicom(array)
            if name != "dicom":
                from pydicom.uid import JPEG2000Lossless

                data.compress(JPEG2000Lossless, generate_instance_uid=False)
            data.save_as(folders[name] / f"{i:05}.dcm", enforce_file_format=True)
    return folders


def as_dicom(array: np.ndarray) -> Any:
    """A secondary capture of its own series, without any patient."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = generate_uid(), generate_uid(), "OT"
    data.Rows, data.Columns = array.shape[:2]
    data.SamplesPerPixel = 3 if array.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if array.ndim == 3 else "MONOCHROME2"
    if array.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * array.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    data.PixelData = array.tobytes()
    return data


def write_volumes(root: Path, folder: str, count: int) -> Path:
    """``count`` volumes of 240 x 512 x 512 from one series, mirrored along the stack and turned, as .nii.gz."""
    import nibabel

    series = open_source(folder, dims=3).read(0).array[0]
    stack = np.concatenate([series[:: -1 if turn % 2 else 1] for turn in range(-(-240 // len(series)))])[:240]
    root.mkdir(parents=True)
    for i in range(count):
        volume = np.rot90(stack, i, axes=(1, 2))
        image = nibabel.Nifti1Image(np.ascontiguousarray(volume.T), np.diag([0.8, 0.8, 1.0, 1.0]))
        nibabel.save(image, root / f"{i}.nii.gz")
    return root


def batches(source: Source, passes: int, seed: int, **options: Any) -> float:
    """Seconds from the first batch on, per item, of a loader with two workers."""
    stream = SampleStream(len(source), seed)
    loader = make_loader(source, stream=stream, stop_position=passes, num_workers=WORKERS, seed=seed, **options)
    each = iter(loader)
    first = len(next(each)["index"])
    start, items = time.perf_counter(), 0
    for batch in each:
        assert not batch["skipped"], batch["skipped"]
        items += len(batch["index"])
    del each, loader
    return (time.perf_counter() - start) / max(items, first)


def records(source: Source, passes: int, seed: int) -> float:
    """Seconds per record of `Source.read` in two processes."""
    order = SampleStream(len(source), seed).at(range(passes)).tolist()
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("fork")) as pool:
        list(pool.map(_read, [source] * WORKERS, [order[:1]] * WORKERS))
        start = time.perf_counter()
        list(pool.map(_read, [source] * WORKERS, [order[part::WORKERS] for part in range(WORKERS)]))
        return (time.perf_counter() - start) / passes


def _read(source: Source, order: list[int]) -> int:
    return sum(source.read(index).array.nbytes for index in order)


def contest(contenders: dict[str, Callable[[int], float]], repeats: int, items: dict[str, int]) -> dict[str, Any]:
    """Items per second (median over the repeats), processor seconds per item, and ratios to the store."""
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    busy: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name, act in contenders.items():
            before = _children()
            wall[name].append(act(repeat))
            busy[name].append((_children() - before) / items[name])
    rows = {
        name: {
            "per_second": round(1 / statistics.median(wall[name]), 2),
            "cpu_ms": round(1000 * statistics.median(busy[name]), 3),
        }
        for name in contenders
    }
    ours = rows["store"]
    for name, row in rows.items():
        if name != "store":
            row["store_is_faster_by"] = round(ours["per_second"] / row["per_second"], 2)
            row["store_is_faster_by_cpu"] = round(row["cpu_ms"] / ours["cpu_ms"], 2)
    return rows


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def slices(root: Path, kind: str, arrays: list[np.ndarray], repeats: int) -> dict[str, Any]:
    """One kind of image from all its files and from the store."""
    folders = write_images(root, arrays)
    start = time.perf_counter()
    pack_source(open_source(folders["png"]), root / "store", num_workers=WORKERS)
    packing = len(arrays) / (time.perf_counter() - start)
    folders["store"] = root / "store"
    sources = {name: open_source(folder) for name, folder in folders.items()}
    for name, source in sources.items():
        assert len(source) == len(arrays), (name, source.skipped[:2])
        stored = source.read(0).array
        assert np.array_equal(np.squeeze(np.moveaxis(stored, 0, -1)), arrays[0]), name
    count = {name: len(arrays) for name in sources}
    options = {"size": SIDE, "batch_size": 8}
    return {
        "kind": kind,
        "images": len(arrays),
        "megabytes": {name: round(bytes_in(folder) / 1e6, 1) for name, folder in folders.items()},
        "raw_megabytes": round(sum(a.nbytes for a in arrays) / 1e6, 1),
        "packed_per_second": round(packing, 1),
        "records": contest(
            {name: lambda seed, s=source: records(s, len(s), seed) for name, source in sources.items()}, repeats, count
        ),
        "batches": contest(
            {name: lambda seed, s=source: batches(s, len(s), seed, **options) for name, source in sources.items()},
            repeats,
            count,
        ),
    }


def volumes(root: Path, folder: str, count: int, repeats: int) -> dict[str, Any]:
    """128^3 crops from .nii.gz and from the store."""
    files = write_volumes(root / "nifti", folder, count)
    start = time.perf_counter()
    pack_source(open_source(files, dims=3), root / "store", num_workers=WORKERS)
    packing = count / (time.perf_counter() - start)
    sources = {name: open_source(path, dims=3) for name, path in ((".nii.gz", files), ("store", root / "store"))}
    passes = {".nii.gz": 8, "store": 240}
    options = {"size": CROP, "batch_size": 2, "mode": "crop"}
    return {
        "volumes": count,
        "size": list(sources["store"].describe(0).size),  # type: ignore[union-attr]
        "megabytes": {"nii.gz": round(bytes_in(files) / 1e6, 1), "store": round(bytes_in(root / "store") / 1e6, 1)},
        "packed_per_second": round(packing, 3),
        "crops": contest(
            {n: lambda seed, n=n, s=s: batches(s, passes[n], seed, **options) for n, s in sources.items()},
            repeats,
            passes,
        ),
    }


def pretraining(store: Path, out: Path, steps: int) -> dict[str, Any]:
    """Share of waiting in the steps of ``frepa pretrain``, as its speed.jsonl tells."""
    words = (
        f"--encoder convnext_atto --image-size 128 --batch-size 8 --max-steps {steps} --num-workers {WORKERS} --quiet"
    )
    command = [sys.executable, "-m", "frepa.cli", "pretrain", str(store), "--out", str(out), *words.split()]
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.loads(line) for line in (out / "speed.jsonl").read_text().splitlines()]
    steady = rows[1:] or rows  # the first line counts the start of the workers
    return {
        "command": f"frepa pretrain STORE {words}",
        "steps": steps,
        "images_per_second": round(statistics.median(row["images_per_second"] for row in steady), 2),
        "waiting_share": round(statistics.mean(row["waiting_share"] for row in steady), 4),
        "waiting_share_of_the_first_ten_steps": rows[0]["waiting_share"],
    }


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in ("blosc2", "numpy", "torch", "Pillow", "pydicom", "nibabel")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slices", nargs="*", default=[], help="folders with images of at least 512 x 512")
    parser.add_argument("--volume", help="folder of one series, for volumes")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of pretraining; 0 for none")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"command": "python benchmarks/store.py", "options": vars(options) | {"out": None}}
    result["options"] |= {
        "slices": [Path(name).name for name in options.slices],
        "volume": Path(options.volume or "").name,
    }
    result["machine"] = machine()
    work = Path(tempfile.mkdtemp(prefix="frepa-store-"))
    try:
        result["slices"] = []
        for kind, arrays in planes(options.slices, options.images).items():
            result["slices"].append(slices(work / kind.replace(" ", "-"), kind, arrays, options.repeats))
            print(json.dumps(result["slices"][-1]), file=sys.stderr)
        if options.steps and result["slices"]:
            result["pretrain"] = pretraining(work / "8-bit-grey/store", work / "run", options.steps)
        if options.volume:
            result["volumes"] = volumes(work / "volumes", options.volume, options.volumes, options.repeats)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
