"""What each reading of the consistency term does: share of the gradient, features, reconstruction and time.

    python benchmarks/consistency.py FOLDER --encoder convnext_atto,output_stride=16 --size 64 --steps 200 --seeds 0 1

Trains the same encoder on the same crops once per reading, and looks at fixed steps at crops at the images' centre,
corrupted in the same way each time. Prints JSON. In every row, for each step looked at:

    ratio: norm of the term's gradient on the encoder, times its weight, over the norm of the RMSE's.
    consistency: the term as this reading measures it, unweighted. divergence: the same for the plain reading.
    spread: standard deviation of a feature over positions and images, root mean square over the channels.
    rank: effective number of directions of the features, exp of the entropy of their covariance's eigenvalues.
    linear: R^2 of pixels read by ridge from the features of clean images, two thirds of the images to fit, one to test.
    rmse: of the reconstruction of corrupted crops.

``step_ratio`` is the time of a step over that without the term: least processor time of the steps, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from frepa.corruption.dual import Corruption
from frepa.corruption.guide import hessian_guide
from frepa.datasets.opening import open_source
from frepa.draws import Draws, sample_keys
from frepa.encoders.options import split_options
from frepa.encoders.registry import build_encoder
from frepa.heads.decoder import ReconstructionDecoder
from frepa.heads.ridge import PENALTIES, RidgePath, RidgeSums, blocks_of, rows_of, squared_error
from frepa.images.loading import load_images, make_loader
from frepa.images.sampling import SampleStream
from frepa.optimizers import adam
from frepa.pretraining.methods import terms
from frepa.pretraining.methods.objective import ConsistencyReading, Objective

Pair = tuple[Tensor, Tensor]
CORRUPTION = Corruption()
READINGS: dict[str, Objective] = {
    "none": Objective(consistency=0),
    "mean over positions": Objective(),
    "sum over positions": Objective(reading=ConsistencyReading(reduction="sum")),
    "temperature 0.1": Objective(reading=ConsistencyReading(temperature=0.1)),
    "standardised": Objective(reading=ConsistencyReading(standardise=True)),
    "standardised, sum": Objective(reading=ConsistencyReading(standardise=True, reduction="sum")),
}


class Learner:
    """One reading in training: encoder, decoder and optimizer, and what was seen of them."""

    def __init__(self, options: argparse.Namespace, objective: Objective, channels: int, seed: int) -> None:
        torch.manual_seed(seed)  # the same initial weights for every reading of a seed
        name, choices = split_options(options.encoder)
        self.encoder = build_encoder(name, dims=2, **choices)
        self.decoder = ReconstructionDecoder(self.encoder.channels, self.encoder.stride, channels, 2)
        self.optimizer = adam([*self.encoder.parameters(), *self.decoder.parameters()], options.lr)
        self.objective = objective
        self.seconds: list[float] = []
        self.looks: list[dict[str, float]] = []

    def see(
        self, image: Tensor, positions: list[int], views: int
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Guide (B, 1, H, W); prediction and mask of all views; the two halves of the embeddings."""
        with torch.no_grad():
            seen = [CORRUPTION(image, Draws(sample_keys(0, positions, view))) for view in range(1, 1 + views)]
            guide = hessian_guide(image, kind=self.encoder.guide)
            corrupted = torch.cat([view.image for view in seen])
            inputs = self.encoder.prepare_input(corrupted, guide.repeat(views, 1, 1, 1))
        features = self.encoder(inputs)
        prediction = self.decoder(features.dense, tuple(image.shape[2:]))
        pair = features.embedding[: len(image)], features.embedding[len(image) :]
        return guide, prediction, torch.cat([view.mask for view in seen]), pair

    def step(self, image: Tensor, positions: list[int]) -> None:
        start = time.process_time()
        views = self.objective.views
        _, prediction, mask, pair = self.see(image, positions, views)
        self.objective(prediction, image, mask, pair if views == 2 else None)[0].backward()
        torch.nn.utils.clip_grad_norm_([*self.encoder.parameters(), *self.decoder.parameters()], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.process_time() - start)

    def look(self, step: int, image: Tensor) -> None:
        """What the encoder is like now; nothing is changed."""
        how = self.objective if self.objective.consistency else Objective()
        guide, prediction, mask, pair = self.see(image, list(range(1 << 40, (1 << 40) + len(image))), 2)
        rmse = terms.rmse(prediction - image.repeat(2, 1, 1, 1), mask)
        consistency = how.reading(*pair)
        norms = [
            gradient_norm(value, list(self.encoder.parameters())) for value in (rmse, how.consistency * consistency)
        ]
        with torch.no_grad():
            clean = self.encoder(self.encoder.prepare_input(image, guide)).dense
            spread, rank = spread_and_rank(clean)
            found = {
                "ratio": norms[1] / norms[0] if norms[0] else math.nan,
                "consistency": float(consistency),
                "divergence": float(terms.consistency(*pair)),
                "spread": spread,
                "rank": rank,
                "linear": linear_recovery(clean, image, self.encoder.stride),
                "rmse": float(rmse),
            }
        self.looks.append({"step": step} | {key: round(value, 5) for key, value in found.items()})


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
    learners = {name: Learner(options, READINGS[name], source.channels, seed) for name in READINGS}
    loader = make_loader(
        source,
        stream=SampleStream(len(source), seed=seed),
        batch_size=options.batch,
        stop_position=options.steps * options.batch,
        size=options.size,
        mode="crop",
        seed=seed,
    )

    for step, batch in enumerate(loader):
        for one in learners.values():
            if step in options.look:
                one.look(step, shown)
            one.step(batch["image"], batch["position"])
    for one in learners.values():
        one.look(options.steps, shown)
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
    parser.add_argument("--encoder", default="convnext_atto,output_stride=16")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--look", type=int, nargs="+", default=[1, 20, 100], help="steps looked at, beside the last")
    parser.add_argument("--look-images", type=int, default=60, help="images looked at, at their centre")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for seed in options.seeds for row in run(options, seed)]
    machine = {"processor": platform.machine(), "threads": options.threads, "torch": torch.__version__}
    asked = {name: value for name, value in vars(options).items() if name != "source"}
    print(json.dumps({"options": asked, "machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
