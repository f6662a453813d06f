"""Share of a pretraining step that corruption, guide and objective take.

    python benchmarks/training_step.py --encoders vit_base convnext_base --batch 2 --size 512
    python benchmarks/training_step.py --encoders vit3d_base swinunetr_base --batch 1 --size 128 --recompute

Prints JSON: seconds of each part of a step (median over repeats), their share of the step, and the machine. Parts are
timed one after another in the same process on the same batch; on a GPU the clock is read after synchronising. On a CPU
the seconds are processor time summed over threads, which depends little on what else the machine does (with more than
one thread set OMP_WAIT_POLICY=PASSIVE, or waiting counts as work); ``wall_seconds`` is the step by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from frepa.corruption.dual import Corruption
from frepa.corruption.guide import hessian_guide
from frepa.draws import Draws, sample_keys
from frepa.encoders.registry import build_encoder
from frepa.heads.decoder import ReconstructionDecoder
from frepa.pretraining.methods.augment import Augmentation
from frepa.pretraining.methods.objective import Objective


def measure(
    name: str, *, batch: int, size: int, repeats: int, device: torch.device, bf16: bool, recompute: bool
) -> dict[str, Any]:
    """Median seconds of every part of a step with this encoder."""
    encoder = build_encoder(name).to(device).train()
    encoder.set_grad_checkpointing(recompute)
    dims = encoder.dims
    decoder = ReconstructionDecoder(encoder.channels, encoder.stride, 1, dims).to(device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-4)
    shape = (size,) * dims
    image = torch.rand(batch, 1, *shape, device=device)
    corruption, objective, augmentation = Corruption(), Objective(), Augmentation()
    seconds: dict[str, list[float]] = {}
    walls: list[float] = []
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def timed(part: str, act: Callable[[], Any]) -> Any:
        _wait(device)
        start, wall = clock(), time.perf_counter()
        result = act()
        _wait(device)
        seconds.setdefault(part, []).append(clock() - start)
        walls.append(time.perf_counter() - wall)
        return result

    def one_step(step: int) -> None:
        draws = [Draws(sample_keys(0, range(step * batch, (step + 1) * batch), view), device) for view in range(3)]
        clean = timed("augmentation", lambda: augmentation(image, draws[0]))
        guide = timed("guide", lambda: hessian_guide(clean))
        views = timed("corruption", lambda: [corruption(clean, d) for d in draws[1:]])
        corrupted = torch.cat([v.image for v in views])
        mask = torch.cat([v.mask for v in views])
        inputs = encoder.prepare_input(corrupted, guide.repeat(2, *[1] * (guide.ndim - 1)))

        def forward() -> tuple[torch.Tensor, torch.Tensor]:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                features = encoder(inputs)
                return decoder(features.dense, shape), features.embedding

        prediction, embedding = timed("encoder and decoder, forward", forward)
        # The objective's own backward pass is timed apart from the networks'.
        leaf = [prediction.detach().requires_grad_(), embedding.detach().requires_grad_()]

        def objective_both_ways() -> None:
            total, _ = objective(leaf[0], clean, mask, (leaf[1][:batch], leaf[1][batch:]))
            total.backward()

        timed("objective, forward and backward", objective_both_ways)
        gradients = [part.grad for part in leaf]
        timed("encoder and decoder, backward", lambda: torch.autograd.backward([prediction, embedding], gradients))
        timed("optimizer", optimizer.step)
        optimizer.zero_grad()

    for step in range(repeats + 1):
        if step == 1:  # the first step warms caches and allocators
            seconds.clear()
            walls.clear()
        one_step(step)
    median = {part: statistics.median(values) for part, values in seconds.items()}
    total = sum(median.values())
    ours = median["guide"] + median["corruption"] + median["objective, forward and backward"]
    return {
        "encoder": name,
        "seconds": {part: round(value, 5) for part, value in median.items()},
        "step_seconds": round(total, 4),
        "wall_seconds": round(sum(walls) / repeats, 4),
        "share_of_corruption_guide_objective": round(ours / total, 4),
        "share_of_augmentation": round(median["augmentation"] / total, 4),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoders", nargs="+", default=["vit_base", "convnext_base"])
    parser.add_argument("--batch", type=int, default=2, help="images; every step sees two views of each")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing in the encoder")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    how = {name: getattr(options, name) for name in ("batch", "size", "repeats", "bf16", "recompute")}
    rows = [measure(name, device=device, **how) for name in options.encoders]
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    asked = {name: value for name, value in vars(options).items() if name != "out"}
    text = json.dumps({"options": asked, "machine": machine, "steps": rows}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
