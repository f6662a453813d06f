from __future__ import annotations

import numpy as np
import pytest
import torch

from frepa.errors import InputError
from frepa.heads.classifier import ClassificationHead
from frepa.heads.logistic import fit_logistic
from frepa.heads.standardise import Moments


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (7,)])
def test_scores_for_any_number_of_axes(pooling: str, hidden: int, shape: tuple[int, ...]) -> None:
    head = ClassificationHead(12, 3, hidden=hidden, pooling=pooling)
    embedding = torch.randn(4, 12, *shape)
    logits = head(embedding)
    assert logits.shape == (4, 3)
    logits.square().mean().backward()
    assert [key for key, value in head.named_parameters() if value.grad is None] == []


def test_mean_pooling_is_the_mean() -> None:
    head = ClassificationHead(12, 3).eval()
    embedding = torch.randn(4, 12, 5, 3)
    torch.testing.assert_close(head.pool(embedding), embedding.mean((2, 3)))
    torch.testing.assert_close(head(embedding), head(embedding.mean((2, 3))))


def test_attention_pooling_can_pick_one_position() -> None:
    """A query that answers to channel 0 finds the position where channel 0 is largest; a mean would dilute it."""
    head = ClassificationHead(8, 2, pooling="attention")
    assert head.score is not None
    with torch.no_grad():
        head.score.weight.zero_()
        head.score.weight[0, 0] = 100.0
    embedding = torch.randn(16, 8, 8, 8)
    embedding[:, 0] = 0.0
    rows = torch.arange(16)
    where = torch.randint(64, (16,))
    embedding.flatten(2)[rows, 0, where] = 20.0
    torch.testing.assert_close(head.pool(embedding), embedding.flatten(2)[rows, :, where])


def test_masked_positions_are_left_out() -> None:
    embedding = torch.randn(2, 12, 5, 3, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    for pooling in ("mean", "attention"):
        head = ClassificationHead(12, 3, pooling=pooling).eval()
        expected = torch.cat([head.pool(embedding[:1, :, :3]), head.pool(embedding[1:])])
        torch.testing.assert_close(head.pool(embedding, mask), expected)
        full = mask[:, :, None, None].expand(2, 5, 3, 4)
        torch.testing.assert_close(head.pool(embedding, full), expected)


def test_scores_do_not_depend_on_the_scale_of_features() -> None:
    head = ClassificationHead(12, 3).eval()
    embedding = torch.randn(4, 12, 5)
    torch.testing.assert_close(head(embedding), head(embedding * 100), rtol=1e-3, atol=1e-4)


def test_unknown_pooling_is_named() -> None:
    with pytest.raises(InputError, match="Did you mean attention"):
        ClassificationHead(12, 3, pooling="attentive")


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("hidden", [0, 16])
def test_scaling_and_shifting_the_features_changes_nothing(pooling: str, hidden: int) -> None:
    torch.manual_seed(0)
    head = ClassificationHead(12, 3, pooling=pooling, hidden=hidden).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(6, 12, 5, 4)
    found = []
    for features in (x, 0.05 * x + 40 * torch.randn(12).view(1, -1, 1, 1)):
        moments = Moments(12)
        moments.add(features)
        head.standardise.set(moments.mean, moments.std)
        found.append(head(features))
    torch.testing.assert_close(found[0], found[1], rtol=1e-2, atol=1e-2)


def test_a_head_starts_as_the_logistic_regression() -> None:
    draw = np.random.default_rng(0)
    x, targets = draw.normal(size=(60, 12)), np.eye(3)[draw.integers(0, 3, 60)]
    model = fit_logistic(x, targets, 1e-2, several=False)
    head = ClassificationHead(12, 3).eval()
    head.start_from(model)
    np.testing.assert_allclose(head(torch.from_numpy(x).float()).detach(), model.logits(x), atol=1e-5)
