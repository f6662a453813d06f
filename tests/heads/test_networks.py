"""The U-Net of heads against MONAI's own way through it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepa.heads.networks import UNetBody


def body_of(dims: int, multiple: int = 1) -> UNetBody:
    torch.manual_seed(0)
    body = UNetBody(5, 3, dims, multiple=multiple)
    nn.init.normal_(body.network.final_conv.weight)  # it starts at zero
    return body


def maps_of(*size: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 3, *size), torch.randn(2, 2, *size)]


@pytest.mark.parametrize("size", [(32, 48), (16, 32, 16)])
def test_what_halves_four_times_is_as_monai_has_it(size: tuple[int, ...]) -> None:
    body, maps = body_of(len(size)), maps_of(*size)
    found = body(maps)
    found.square().sum().backward()
    gradients = [weight.grad.clone() for weight in body.parameters()]
    body.zero_grad()
    expected = body.network(torch.cat(maps, 1))
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for own, weight in zip(gradients, body.parameters()):
        torch.testing.assert_close(own, weight.grad, rtol=1e-3, atol=1e-3 * float(weight.grad.abs().max()))


@pytest.mark.parametrize("size", [(1, 1), (5, 23), (40, 17), (1, 9, 2), (4, 24, 24)])
def test_any_extent_is_answered_as_if_last_values_went_on_to_the_next_even_one(size: tuple[int, ...]) -> None:
    """By MONAI's modules, with each map of an odd extent grown by its last values before it is halved."""
    body, maps = body_of(len(size)), maps_of(*size)
    network = body.network

    def grown(x: Tensor) -> Tensor:
        odd = [n % 2 for n in reversed(x.shape[2:])]
        return F.pad(x, [n for one in odd for n in (0, one)], mode="replicate")

    x, finer = network.conv_0(torch.cat(maps, 1)), []
    for level in range(1, 5):
        finer.append(x)
        x = getattr(network, f"down_{level}")(grown(x))
    for level in range(4, 0, -1):
        own, up = finer.pop(), getattr(network, f"upcat_{level}")
        above = up.upsample(x)[(..., *(slice(0, n) for n in own.shape[2:]))]
        x = up.convs(torch.cat([own, above], 1))
    found = body(maps)
    assert found.shape == (2, 3, *size)
    torch.testing.assert_close(found, network.final_conv(x), rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in body.parameters())


@pytest.mark.parametrize("size", [(5, 23), (8, 17, 9)])
def test_grown_to_a_multiple_it_is_monai_on_the_grown_maps(size: tuple[int, ...]) -> None:
    body, maps = body_of(len(size), multiple=16), maps_of(*size)
    missing = [-n % 16 for n in reversed(size)]
    grown = F.pad(torch.cat(maps, 1), [n for one in missing for n in (0, one)], mode="replicate")
    expected = body.network(grown)[(..., *(slice(0, n) for n in size))]
    torch.testing.assert_close(body(maps), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 32), (16, 16, 32)])
def test_the_order_of_memory_changes_no_answer(size: tuple[int, ...]) -> None:
    body, maps = body_of(len(size)), maps_of(*size)
    last = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    other = [item.contiguous(memory_format=last) for item in maps]
    assert torch.equal(body(maps), body(other))
    assert all(weight.grad is None and weight.is_contiguous() for weight in body.parameters())
