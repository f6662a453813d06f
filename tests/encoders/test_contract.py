from __future__ import annotations

import pytest
import torch
from torch import Tensor

from frepa.encoders.contract import Encoder, Features, pad_to_multiple, per_axis
from frepa.errors import InputError


class Mirror(Encoder):
    """Returns what it was given, so that padding and channel order can be seen."""

    def __init__(self, *, image_channels: int = 3, guide: str = "frangi", dims: int = 2) -> None:
        super().__init__(
            name="mirror",
            dims=dims,
            image_channels=image_channels,
            guide=guide,
            channels=image_channels + 1,
            embedding_channels=image_channels + 1,
            stride=1,
            size_multiple=4,
            options={},
        )

    def extract(self, x: Tensor) -> Features:
        return Features(x, x)


def test_padding_is_zeros_at_the_end_of_each_axis() -> None:
    x = torch.rand(2, 4, 5, 8)
    padded = Mirror()(x).dense
    assert padded.shape == (2, 4, 8, 8)
    assert torch.equal(padded[..., :5, :8], x)
    assert padded[..., 5:, :].abs().max() == 0


def test_padding_axes_are_not_swapped() -> None:
    assert pad_to_multiple(torch.rand(1, 1, 5, 6, 7), (1, 2, 16)).shape == (1, 1, 5, 6, 16)
    x = torch.rand(1, 1, 8, 8)
    assert pad_to_multiple(x, (4, 8)) is x


def test_grey_is_repeated_and_the_guide_comes_last() -> None:
    grey, guide = torch.rand(2, 1, 6, 7), torch.rand(2, 1, 6, 7)
    x = Mirror().prepare_input(grey, guide)
    assert x.shape == (2, 4, 6, 7)
    for channel in range(3):
        assert torch.equal(x[:, channel : channel + 1], grey)
    assert torch.equal(x[:, 3:], guide)


def test_colour_keeps_its_channels() -> None:
    colour = torch.rand(2, 3, 6, 7)
    assert torch.equal(Mirror().prepare_input(colour, torch.zeros(2, 1, 6, 7))[:, :3], colour)


def test_colour_becomes_luminance_for_a_grey_encoder() -> None:
    # A colour image whose channels agree is grey already: whatever the weights, they sum to one.
    grey = torch.rand(2, 1, 6, 7)
    x = Mirror(image_channels=1).prepare_input(grey.expand(-1, 3, -1, -1), torch.zeros_like(grey))
    assert x.shape == (2, 2, 6, 7)
    torch.testing.assert_close(x[:, :1], grey)


def test_guide_none_feeds_zeros_whatever_is_given() -> None:
    image = torch.rand(2, 3, 6, 7)
    x = Mirror(guide="none").prepare_input(image, torch.ones(2, 1, 6, 7))
    assert x[:, 3].abs().max() == 0
    assert torch.equal(x, Mirror(guide="none").prepare_input(image))


def test_volumes_are_prepared_alike() -> None:
    image, guide = torch.rand(1, 1, 3, 4, 5), torch.rand(1, 1, 3, 4, 5)
    assert torch.equal(Mirror(image_channels=1, dims=3).prepare_input(image, guide), torch.cat([image, guide], dim=1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Mirror(guide="frangy"), "Did you mean frangi"),
        (lambda: Mirror().prepare_input(torch.rand(1, 3, 4, 4)), "needs its frangi guide"),
        (lambda: Mirror().prepare_input(torch.rand(1, 2, 4, 4), torch.rand(1, 1, 4, 4)), "found 2 channels"),
        (lambda: Mirror()(torch.rand(1, 3, 4, 4)), "2D images with 4 channels"),
        (lambda: Mirror()(torch.rand(1, 4, 4, 4, 4)), "2D images with 4 channels"),
        (lambda: per_axis((1, 2), 3), "3 numbers"),
    ],
)
def test_wrong_input_is_named(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
