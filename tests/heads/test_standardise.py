from __future__ import annotations

import numpy as np
import pytest
import torch

from frepa.heads.standardise import Moments, Standardise, constant_channels


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 2)])
def test_moments_are_those_of_all_positions_at_once(shape: tuple[int, ...]) -> None:
    # A large common vector and little variation: differences of large sums would lose it.
    batches = [1e3 + 0.05 * torch.randn(b, 6, *shape, generator=torch.Generator().manual_seed(b)) for b in (1, 4, 2)]
    moments = Moments(6)
    for batch in batches:
        moments.add(batch)
    rows = np.concatenate([np.moveaxis(b.double().numpy(), 1, -1).reshape(-1, 6) for b in batches])
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std.numpy(), rows.std(0), rtol=1e-9)
    assert moments.count == len(rows)


def test_weights_leave_positions_out() -> None:
    features, keep = torch.randn(3, 4, 6, 6), torch.rand(3, 6, 6) > 0.4
    moments = Moments(4)
    moments.add(features, keep)
    rows = features.movedim(1, -1)[keep].double()
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.std, rows.std(0, correction=0))


def test_a_constant_channel_gives_zeros_and_is_told_of() -> None:
    features = torch.randn(2, 3, 5, 5)
    features[:, 1] = 0.1
    moments = Moments(3)
    moments.add(features)
    layer = Standardise(3)
    layer.set(moments.mean, moments.std)
    out = layer(features)
    assert torch.isfinite(out).all()
    assert out[:, 1].abs().max() == 0
    assert layer.constant == 1
    assert constant_channels([layer])[0].startswith("1 of 3 feature channels do not vary")
    torch.testing.assert_close(out[:, [0, 2]].mean((0, 2, 3)), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(out[:, [0, 2]].std((0, 2, 3), correction=0), torch.ones(2))


def test_all_channels_constant_is_said_in_plain_words() -> None:
    layer = Standardise(3)
    layer.set(torch.ones(3), torch.zeros(3))
    assert "nothing can be read" in constant_channels([layer])[0]
    assert constant_channels([Standardise(3)]) == []


def test_statistics_travel_with_the_weights() -> None:
    layer, other = Standardise(2), Standardise(2)
    layer.set(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.0]))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, 2)
    assert torch.equal(layer(x), other(x))
