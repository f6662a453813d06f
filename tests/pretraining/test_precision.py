"""Mixed precision: what a method is given, and runs of colour and grey images by it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

import frepa
from frepa.pretraining.methods.contract import Batch, StepResult
from frepa.pretraining.methods.registry import register_method
from toy_method import Toy, ToyMethod

SEEN: list[torch.Tensor] = []


@dataclass(frozen=True)
class Watched(Toy):
    """As the toy."""


@register_method("watched", Watched)
class WatchedMethod(ToyMethod):
    """Keeps the images of every training step."""

    def forward(self, batch: Batch) -> StepResult:
        if self.training:
            SEEN.append(batch.images.clone())
        return super().forward(batch)


@pytest.fixture
def mixed(tmp_path):
    """Grey and colour images of 40 x 40 pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(8):
        shape = (40, 40) if seed % 2 else (40, 40, 3)
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, np.uint8)).save(folder / f"{seed}.png")
    return folder


def _run(source, out, precision, **options):
    return frepa.pretrain(
        str(source), out=str(out), encoder="timm:test_convnext", image_size=32, batch_size=4, max_steps=2, val_images=2,
        num_workers=0, quiet=True, precision=precision, **options,
    )  # fmt: skip


def test_images_are_not_rounded_on_the_way_to_the_method(mixed, tmp_path):
    seen = {}
    for precision in ("fp32", "bf16"):
        SEEN.clear()
        _run(mixed, tmp_path / precision, precision, method=Watched())
        seen[precision] = torch.cat(SEEN)
    assert seen["bf16"].dtype == torch.float32
    assert torch.equal(seen["bf16"], seen["fp32"])
    assert not torch.equal(seen["fp32"], seen["fp32"].bfloat16().float())  # rounding would have shown


@pytest.mark.parametrize("method", ["frepa", "simmim", "mfm"])
def test_grey_and_colour_images_are_trained_on_in_bf16(mixed, tmp_path, method):
    _run(mixed, tmp_path / "run", "bf16", method=method)
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in last if "loss" in line]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
