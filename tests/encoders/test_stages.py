from __future__ import annotations

import pytest
import torch

from frepa.encoders.contract import StageShape, quarters
from frepa.encoders.registry import build_encoder
from frepa.encoders.slice_transfer import SliceTransfer

_STRIDES = {
    "vit_tiny": [(192, 16)] * 4,
    "swin_tiny": [(96, 4), (192, 8), (384, 16), (768, 32)],
    "convnext_atto": [(40, 4), (80, 8), (160, 16), (320, 32)],
    "timm:resnet18": [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)],
    "vit3d_tiny": [(192, 16)] * 4,
    "swinunetr_tiny": [(192, 32), (96, 16), (48, 8), (24, 4), (12, 2), (12, 1)],
    "mednext_tiny": [(128, 16), (64, 8), (32, 4), (16, 2), (8, 1)],
    "resenc_tiny": [(64, 8), (32, 4), (16, 2), (8, 1)],
}


@pytest.mark.parametrize("name", _STRIDES)
def test_stages_end_with_dense_and_have_the_shapes_they_say(name: str) -> None:
    if name == "resenc_tiny":
        pytest.importorskip("dynamic_network_architectures")
    torch.manual_seed(0)
    encoder = build_encoder(name, **({"image_size": 64} if name.startswith("timm") else {})).eval()
    size = (70, 90) if encoder.dims == 2 else (32, 33, 40) if name != "swinunetr_tiny" else (32, 32, 64)
    batch = 2 if encoder.dims == 2 else 1
    x = torch.rand(batch, encoder.in_channels, *size)
    with torch.no_grad():
        maps, features = encoder.stages(x), encoder(x)
    assert torch.equal(maps[-1], features.dense)
    axes = encoder.dims
    assert encoder.stage_shapes == tuple(StageShape(c, (s,) * axes) for c, s in _STRIDES[name])
    multiple = encoder.size_multiple
    padded = [-(-n // multiple) * multiple for n in size]
    for item, shape in zip(maps, encoder.stage_shapes, strict=True):
        assert item.shape == (batch, shape.channels, *(n // s for n, s in zip(padded, shape.stride)))
    assert (encoder.channels, encoder.stride) == (maps[-1].shape[1], encoder.stage_shapes[-1].stride[0])


def test_dilated_trunk_and_small_volume() -> None:
    encoder = build_encoder("convnext_atto", output_stride=16).eval()
    assert [shape.stride[0] for shape in encoder.stage_shapes] == [4, 8, 16, 16]
    # A single position at the bottleneck is computed with padding, which the stages do not show.
    small = build_encoder("mednext_tiny").eval()
    with torch.no_grad():
        maps = small.stages(torch.rand(1, 2, 16, 16, 16))
    assert [tuple(item.shape[2:]) for item in maps] == [(n,) * 3 for n in (1, 2, 4, 8, 16)]


def test_an_encoder_that_shows_no_more_gives_dense_alone() -> None:
    encoder = SliceTransfer(build_encoder("convnext_atto"), rounds=1, width=16, heads=2).eval()
    x = torch.rand(1, 2, 3, 32, 32)
    (only,) = encoder.stages(x)
    assert torch.equal(only, encoder(x).dense)
    assert encoder.stage_shapes == (StageShape(16, (1, 32, 32)),)


@pytest.mark.parametrize(
    ("depth", "looks"), [(12, [2, 5, 8, 11]), (4, [0, 1, 2, 3]), (6, [1, 2, 3, 5]), (2, [0, 1]), (1, [0])]
)
def test_depths(depth: int, looks: list[int]) -> None:
    assert quarters(depth)[-1] == depth - 1
    if depth != 6:  # halves of odd numbers may be rounded either way
        assert quarters(depth) == looks
