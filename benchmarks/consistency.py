"""What each reading of the consistency term does: share of the gradient, features, reconstruction and time.

    python benchmarks/consistency.py FOLDER [--encoder convnext_atto] [--stride 16] [--steps 300] [--seeds 0 1]

Trains the same encoder on the same crops once per reading, and looks at fixed steps at crops at the images' centre,
corrupted in the same way each time. Prints JSON. In every row, for each step looked at:

    ratio: norm of the term's gradient on the encoder, times its weight, over the norm of the RMSE's.
    consistency: the term as this reading measures it, unweighted. divergence: the same for the plain reading.
    spread: standard deviation of a feature over positions and images, root mean square over the channels.
    rank: effective number of directions of the features, exp of the entropy of their covariance's eigenvalues.
    linear: R^2 of pixels read by ridge from the features of clean images, two thirds of the images to fit, one to test.
    rmse: of the reconstruction of corrupted crops.

``step_ratio`` is the time of a step over that without the term, both the least of the steps, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from frepa.corruption.dual import Corruption
from frepa.corruption.guide import hessian_guide
from frepa.datasets.opening import open_source
from frepa.draws import Draws, sample_keys
from frepa.encoders.registry import build_encoder
from frepa.heads.ridge import PENALTIES, RidgePath, RidgeSums, blocks_of, rows_of, squared_error
from frepa.images.loading import load_images, make_loader
from frepa.images.sampling import SampleStream
from frepa.pretraining.methods import terms
from frepa.pretraining.methods.augment import Augmentation
from frepa.pretraining.methods.frepa import FrepaMethod
from frepa.pretraining.methods.objective import ConsistencyReading, Objective

READINGS: dict[str, Objective] = {
    "none": Objective(consistency=0),
    "mean over positions": Objective(),
    "sum over positions": Objective(reading=ConsistencyReading(reduction="sum")),
    "temperature 0.1": Objective(reading=ConsistencyReading(temperature=0.1)),
    "standardised": Objective(reading=ConsistencyReading(standardise=True)),
    "standardised, sum": Objective(reading=ConsistencyReading(standardise=True, reduction="sum")),
}


@dataclass
class Learner:
    """One reading in training: the method, its optimizer and what was seen of it."""

    method: FrepaMethod
    optimizer: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)
    looks: list[dict[str, float]] = field(default_factory=list)


def learner(options: argparse.Namespace, objective: Objective, channels: int, seed: int) -> Learner:
    """The same initial weights for every reading of a seed."""
    torch.manual_seed(seed)
    method = FrepaMethod(
        build_encoder(options.encoder, dims=2, output_stride=options.stride),
        channels=channels,
        seed=seed,
        corruption=Corruption(frequency_patch=max(2, options.size // 32), patch=max(4, options.size // 8)),
        objective=objective,
        augmentation=Augmentation(),
    )
    return Learner(method, torch.optim.Adam(method.parameters(), lr=options.lr))


def train_step(learner: Learner, image: Tensor, grey: Tensor, positions: list[int], epoch: int) -> None:
    start = time.perf_counter()
    learner.optimizer.zero_grad()
    learner.method(image, grey, positions, epoch=epoch).loss.backward()
    torch.nn.utils.clip_grad_norm_(learner.method.parameters(), 1.0)
    learner.optimizer.step()
    learner.seconds.append(time.perf_counter() - start)


def look(learner: Learner, image: Tensor, objective: Objective) -> dict[str, float]:
    """What the encoder is like now; nothing is changed. ``objective``: how the consistency is read and weighed."""
    method = learner.method
    encoder, count = method.encoder, len(image)
    positions = list(range(1 << 40, (1 << 40) + count))
    views = [method.corruption(image, Draws(sample_keys(0, positions, view))) for view in (1, 2)]
    guide = hessian_guide(image, kind=encoder.guide)
    inputs = encoder.prepare_input(torch.cat([view.image for view in views]), guide.repeat(2, 1, 1, 1))
    features = encoder(inputs)
    prediction = method.decoder(features.dense, tuple(image.shape[2:]))
    rmse = terms.rmse(prediction - image.repeat(2, 1, 1, 1), torch.cat([view.mask for view in views]))
    pair = features.embedding[:count], features.embedding[count:]
    consistency = objective.reading(*pair)
    weights = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    norms = [gradient_norm(value, weights) for value in (rmse, objective.consistency * consistency)]
    with torch.no_grad():
        clean = encoder(encoder.prepare_input(image, guide)).dense
        spread, rank = spread_and_rank(clean)
        return {
            "ratio": norms[1] / norms[0] if norms[0] else float("nan"),
            "consistency": float(consistency),
            "divergence": float(terms.consistency(*pair)),
            "spread": spread,
            "rank": rank,
            "linear": linear_recovery(clean, image, encoder.stride),
            "rmse": float(rmse),
        }


def gradient_norm(value: Tensor, weights: Sequence[Tensor]) -> float:
    found = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    return float(torch.stack([gradient.square().sum() for gradient in found if gradient is not None]).sum().sqrt())


def spread_and_rank(dense: Tensor) -> tuple[float, float]:
    """Root mean square deviation of a channel of (B, C, *s), and effective rank of the channels' covariance."""
    values = torch.linalg.eigvalsh(torch.cov(rows_of(dense).double().T)).clamp_min(0)
    share = values / values.sum()
    entropy = -(share * share.clamp_min(1e-300).log()).sum()
    return float(values.mean().sqrt()), float(entropy.exp())


