"""The layers of an encoder from its input on: what it repeats, blocks or a pyramid's stages, in running order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from frepa.encoders.contract import Encoder, per_axis


@torch.no_grad()
def layers_of(encoder: Encoder) -> list[list[str]]:
    """Names of all parameters of an encoder, by layer, in the order in which layers are computed.

    A layer is an item of what a trunk repeats: a transformer's block, a pyramid's stage. What stands beside these (a
    patch embedding, a step up of a U-shaped trunk, a neck) is a layer of its own; norms go with the layer before them,
    and positions and tokens with the first. Looked at by running the encoder on one empty image.
    """
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    left = dict.fromkeys(names)
    units: list[tuple[nn.Module, list[str]]] = []
    for module in _units(encoder):
        own = [names[id(parameter)] for parameter in module.parameters() if id(parameter) in left]
        for parameter in module.parameters():
            left.pop(id(parameter), None)
        if own:
            units.append((module, own))
    found: list[list[str]] = []
    sizes = {name: parameter.ndim for name, parameter in encoder.named_parameters()}
    for place in _running_order(encoder, [module for module, _ in units]):
        own = units[place][1]
        if found and all(sizes[name] <= 1 for name in own):
            found[-1] += own
        else:
            found.append(list(own))
    rest = [names[key] for key in left]
    return [[*rest, *found[0]], *found[1:]] if found else [rest]


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """Items of repeated parts, and what stands beside such parts, as registered."""
    children = _children(module)
    if _repeats(module):
        yield from children
        return
    for child in children:
        if any(map(_repeats, child.modules())):
            yield from _units(child)
        else:
            yield child


def _repeats(module: nn.Module) -> bool:
    children = _children(module) if isinstance(module, nn.ModuleList | nn.Sequential) else []
    return len(children) > 1 and len({type(child) for child in children}) == 1


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if next(child.parameters(), None) is not None]


def _running_order(encoder: Encoder, units: list[nn.Module]) -> list[int]:
    """Places of the units in the order in which a pass first comes to them; those it never calls come first."""
    first: dict[int, int] = {}

    def seen(unit: int, *_: Any) -> None:
        first.setdefault(unit, len(first))

    handles = [
        part.register_forward_pre_hook(partial(seen, place))
        for place, unit in enumerate(units)
        for part in unit.modules()
    ]
    training = encoder.training
    try:
        size = per_axis(encoder.size_multiple, encoder.dims)
        device = next(encoder.parameters()).device
        encoder.eval()(torch.zeros(1, encoder.in_channels, *size, device=device))
    finally:
        encoder.train(training)
        for handle in handles:
            handle.remove()
    return sorted(range(len(units)), key=lambda place: first.get(place, -1))
