"""Optimizers: Adam as fast as the device allows, and Muon for the convolutions of a head, which learn faster by it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Groups of weights with this word are `Muon`'s, the others Adam's.
MUON = "muon"
#: Muon's rate as a share of Adam's, for networks from nothing: three to nine are alike (docs/results/heads.md).
MUON_SHARE = 3.0
# Coefficients of the Newton-Schulz iteration by Keller Jordan (kellerjordan.github.io/posts/muon), which take any
# singular value above a hundredth to between about 0.7 and 1.2 in five steps.
_A, _B, _C, _STEPS = 3.4445, -4.7750, 2.0315, 5
# Root mean square of an update at a rate of 1, that of Adam's (Liu et al., arXiv 2502.16982, equation 4).
_RMS = 0.2


def adam(parameters: Iterable[Any], lr: float) -> torch.optim.Adam:
    """Adam whose step is one pass over the weights, 4 to 6 times as fast on a CPU as PyTorch's default.

    ``parameters``: tensors, or groups of them as dictionaries, already on their device.
    """
    groups = list(parameters)
    tensors = [t for group in groups for t in (group["params"] if isinstance(group, dict) else [group])]
    fused = all(tensor.device.type in ("cpu", "cuda") for tensor in tensors)
    return torch.optim.Adam(groups, lr=lr, fused=fused or None)


def muon_group(weights: Iterable[nn.Parameter]) -> dict[str, Any]:
    """The group of those among these weights that are matrices or kernels, at their share of the rate."""
    return {"params": [weight for weight in weights if weight.ndim > 1], MUON: True, "share": MUON_SHARE}


class Muon(torch.optim.Optimizer):
    """Steps by the orthogonal matrix next to the gradient's momentum, so that every direction of a weight moves alike.

    A convolution's weight (out, in, *kernel) is a matrix (out, in * kernel) here, which PyTorch's own Muon does not
    take; all is in float32, which a CPU without bfloat16 needs. Without weight decay.

    Args:
        parameters: tensors of two axes or more, or groups of them as dictionaries.
        lr: rate; an update has a root mean square of 0.2 times it (of full rank, and up to what five steps leave).
        momentum: share of the former gradients, with Nesterov's look ahead.
    """

    def __init__(self, parameters: Iterable[Any], lr: float, *, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient; there is no closure to ask."""
        for group in self.param_groups:
            momentum = group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                mean = state["mean"].lerp_(weight.grad, 1 - momentum)
                update = orthogonal(weight.grad.lerp(mean, momentum).flatten(1))
                weight.add_(update.view_as(weight), alpha=-group["lr"] * _RMS * math.sqrt(max(update.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal factor of a matrix: its singular vectors, and values that are near 1 (about 0.7 to 1.2).

    By five Newton-Schulz steps on the smaller Gram matrix, whose product is applied once: half the time of steps
    on the matrix itself. A matrix of zeros stays one.
    """
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    gram, whole = wide @ wide.T, None
    for left in range(_STEPS - 1, -1, -1):
        step = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
        step.diagonal().add_(_A)
        whole = step if whole is None else step @ whole
        if left:
            gram = step @ gram @ step
    assert whole is not None
    found = whole @ wide
    return found.T if matrix.shape[0] > matrix.shape[1] else found


class MuonAndAdam:
    """Muon for the groups that say `MUON`, Adam for the others; what a training loop asks of one optimizer."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        groups = list(groups)
        muons = [group for group in groups if group.get(MUON)]
        others = [group for group in groups if not group.get(MUON)]
        self._parts: list[torch.optim.Optimizer] = [adam(others, lr)] if others else []
        if muons:
            self._parts.append(Muon(muons, lr))

    @property
    def param_groups(self) -> Iterator[dict[str, Any]]:
        """Of both, to set rates."""
        return itertools.chain.from_iterable(part.param_groups for part in self._parts)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        """One step of each."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, by optimizer."""
        return {type(part).__name__: part.state_dict() for part in self._parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            ValueError: it is of other optimizers, or of other groups of weights.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(f"a state of {sorted(state)}, for {sorted(self.state_dict())}")
        for part in self._parts:
            part.load_state_dict(state[type(part).__name__])
