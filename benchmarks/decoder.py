"""Reconstruction after the same images with the light decoder and with the convolutional body that heads use.

    python benchmarks/decoder.py FOLDER --encoder convnext_atto,output_stride=16 --size 128 --steps 200 --seeds 0 1

Both are trained beside the same encoder, from the same weights of it, on the same crops corrupted in the same way, and
are looked at on crops at the images' centre. Prints JSON: for each seed and decoder the RMSE at fixed steps, the least
processor seconds of a step (one thread), and the parameters of the decoder.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor, nn

from frepa.corruption.dual import Corruption
from frepa.corruption.guide import hessian_guide
from frepa.datasets.opening import open_source
from frepa.draws import Draws, sample_keys
from frepa.encoders.options import split_options
from frepa.encoders.registry import build_encoder, encoder_names
from frepa.heads.decoder import DenseHead, ReconstructionDecoder
from frepa.images.loading import load_images, make_loader
from frepa.images.sampling import SampleStream
from frepa.optimizers import adam
from frepa.pretraining.methods import terms
from frepa.pretraining.methods.objective import Objective

DECODERS: dict[str, type[nn.Module]] = {"light": ReconstructionDecoder, "convolutional": DenseHead}


class Learner:
    """An encoder with one of the decoders."""

    def __init__(self, spec: str, decoder: str, channels: int, lr: float, seed: int) -> None:
        name, options = split_options(spec)
        torch.manual_seed(seed)
        self.encoder = build_encoder(name, dims=3 if name in encoder_names(3) else 2, **options)
        build: Any = DECODERS[decoder]
        self.decoder = build(self.encoder.channels, self.encoder.stride, channels, self.encoder.dims)
        self.optimizer = adam([*self.encoder.parameters(), *self.decoder.parameters()], lr)
        self.seconds: list[float] = []
        self.rmse: dict[int, float] = {}

    def reconstruct(self, image: Tensor, positions: list[int], corruption: Corruption) -> tuple[Tensor, Tensor]:
        """The reconstruction and the mask of the RMSE."""
        with torch.no_grad():
            seen = corruption(image, Draws(sample_keys(0, positions, 0)))
            inputs = self.encoder.prepare_input(seen.image, hessian_guide(image, kind=self.encoder.guide))
        return self.decoder(self.encoder(inputs).dense, tuple(image.shape[2:])), seen.mask

    def step(self, image: Tensor, positions: list[int], corruption: Corruption, objective: Objective) -> None:
        start = time.process_time()
        prediction, mask = self.reconstruct(image, positions, corruption)
        objective(prediction, image, mask, None)[0].backward()
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.process_time() - start)

    def look(self, step: int, image: Tensor, corruption: Corruption) -> None:
        with torch.no_grad():
            prediction, mask = self.reconstruct(image, list(range(1 << 40, (1 << 40) + len(image))), corruption)
            self.rmse[step] = round(float(terms.rmse(prediction - image, mask)), 5)


def run(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    dims = 3 if split_options(options.encoder)[0] in encoder_names(3) else 2
    source = open_source(options.source, dims=dims)
    how: dict[str, Any] = {"size": options.size, "mode": "crop"}
    corruption, objective = Corruption(), Objective(consistency=0)
    shown = load_images(source, range(min(options.look_images, len(source))), **how)["image"]
    learners = {name: Learner(options.encoder, name, source.channels, options.lr, seed) for name in DECODERS}
    stream, stop = SampleStream(len(source), seed=seed), options.steps * options.batch
    loader = make_loader(source, stream=stream, batch_size=options.batch, stop_position=stop, seed=seed, **how)
    for step, batch in enumerate(loader):
        for one in learners.values():
            if step in options.look:
                one.look(step, shown, corruption)
            one.step(batch["image"], batch["position"], corruption, objective)
    found = []
    for name, one in learners.items():
        one.look(options.steps, shown, corruption)
        size = sum(parameter.numel() for parameter in one.decoder.parameters())
        row = {"decoder": name, "seed": seed, "rmse": one.rmse, "step_seconds": round(min(one.seconds), 4)}
        found.append(row | {"parameters": size})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="images or volumes to train on")
    parser.add_argument("--encoder", default="convnext_atto,output_stride=16")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--look", type=int, nargs="+", default=[50, 100])
    parser.add_argument("--look-images", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for seed in options.seeds for row in run(options, seed)]
    asked = {name: value for name, value in vars(options).items() if name != "source"}
    print(json.dumps({"options": asked, "torch": torch.__version__, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
