"""A gradient that is no number ends the run in a sentence; one that is only large is cut, and its norm told."""

from __future__ import annotations

import lightning_fabric
import pytest
import torch

from frepa.errors import TrainingDiverged
from frepa.pretraining.loop import _clipped


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_no_number_ends_the_run(value: float) -> None:
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    layer = torch.nn.Linear(2, 1, bias=False)
    trained, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(_clipped(fabric, trained, optimizer, 1.0, 0)) == pytest.approx(5)
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]))
    layer.weight.grad = torch.tensor([[3.0, value]])
    with pytest.raises(TrainingDiverged, match="not a number at step 8"):
        _clipped(fabric, trained, optimizer, 1.0, 7)
