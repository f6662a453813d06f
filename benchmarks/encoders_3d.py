"""Time and memory of one training step of each full-size 3D encoder. Prints JSON.

    python benchmarks/encoders_3d.py [NAME ...] [--size 128] [--threads 2] [--device cuda] [--recompute] [--out FILE]

A step is forward and backward of a batch of one volume of size^3 with 1 + 1 channels, in float32, without an optimizer.
Every encoder has a process of its own, so that peaks do not mix: on the CPU ``peak_gib`` is what the process held
beyond its imports (``resource.getrusage``), on a GPU what torch allocated. ``cpu_s`` is processor time of all threads,
which a busy machine changes less than ``wall_s``. ``--recompute`` turns activation checkpointing on. An encoder that
does not fit into ``--limit-gib`` (80% of the free memory unless given) is reported, and does not take the machine down.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from frepa.encoders.registry import build_encoder, encoder_names

NAMES = ("vit3d_base", "swinunetr_base", "mednext_large", "resenc_large")
GIB = 2**30


def measure(name: str, size: int, threads: int, device: str, recompute: bool, repeats: int) -> dict[str, object]:
    """One encoder in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    encoder_names(3)  # imports MONAI, which must not count
    before = _peak(device)
    encoder = build_encoder(name).to(device).train()
    encoder.set_grad_checkpointing(recompute)
    x = torch.rand(1, encoder.in_channels, size, size, size, device=device)
    wall, cpu = [], []
    for _ in range(repeats):
        encoder.zero_grad(set_to_none=True)
        start, start_cpu = time.perf_counter(), time.process_time()
        features = encoder(x)
        (features.dense.square().mean() + features.embedding.square().mean()).backward()
        _wait(device)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        shapes = {"dense": list(features.dense.shape), "embedding": list(features.embedding.shape)}
        del features
    return {
        "encoder": name,
        "recompute": recompute,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        **shapes,
        "wall_s": round(statistics.median(wall), 2),
        "cpu_s": round(statistics.median(cpu), 2),
        "peak_gib": round((_peak(device) - before) / GIB, 2),
    }


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _free_gib() -> float:
    """Memory that can be had without swapping; all of it where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) / 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def _in_child(name: str, args: argparse.Namespace, limit: float) -> dict[str, object]:
    command = [sys.executable, __file__, name, "--child", "--size", str(args.size), "--threads", str(args.threads)]
    command += ["--device", args.device, "--repeats", str(args.repeats), *(["--recompute"] if args.recompute else [])]

    def keep_within() -> None:
        # Counts memory that is written to, not the address space that CUDA libraries reserve.
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * GIB), int(limit * GIB)))

    on_cpu = not args.device.startswith("cuda")
    child = subprocess.run(command, capture_output=True, text=True, preexec_fn=keep_within if on_cpu else None)
    if child.returncode == 0:
        return json.loads(child.stdout.splitlines()[-1])
    reason = (child.stderr.strip().splitlines() or [f"ended by signal {-child.returncode}"])[-1]
    return {"encoder": name, "recompute": args.recompute, "failed": reason, "limit_gib": round(limit, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help="encoders; by default the four of full size")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--limit-gib", type=float)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        result = measure(args.names[0], args.size, args.threads, args.device, args.recompute, args.repeats)
        print(json.dumps(result))
        return
    report: dict[str, Any] = {
        "size": args.size,
        "threads": args.threads,
        "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else platform.machine(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "encoders": [],
    }
    for name in args.names:
        report["encoders"].append(_in_child(name, args, args.limit_gib or 0.8 * _free_gib()))
        if args.out:  # after each, since the next one may take an hour
            args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
