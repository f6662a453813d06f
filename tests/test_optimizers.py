"""Optimizers against PyTorch's own and the singular value decomposition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from frepa.optimizers import MUON, MUON_SHARE, Muon, MuonAndAdam, adam, muon_group, orthogonal


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (24, 24)])
def test_the_orthogonal_factor_is_that_of_the_singular_vectors(shape):
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], shape[0], generator=generator))
    right, _ = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator))
    rank = min(shape)
    values = torch.logspace(0, -2, rank)
    found = orthogonal(left[:, :rank] * values @ right[:rank])
    # In the basis of the matrix' own singular vectors it is diagonal, with values near one.
    own = left[:, :rank].T @ found @ right[:rank].T
    torch.testing.assert_close(own, torch.diag(own.diagonal()), atol=2e-3, rtol=0)
    assert own.diagonal().min() > 0.65
    assert own.diagonal().max() < 1.25


def test_a_gradient_of_zeros_moves_nothing():
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon to compare with")
@pytest.mark.parametrize("shape", [(8, 30), (30, 8)])
def test_steps_are_those_of_pytorch_on_matrices(shape):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    own = Muon([ours], 0.1)
    official = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(shape)
        for weight, optimizer in ((ours, own), (theirs, official)):
            weight.grad = gradient.clone()
            optimizer.step()
    # PyTorch's runs in bfloat16, whose steps are of 0.4 per cent.
    assert (ours - theirs).norm() < 0.03 * (theirs - start).norm()


def test_a_convolution_is_a_matrix_of_its_outputs():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    optimizers = Muon([kernel], 0.1), Muon([matrix], 0.1)
    for _ in range(3):
        kernel.grad = torch.randn_like(kernel)
        matrix.grad = kernel.grad.flatten(1).clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_adam_in_one_pass_is_adam():
    """Against the textbook: m / (sqrt(v) + eps), each freed of its bias."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    expected, m, v = weight.detach().clone(), 0, 0
    optimizer = adam([{"params": [weight]}], lr=0.1)
    for step in range(1, 6):
        gradient = torch.randn(7, 5, generator=generator, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected -= 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_adam_goes_on_from_its_state_to_the_bit():
    def train(model, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(8, 6)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 3))
    broken = copy.deepcopy(whole)
    train(whole, adam(whole.parameters(), 1e-2), range(8))
    first = adam(broken.parameters(), 1e-2)
    train(broken, first, range(3))
    resumed = copy.deepcopy(broken)
    second = adam(resumed.parameters(), 1e-2)
    second.load_state_dict(first.state_dict())
    train(resumed, second, range(3, 8))
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters()))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.GELU(), nn.Conv2d(8, 1, 3))


def _optimizer(network: nn.Module) -> MuonAndAdam:
    first, *rest = network.parameters()
    return MuonAndAdam([{"params": [first], MUON: True, "share": 3.0}, {"params": rest}], 0.01)


def _steps(network: nn.Module, optimizer: MuonAndAdam, numbers: range) -> None:
    for number in numbers:
        x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(number))
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / number * group.get("share", 1.0)
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


def test_a_state_goes_on_to_the_same_weights():
    whole = _network()
    _steps(whole, _optimizer(whole), range(1, 7))
    first = _network()
    optimizer = _optimizer(first)
    _steps(first, optimizer, range(1, 4))
    second = _network()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    later = _optimizer(second)
    later.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _steps(second, later, range(4, 7))
    for one, other in zip(whole.parameters(), second.parameters()):
        assert torch.equal(one, other)


def test_what_is_no_matrix_moves_as_adam_moves_it():
    network, alone = _network(), _network()
    both, rest = _optimizer(network), adam(list(alone.parameters())[1:], 0.01)
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    for net, optimizer in ((network, both), (alone, rest)):
        net(x).square().mean().backward()
        optimizer.step()
    moved, untouched = list(network.parameters()), list(alone.parameters())
    for one, other in zip(moved[1:], untouched[1:]):
        assert torch.equal(one, other)
    assert not torch.equal(moved[0], untouched[0])


def test_a_state_of_another_optimizer_is_refused():
    network = _network()
    with pytest.raises(ValueError, match="Adam"):
        _optimizer(network).load_state_dict(adam(network.parameters(), 0.1).state_dict())


def test_what_has_one_axis_is_left_to_adam():
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 8, 1))
    group = muon_group(network.parameters())
    assert {id(weight) for weight in group["params"]} == {id(network[0].weight), id(network[2].weight)}
    assert group["share"] == MUON_SHARE
