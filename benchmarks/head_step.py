"""What a training step of a segmentation head costs, apart from its encoder, by size and number of crops.

    python benchmarks/head_step.py --batch 8 --size 256 [--stages 4] [--take-afresh]
    python benchmarks/head_step.py --dims 3 --batch 2 --size 40 56 40 --stages 4

The maps are those of a plain ViT of width 192 with patches of 16 (8 in volumes): its last one, or with ``--stages`` so
many depths of it with the image and its guide, as ``--features pyramid+image`` gives them. Prints JSON: processor
seconds of a step (forward, backward, Adam), the least of the repeats, and the most memory that the process had.
``--take-afresh`` leaves the C library as it is instead of keeping memory between steps as training does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import time

import torch

from frepa.encoders.contract import StageShape
from frepa.heads.segmenter import SegmentationHead
from frepa.machine import keeping_memory
from frepa.optimizers import MuonAndAdam, muon_group

WIDTH = 192


def measure(dims: int, batch: int, size: tuple[int, ...], stages: int, repeats: int) -> float:
    """Least processor seconds of a step on crops of ``size``."""
    stride = (16 if dims == 2 else 8,) * dims
    shapes = [StageShape(2, (1,) * dims)] if stages else []
    shapes += [StageShape(WIDTH, stride)] * max(1, stages)
    head = SegmentationHead(shapes, 2)
    kernels = muon_group(head.kernels())
    own = {id(weight) for weight in kernels["params"]}
    optimizer = MuonAndAdam([kernels, {"params": [w for w in head.parameters() if id(w) not in own]}], 1e-3)
    maps = [
        torch.randn(batch, channels, *(-(-n // step) for n, step in zip(size, steps))) for channels, steps in shapes
    ]
    truth = torch.randint(0, 2, (batch, *size))
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        found = head(maps, size).softmax(1)[:, 1]
        (1 - 2 * (found * truth).sum() / (found.sum() + truth.sum())).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dims", type=int, choices=(2, 3), default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="one for all axes, or one per axis")
    parser.add_argument("--stages", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--take-afresh", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    size = tuple(asked.size * asked.dims if len(asked.size) == 1 else asked.size)
    if len(size) != asked.dims:
        parser.error(f"--size {size} is not {asked.dims} numbers")
    with contextlib.nullcontext() if asked.take_afresh else keeping_memory():
        seconds = measure(asked.dims, asked.batch, size, asked.stages, asked.repeats)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({**vars(asked), "seconds": round(seconds, 3), "most_megabytes": most}))


if __name__ == "__main__":
    main()
