"""What the objective costs in a training step: forward and backward, term by term, printed as JSON.

    python benchmarks/objective.py [--device cuda] [--threads 2] [--size 512 512] [--batch 4] [--channels 1]

Also sets the hierarchical loss, whose gradient is made in its forward pass, against the same formula left to autograd:
time, and the memory it needs beside its input. Times are the best of the repeats, the variants taken in turn.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from frepa.corruption.spectrum import high_pass
from frepa.draws import Draws, sample_keys
from frepa.pretraining.methods import terms
from frepa.pretraining.methods.augment import Augmentation
from frepa.pretraining.methods.objective import Objective

VIEWS = 2


def plain_hfl(residual: Tensor) -> Tensor:
    """Frepa Eq. 9 as one would write it, its gradient left to autograd."""
    shape, axes = tuple(residual.shape[2:]), tuple(range(2, residual.ndim))
    spectrum = torch.fft.rfftn(residual, dim=axes)
    total = residual.new_zeros(())
    for cutoff in terms.HFL_CUTOFFS:
        transfer = high_pass(shape, cutoff, residual.device)
        total = total + torch.fft.irfftn(spectrum * transfer, s=shape, dim=axes).abs().mean()
    return total / len(terms.HFL_CUTOFFS)


def timed(work: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Best milliseconds of each piece of work; one repeat of all before the next, so a busy moment hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 2):
        for name, run in work.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if repeat >= 2:  # the first fill the caches
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(min(values), 2) for name, values in taken.items()}


def step(term: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], None]:
    """Forward and backward of ``term`` to fresh leaves."""

    def run() -> None:
        term(*[value.detach().requires_grad_() for value in inputs]).backward()

    return run


def extra_memory(name: str, shape: list[int], device: str, threads: int) -> float:
    """Peak MiB that one forward and backward of a variant needs beside its input. Run in a process of its own."""
    torch.set_num_threads(threads)
    term = {"custom": terms.hfl, "plain": plain_hfl}[name]
    step(term, torch.rand(1, 1, *shape[2:], device=device))()  # libraries and filters are loaded before counting
    residual = torch.rand(shape, device=device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = float(torch.cuda.memory_allocated())
        step(term, residual)()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _peak_of_process()
    step(term, residual)()
    return _peak_of_process() - before


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    images = [arguments.batch, arguments.channels, *arguments.size]
    rows = [VIEWS * arguments.batch, *images[1:]]
    target, prediction = torch.rand(images, device=device), torch.rand(rows, device=device)
    mask = (torch.rand([rows[0], 1, *arguments.size], device=device) < 0.7).float()
    embedding = [arguments.batch, 768, *[max(side // 16, 1) for side in arguments.size]]
    pair = [torch.randn(embedding, device=device) for _ in range(VIEWS)]
    residual = prediction - target.repeat(VIEWS, *[1] * (target.ndim - 1))
    draws = Draws(sample_keys(0, range(arguments.batch), 0), device)
    objective = Objective()

    work = {
        "objective": step(lambda p, a, b: objective(p, target, mask, (a, b))[0], prediction, *pair),
        "rmse": step(lambda r: terms.rmse(r, mask), residual),
        "gradient": step(terms.gradient_l1, residual),
        "hfl": step(terms.hfl, residual),
        "hfl, plain autograd": step(plain_hfl, residual),
        "consistency": step(terms.consistency, *pair),
        "focal_frequency (off by default)": step(terms.focal_frequency_loss, residual),
        "augmentation": lambda: Augmentation()(target, draws),
        "augmentation, every row": lambda: Augmentation(rotation=1, affine=1, histogram=1)(target, draws),
    }
    milliseconds = timed(work, device, arguments.repeats)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        needs = [(name, rows, arguments.device, arguments.threads) for name in ("custom", "plain")]
        memory = dict(zip(("custom", "plain"), pool.starmap(extra_memory, needs, chunksize=1)))
    return {
        "benchmark": "objective, forward and backward",
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "processor": platform.machine(),
            "threads": arguments.threads,
            "torch": torch.__version__,
        },
        "prediction": rows,
        "embeddings": embedding,
        "milliseconds": milliseconds,
        "hfl: custom over plain autograd": {
            "time": round(milliseconds["hfl"] / milliseconds["hfl, plain autograd"], 3),
            "memory": round(memory["custom"] / max(memory["plain"], 1e-9), 3),
            "extra MiB": {name: round(value, 1) for name, value in memory.items()},
        },
    }


def _peak_of_process() -> float:
    """Largest resident MiB of this process so far, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs="+", default=[512, 512])
    parser.add_argument("--batch", type=int, default=4, help="images; the objective sees two views of each")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    print(json.dumps(measure(parser.parse_args()), indent=2))
