"""Layers of encoders, by which they are tuned: all parameters once, in the order in which a pass comes to them."""

from __future__ import annotations

import pytest

from frepa.encoders.files import load_encoder
from frepa.encoders.layers import layers_of


@pytest.mark.parametrize(
    ("name", "count"),
    [("timm:test_vit", 7), ("timm:test_convnext", 5), ("timm:test_efficientnet", None), ("mednext_tiny", 18)],
)
def test_every_parameter_is_in_one_layer(name, count) -> None:
    encoder = load_encoder(f"random:{name}")
    found = layers_of(encoder)
    names = [parameter for layer in found for parameter in layer]
    assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())
    assert len(names) == len(set(names))
    if count is not None:
        assert len(found) == count
    assert not encoder.training
    assert not any(module._forward_pre_hooks for module in encoder.modules())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_layers_are_those_that_timm_names(name) -> None:
    """timm's own matcher of each model, stages of a pyramid together; what it puts after all is with the last."""
    helpers = pytest.importorskip("timm.models")
    encoder = load_encoder(f"random:timm:{name}")
    matcher = encoder.trunk.group_matcher(coarse=True)
    known = helpers.group_parameters(encoder.trunk, matcher)
    blocks = [[f"trunk.{parameter}" for parameter in known[layer]] for layer in sorted(known)]
    found = layers_of(encoder)
    after = [parameter for layer in blocks[len(found) :] for parameter in layer]
    blocks = [*blocks[: len(found) - 1], [*blocks[len(found) - 1], *after]]
    assert [sorted(layer) for layer in found] == [sorted(layer) for layer in blocks]


def test_the_way_down_and_up_of_a_volume_is_in_running_order() -> None:
    """MONAI registers all stages down, all steps down, and so on; a pass takes them in turn."""
    firsts = [layer[0].split(".", 3)[1:3] for layer in layers_of(load_encoder("random:mednext_tiny"))]
    down = [[part, str(level)] for level in range(4) for part in ("enc_stages", "down_blocks")]
    up = [[part, str(level)] for level in range(4) for part in ("up_blocks", "dec_stages")]
    assert firsts[1:] == [*down, ["bottleneck", "0"], *up]
