"""Corruption and guide of a batch against the plain way, image by image with NumPy and scikit-image. Prints JSON.

    python benchmarks/corruption.py [--dims 3] [--size 512] [--batch 16] [--threads 2] [--device cuda] [--out FILE.json]

The plain way: one full complex transform and back for half of the images, a Python loop over the patches of the other
half, and `skimage.filters.frangi` at the same three scales; all in float32, on the same mix of strategies. skimage
answers to one polarity per call, so the guide of both polarities takes two calls; ``one_polarity`` sets one call
against our guide of one polarity. NumPy and SciPy use one core. With ``--processes N`` the plain way has N worker
processes, as a data loader would give it.

The two sides take turns, so that a busy moment hits both. ``ratio`` is the median over the repeats of plain / batched
wall time. ``cpu_ratio`` is that of processor time, summed over threads: it does not depend on what else runs, and it
counts both of our threads (not given with ``--processes``). Where other programs keep the cores busy, set
OMP_WAIT_POLICY=PASSIVE: otherwise torch's threads spin while they wait for each other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy import ndimage
from skimage.filters import frangi

from frepa.corruption.dual import Corruption
from frepa.corruption.frequency import frequency_corrupt
from frepa.corruption.guide import hessian_guide
from frepa.corruption.histogram import histogram_mask
from frepa.corruption.sizes import REFERENCE_PATCH
from frepa.draws import Draws, sample_keys

SIGMAS = (0.5, 1.0, 1.5)


# The plain way: NumPy and scikit-image, one image at a time.


def plain_frequency(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Frepa Eq. 1-3 on the full centred complex spectrum."""
    spectrum = np.fft.fftshift(np.fft.fftn(image))
    cutoff = 0.2 * min(image.shape)
    axes = [np.arange(size, dtype=np.float32) - size // 2 for size in image.shape]
    square = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True))
    level = 0.002 * np.abs(spectrum).max()
    for corner in np.ndindex(*[size // 16 for size in image.shape]):
        centre = [16 * place + 8 - size // 2 for place, size in zip(corner, image.shape)]
        if random.random() < 1 - np.exp(-sum(value**2 for value in centre) / cutoff**2):
            spectrum[tuple(slice(16 * place, 16 * place + 16) for place in corner)] = 0
    noise = level * random.standard_normal(image.shape, dtype=np.float32) * np.exp(-square / cutoff**2)
    noise[tuple(size // 2 for size in image.shape)] = 0
    return np.fft.ifftn(np.fft.ifftshift(spectrum + noise)).real


def plain_histogram(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Frepa Eq. 4, patch by patch."""
    patch, out = REFERENCE_PATCH[image.ndim], image.copy()
    for corner in np.ndindex(*[-(-size // patch) for size in image.shape]):
        if random.random() < 0.7:
            where = tuple(slice(patch * place, patch * place + patch) for place in corner)
            piece = image[where]
            out[where] = piece.mean() + piece.std() * random.standard_normal(piece.shape, dtype=np.float32)
    return out


def plain_guide(image: np.ndarray, ridges: str) -> np.ndarray:
    dark = frangi(image, sigmas=SIGMAS, black_ridges=True)
    return dark if ridges == "dark" else np.maximum(dark, frangi(image, sigmas=SIGMAS, black_ridges=False))


def plain(part: str, image: np.ndarray, in_frequency: bool) -> None:
    """One image's share of a part; also what a worker process is given."""
    random = np.random.default_rng(0)
    if part == "frequency" or (part in ("all", "one_polarity") and in_frequency):
        plain_frequency(image, random)
    if part == "histogram" or (part in ("all", "one_polarity") and not in_frequency):
        plain_histogram(image, random)
    if part in ("all", "guide"):
        plain_guide(image, "both")
    if part == "one_polarity":
        plain_guide(image, "dark")


# Ours: the whole batch.


def batched(part: str, x: torch.Tensor, draws: Draws) -> None:
    if part in ("all", "one_polarity"):
        Corruption()(x, draws)
    if part in ("all", "guide"):
        hessian_guide(x)
    if part == "one_polarity":
        hessian_guide(x, kind="frangi_dark")
    if part == "frequency":
        frequency_corrupt(x, draws)
    if part == "histogram":
        histogram_mask(x, draws)
    if x.is_cuda:
        torch.cuda.synchronize()


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def pictures(batch: int, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth textures with edges, values in [0, 1], float32 ``(B, 1, *S)``."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((batch, *shape), dtype=np.float32)
    smooth = np.stack([ndimage.gaussian_filter(image, 3) for image in noise])
    images = 0.5 + 0.3 * np.tanh(8 * smooth / smooth.std()) + 0.02 * noise
    return np.clip(images, 0, 1)[:, None].astype(np.float32)


def compare(
    part: str, images: np.ndarray, draws: Draws, repeats: int, pool: ProcessPoolExecutor | None
) -> dict[str, object]:
    """Milliseconds per image of both sides and their ratio."""
    x = torch.from_numpy(images).to(draws.device)
    in_frequency = [value < 0.5 for value in draws.host_uniform("strategy")]

    def ours() -> None:
        batched(part, x, draws)

    def theirs() -> None:
        jobs = ([part] * len(images), images[:, 0], in_frequency)
        for _ in map(plain, *jobs) if pool is None else pool.map(plain, *jobs):
            pass

    for _ in range(3):  # index tables, operators, transform plans
        ours()
    slow, fast = [], []
    for _ in range(repeats):
        before = [seconds(ours) for _ in range(3)]
        slow.append(seconds(theirs))
        fast.append(tuple(statistics.median(times) for times in zip(*before, *[seconds(ours) for _ in range(3)])))
    result: dict[str, object] = {}
    for number, clock in enumerate(("", "cpu_") if pool is None and not x.is_cuda else ("",)):
        plain_times, our_times = [times[number] for times in slow], [times[number] for times in fast]
        ratios = sorted(theirs / ours for theirs, ours in zip(plain_times, our_times))
        result[f"plain_{clock}ms_per_image"] = round(1e3 * statistics.median(plain_times) / len(images), 2)
        result[f"batched_{clock}ms_per_image"] = round(1e3 * statistics.median(our_times) / len(images), 2)
        result[f"{clock}ratio"] = round(statistics.median(ratios), 1)
        result[f"{clock}ratio_range"] = [round(ratios[0], 1), round(ratios[-1], 1)]
    return result


def machine(device: torch.device) -> dict[str, object]:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-image": version("scikit-image"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=2)
    parser.add_argument("--size", type=int, help="pixels along each axis (512 in 2D, 128 in 3D)")
    parser.add_argument("--batch", type=int, help="images (16 in 2D, 2 in 3D)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--processes", type=int, default=1, help="worker processes of the plain way")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", default=["all", "one_polarity", "guide", "frequency", "histogram"])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    args = parser.parse_args()
    size = args.size or {2: 512, 3: 128}[args.dims]
    batch = args.batch or {2: 16, 3: 2}[args.dims]
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    images = pictures(batch, (size,) * args.dims)
    draws = Draws(choose_keys(batch), device)
    pool = ProcessPoolExecutor(args.processes, get_context("spawn")) if args.processes > 1 else None
    if pool is not None:
        list(pool.map(plain, ["histogram"] * 8, [images[0, 0, :32]] * 8, [False] * 8))  # workers import and start
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    result = {
        "command": "python " + " ".join(sys.argv),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "machine": machine(device),
        "shape": [batch, 1, *images.shape[2:]],
        "torch_threads": args.threads,
        "plain_processes": args.processes,
        "repeats": args.repeats,
        "frequency_rows": sum(value < 0.5 for value in draws.host_uniform("strategy")),
        "load_before": load,
        "parts": {part: compare(part, images, draws, args.repeats, pool) for part in args.parts},
    }
    result["load_after"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


def choose_keys(batch: int) -> list[int]:
    """Keys of a batch in which half of the images, rounded down, are corrupted in the frequency domain."""
    start = 0
    while True:
        keys = sample_keys(0, range(start, start + batch), 0)
        if sum(value < 0.5 for value in Draws(keys).host_uniform("strategy")) == batch // 2:
            return keys
        start += batch


if __name__ == "__main__":
    main()