def linear_recovery(dense: Tensor, image: Tensor, stride: Any) -> float:
    """R^2 of the pixels of images left out, read from each position's features, with the best penalty of those tried.

    Only positions that a whole block of pixels belongs to; crops whose side the stride divides have no others.
    """
    fit = 2 * len(image) // 3
    sums = []
    for rows in (slice(0, fit), slice(fit, None)):
        x, y = rows_of(dense[rows]), blocks_of(image[rows], stride)
        part = RidgeSums(x.shape[1], y.shape[1])
        part.add(x, y)
        sums.append(part)
    path = RidgePath(sums[0])
    error = min(squared_error(sums[1], path.at(penalty), path.mean, path.std) for penalty in PENALTIES)
    return 1 - error / float(image[fit:].var(unbiased=False))


def run(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    source = open_source(options.source, dims=2)
    shown = load_images(source, range(min(options.look_images, len(source))), size=options.size, mode="crop")["image"]
    learners = {name: learner(options, READINGS[name], source.channels, seed) for name in READINGS}
    loader = make_loader(
        source,
        stream=SampleStream(len(source), seed=seed),
        batch_size=options.batch,
        stop_position=options.steps * options.batch,
        size=options.size,
        mode="crop",
        seed=seed,
    )

    def look_at_all(step: int) -> None:
        for name, one in learners.items():
            how = READINGS[name] if READINGS[name].consistency else Objective()
            one.looks.append({"step": step} | {key: round(value, 5) for key, value in look(one, shown, how).items()})

    for step, batch in enumerate(loader):
        if step in options.look:
            look_at_all(step)
        for one in learners.values():
            train_step(one, batch["image"], batch["grey"], batch["position"], step * options.batch // len(source))
    look_at_all(options.steps)
    fastest = {name: min(one.seconds) for name, one in learners.items()}
    return [
        {
            "reading": name,
            "objective": asdict(READINGS[name]),
            "seed": seed,
            "step_ratio": round(fastest[name] / fastest["none"], 3),
            "looks": one.looks,
        }
        for name, one in learners.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="images to train on")
    parser.add_argument("--encoder", default="convnext_atto")
    parser.add_argument("--stride", type=int, default=16, help="pixels per position of its map")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--look", type=int, nargs="+", default=[1, 20, 100], help="steps looked at, beside the last")
    parser.add_argument("--look-images", type=int, default=30, help="images looked at, at their centre")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for seed in options.seeds for row in run(options, seed)]
    machine = {"processor": platform.machine(), "threads": options.threads, "torch": torch.__version__}
    asked = {name: value for name, value in vars(options).items() if name != "source"}
    print(json.dumps({"options": asked, "machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
