"""A pretraining step against bare forward and backward of the same trunk, and what each part of it takes.

    python benchmarks/training_step.py --encoders vit_base convnext_base --batch 2 --size 512
    python benchmarks/training_step.py --encoders vit3d_base swinunetr_base --batch 1 --size 128 --recompute

Prints JSON: seconds of each part of a step, ``step_over_trunk`` (all parts over forward and backward of the trunk alone
on the same inputs, the views counted in both), ``decoder_over_trunk``, and the machine. The trunk alone takes turns
with the steps; every figure is the least of the repeats, on a busy machine the one that was disturbed least. On a GPU
the clock is read after synchronising. On a CPU the seconds are processor time summed over threads, which depends little
on what else the machine does (with more than one thread set OMP_WAIT_POLICY=PASSIVE, or waiting counts as work);
``wall_seconds`` is the step by the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from frepa.corruption.dual import Corruption
from frepa.corruption.guide import hessian_guide
from frepa.draws import Draws, sample_keys
from frepa.encoders.contract import Encoder, Features
from frepa.encoders.options import split_options
from frepa.encoders.registry import build_encoder, encoder_names
from frepa.heads.decoder import ReconstructionDecoder
from frepa.machine import keeping_memory
from frepa.optimizers import adam
from frepa.pretraining.methods.augment import Augmentation
from frepa.pretraining.methods.objective import Objective


def measure(
    name: str, *, batch: int, size: int, repeats: int, device: torch.device, bf16: bool, recompute: bool, views: int,
    channels_last: bool,
) -> dict[str, Any]:  # fmt: skip
    """Least seconds of every part of a step with this encoder."""
    encoder = _encoder(name).to(device).train()
    if recompute:
        encoder.set_grad_checkpointing()
    dims = encoder.dims
    decoder = ReconstructionDecoder(encoder.channels, encoder.stride, 1, dims).to(device)
    if channels_last:  # what comes out of a convolution follows its weights
        order = torch.channels_last if dims == 2 else torch.channels_last_3d
        encoder, decoder = encoder.to(memory_format=order), decoder.to(memory_format=order)
    weights = [*encoder.parameters(), *decoder.parameters()]
    optimizer = adam(weights, lr=1e-6)
    shape = (size,) * dims
    image = torch.rand(batch, 1, *shape, device=device)
    corruption, augmentation = Corruption(), Augmentation()
    objective = Objective(consistency=0.5 if views == 2 else 0)
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

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def one_step(step: int) -> None:
        draws = [Draws(sample_keys(0, range(step * batch, (step + 1) * batch), view), device) for view in range(3)]
        clean = timed("augmentation", lambda: augmentation(image, draws[0]))
        guide = timed("guide", lambda: hessian_guide(clean))
        seen = timed("corruption", lambda: [corruption(clean, d) for d in draws[1 : 1 + views]])
        corrupted, mask = torch.cat([v.image for v in seen]), torch.cat([v.mask for v in seen])
        inputs = encoder.prepare_input(corrupted, guide.repeat(views, *[1] * (guide.ndim - 1)))

        def encode() -> Features:
            with autocast():
                return encoder(inputs)

        features = timed("encoder, forward", encode)
        # Decoder and objective get leaves, so that their backward passes are timed apart from the encoder's.
        dense = features.dense.detach().requires_grad_()
        same = features.embedding is features.dense
        embedding = dense if same else features.embedding.detach().requires_grad_()

        def decode() -> torch.Tensor:
            with autocast():
                return decoder(dense, shape)

        prediction = timed("decoder, forward", decode)
        leaf = prediction.detach().requires_grad_()

        def objective_both_ways() -> None:
            pair = (embedding[:batch], embedding[batch:]) if views == 2 else None
            objective(leaf, clean, mask, pair)[0].backward()

        timed("objective", objective_both_ways)
        timed("decoder, backward", lambda: prediction.backward(leaf.grad))
        outputs, gradients = [features.dense], [dense.grad]
        if not same and embedding.grad is not None:
            outputs, gradients = [*outputs, features.embedding], [*gradients, embedding.grad]
        timed("encoder, backward", lambda: torch.autograd.backward(outputs, gradients))
        timed("clipping", lambda: torch.nn.utils.clip_grad_norm_(weights, 1.0))
        timed("optimizer", optimizer.step)
        optimizer.zero_grad()

        def trunk_alone() -> None:
            with autocast():
                found = encoder(inputs).dense
            found.backward(torch.ones_like(found))

        timed("trunk alone", trunk_alone)
        walls.pop()
        optimizer.zero_grad()

    for step in range(repeats + 1):
        if step == 1:  # the first step warms caches and allocators
            seconds.clear()
            walls.clear()
        one_step(step)
    least = {part: min(values) for part, values in seconds.items()}
    trunk = least.pop("trunk alone")
    total = sum(least.values())
    ours = least["guide"] + least["corruption"] + least["objective"]
    return {
        "encoder": name,
        "batch": batch,
        "views": views,
        "size": size,
        "seconds": {part: round(value, 5) for part, value in least.items()},
        "step_seconds": round(total, 4),
        "wall_seconds": round(sum(walls) / repeats, 4),
        "trunk_seconds": round(trunk, 4),
        "step_over_trunk": round(total / trunk, 3),
        "decoder_over_trunk": round((least["decoder, forward"] + least["decoder, backward"]) / trunk, 3),
        "share_of_corruption_guide_objective": round(ours / total, 4),
        "share_of_augmentation": round(least["augmentation"] / total, 4),
    }


def _encoder(name: str) -> Encoder:
    """By registered name, with options after it as on the command line."""
    plain, options = split_options(name)
    return build_encoder(plain, dims=3 if plain in encoder_names(3) else 2, **options)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoders", nargs="+", default=["vit_base", "convnext_base"])
    parser.add_argument("--batch", type=int, default=2, help="images; every step sees this many views of each")
    parser.add_argument("--views", type=int, choices=(1, 2), default=2)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing in the encoder")
    parser.add_argument("--channels-last", action="store_true", help="weights, and so maps, with the channels last")
    parser.add_argument(
        "--take-afresh", action="store_true", help="memory from the system for every tensor, as glibc does"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    asked = ("batch", "size", "repeats", "bf16", "recompute", "views", "channels_last")
    how = {name: getattr(options, name) for name in asked}
    with contextlib.nullcontext() if options.take_afresh else keeping_memory():
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
    given = {name: value for name, value in vars(options).items() if name != "out"}
    text = json.dumps({"options": given, "machine": machine, "steps": rows}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
