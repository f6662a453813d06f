from __future__ import annotations

import pytest
import torch
from monai.losses import DiceLoss

from frepa.downstream.segmentation.loss import LOSSES, dice_loss


@pytest.mark.parametrize(("classes", "shape"), [(2, (8, 9)), (4, (5, 6, 7))])
def test_dice_loss_matches_monai(classes: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, classes, *shape, generator=generator)
    truth = torch.randint(0, classes, (3, *shape), generator=generator)
    theirs = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(logits, truth[:, None])
    ours = dice_loss(logits, truth, torch.ones(3, *shape, dtype=torch.bool))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_padding_does_not_count(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 6, 6, generator=generator)
    truth = torch.randint(0, 3, (2, 6, 6), generator=generator)
    valid = torch.ones(2, 6, 6, dtype=torch.bool)
    valid[..., 4:] = False
    cut = LOSSES[name](logits[..., :4], truth[..., :4], valid[..., :4])
    assert LOSSES[name](logits, truth, valid).item() == pytest.approx(cut.item(), abs=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_perfect_answer_costs_nothing_and_an_empty_batch_is_finite(name: str) -> None:
    truth = torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(2))
    everywhere = torch.ones(2, 6, 6, dtype=torch.bool)
    perfect = 50.0 * torch.nn.functional.one_hot(truth, 3).movedim(-1, 1).float()
    assert LOSSES[name](perfect, truth, everywhere).item() == pytest.approx(0, abs=1e-4)
    logits = torch.zeros(2, 3, 6, 6, requires_grad=True)
    loss = LOSSES[name](logits, torch.zeros_like(truth), everywhere)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
