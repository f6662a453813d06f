from __future__ import annotations

import torch

from frepa.pretraining.ema import Ema


def test_average_follows_its_recurrence_and_leaves_the_weights():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    ema = Ema(model, 0.9)
    expected = model.weight.detach().double().clone()
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn(4, 4))
        ema.update(model)
        expected = 0.9 * expected + 0.1 * model.weight.detach().double()
    assert torch.allclose(ema.average["weight"].double(), expected, atol=1e-6)
    own = model.weight.detach().clone()
    with ema.applied_to(model):
        assert torch.equal(model.weight, ema.average["weight"])
    assert torch.equal(model.weight, own)
    other = Ema(torch.nn.Linear(4, 4), 0.9)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.average["bias"], ema.average["bias"])
