"""A run begins with another encoder's weights: what the first layer becomes, what is told, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import frepa
from frepa.encoders.contract import Encoder
from frepa.encoders.files import save_encoder
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError
from frepa.pretraining.starting import starting_encoder, take_over

VIT = {"image_size": 32}
VIT3D = {"image_size": 16, "patch_size": 8, "depth": 1}


def _encoder(seed: int, name: str = "timm:test_vit", dims: int = 2, **options) -> Encoder:
    torch.manual_seed(seed)
    return build_encoder(name, dims=dims, **({**VIT, **options} if dims == 2 else {**VIT3D, **options})).eval()


def _dense(encoder: Encoder, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder(x).dense


@pytest.mark.parametrize(("name", "dims"), [("timm:test_vit", 2), ("timm:test_convnext", 2), ("vit3d_tiny", 3)])
def test_grey_from_colour_answers_as_colour_did_to_grey(name, dims):
    """And a guide channel from nothing changes no feature, whatever it holds."""
    colour = _encoder(1, name, dims, image_channels=3, guide="none")
    grey = _encoder(2, name, dims, image_channels=1, guide="frangi")
    said = take_over(grey, colour, "START")
    assert "3 image channels to 1, a guide channel from nothing" in said
    image, guide = (torch.rand(2, 1, *(16 if dims == 3 else 32,) * dims) for _ in range(2))
    expected = _dense(colour, colour.prepare_input(image))
    assert torch.allclose(_dense(grey, grey.prepare_input(image, guide)), expected, atol=1e-5)
    back = _encoder(3, name, dims, image_channels=3, guide="none")
    take_over(back, grey, "START")
    assert torch.allclose(_dense(back, back.prepare_input(image)), expected, atol=1e-5)


def test_a_trained_guide_stays_and_one_that_is_left_out_is_named():
    guided, same = _encoder(1, guide="frangi"), _encoder(2, guide="frangi")
    said = take_over(same, guided, "START")
    x = torch.rand(2, 4, 32, 32)
    assert torch.equal(_dense(same, x), _dense(guided, x))
    count = len(guided.state_dict())
    assert said == f"{count} of {count} tensors as they are"
    plain = _encoder(3, guide="none", uses_guide=False)
    assert "without its guide channel" in take_over(plain, guided, "START")
    x[:, 3:] = 0
    assert torch.allclose(_dense(plain, x), _dense(guided, x), atol=1e-6)


def test_what_does_not_fit_is_said_or_refused(tmp_path):
    save_encoder(tmp_path / "flat", _encoder(1), {})
    save_encoder(tmp_path / "wide", _encoder(1, "vit_tiny"), {})
    told: list[str] = []
    how = {"guide": "none", "uses_guide": True, "tell": told.append}
    with pytest.raises(InputError, match=r"flat: this is an encoder of 2D images, and the run's are 3D. Give --dims 2"):
        starting_encoder(None, str(tmp_path / "flat"), dims=3, **how)
    with pytest.raises(InputError, match=r"not one tensor of vit_tiny fits timm:test_vit.*Leave --encoder out"):
        starting_encoder("timm:test_vit,image_size=32", str(tmp_path / "wide"), dims=2, **how)
    with pytest.raises(InputError, match="was not found"):
        starting_encoder(None, str(tmp_path / "nowhere"), dims=2, **how)
    assert not told


def test_a_run_goes_on_from_another_by_another_method_and_says_so(tmp_path, capsys):
    for seed in range(4):
        values = np.random.default_rng(seed).integers(0, 255, (40, 40), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "images" / f"{seed}.png")
    save_encoder(tmp_path / "start", _encoder(1, guide="none"), {"method": "mae"})
    run = frepa.pretrain(
        str(tmp_path / "images"), out=str(tmp_path / "run"), start_from=str(tmp_path / "start"), method="simmim",
        image_size=32, batch_size=2, max_steps=1, lr=1e-12, val_images=0, num_workers=0, quiet=True,
    )  # fmt: skip
    assert "Started from" in capsys.readouterr().err
    found, begun = frepa.load_encoder(run), frepa.load_encoder(tmp_path / "start")
    assert found.guide == "frangi"
    image, guide = torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32)
    assert torch.allclose(
        _dense(found, found.prepare_input(image, guide)), _dense(begun, begun.prepare_input(image)), atol=1e-4
    )
    assert json.loads((run / "encoder.json").read_text())["extra"]["method"] == "simmim"
