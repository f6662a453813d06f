"""The average of the weights that `--ema-decay` keeps, against its recurrence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

import frepa
from frepa.encoders.files import load_encoder
from frepa.pretraining.methods.registry import register_method
from toy_method import Toy, ToyMethod

SEEN: list[dict[str, torch.Tensor]] = []


@dataclass(frozen=True)
class Recorded(Toy):
    """As the toy."""


@register_method("recorded", Recorded)
class RecordedMethod(ToyMethod):
    """Keeps the weights of every step."""

    def after_step(self, step: int, lr: float) -> dict[str, torch.Tensor]:
        SEEN.append({name: weight.detach().double().clone() for name, weight in self.encoder.named_parameters()})
        return {}


def test_what_is_saved_is_the_average_of_the_weights_of_all_steps(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(6):
        values = np.random.default_rng(seed).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(values).save(images / f"{seed}.png")
    SEEN.clear()
    run = frepa.pretrain(
        str(images), out=str(tmp_path / "run"), method=Recorded(), encoder="timm:test_convnext", image_size=32,
        batch_size=4, max_steps=5, lr=0.01, ema_decay=0.7, val_images=2, num_workers=0, quiet=True,
    )  # fmt: skip
    assert len(SEEN) == 5
    saved = dict(load_encoder(run).named_parameters())
    for name, weight in saved.items():
        expected = SEEN[0][name]
        for step in SEEN[1:]:
            expected = 0.7 * expected + 0.3 * step[name]
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-7)
    assert any(not torch.allclose(saved[name].double(), SEEN[-1][name], atol=1e-4) for name in saved)
