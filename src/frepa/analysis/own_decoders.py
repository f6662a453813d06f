"""The decoder that a run was pretrained with, where its folder still holds it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from frepa.checkpoints import Checkpoints
from frepa.corruption.guide import luminance
from frepa.downstream.sharing import content
from frepa.encoders.contract import Encoder
from frepa.encoders.reference import EncoderReference
from frepa.errors import InputError
from frepa.pretraining.methods.contract import Setting
from frepa.pretraining.methods.reconstructing import Reconstructing
from frepa.pretraining.methods.registry import METHODS, build_method, find_method
from frepa.pretraining.run_folder import RunFolder
from frepa.states import DamagedFile, load_tree

_ENCODER = "encoder."


class NoDecoder(Exception):
    """There is none; says why, as the end of a sentence."""


@dataclass(frozen=True)
class OwnDecoder:
    """A method as it was pretrained, in evaluation mode.

    Attributes:
        method: with encoder and decoder.
        words: which it is.
        content: what it is made of.
    """

    method: Reconstructing
    words: str
    content: tuple

    @torch.no_grad()
    def __call__(self, seen: Tensor, guide: Tensor, hidden: Tensor | None, image: Tensor) -> Tensor:
        """What it tells of corrupted images (B, 1 or 3, *S): the same shape, see `Reconstructing.reconstruct`.

        A run on colour images sees grey ones three times and its luminance counts; one on grey images sees luminance.
        """
        channels = seen.shape[1]
        told = self.method.reconstruct(
            _in_channels(seen, self.method.channels), guide, hidden, _in_channels(image, self.method.channels)
        )
        return _in_channels(told, channels)


def own_decoder(encoder: Encoder, reference: EncoderReference) -> OwnDecoder:
    """The decoder of the run that an encoder is of.

    The newest state of the run whose encoder is this one, weight by weight; no other decoder belongs to it.

    Raises:
        NoDecoder: it is no run, its states are gone or of another encoder, or its method tells no images.
    """
    root = Path(reference.source)
    if not root.is_dir():
        raise NoDecoder("it is no folder of a run")
    run = RunFolder(root)
    try:
        config = yaml.safe_load(run.config.read_text("utf-8"))
        name, options = METHODS.build(config["method"])
        size, fit, seed = int(config["image_size"]), str(config["fit"]), int(config["seed"])
        target = str(config["guide"]) if config.get("guide_as") == "target" else "none"
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, InputError):
        raise NoDecoder("the folder does not say how it was pretrained") from None
    kind = find_method(name).build
    if not (isinstance(kind, type) and issubclass(kind, Reconstructing)):
        raise NoDecoder(f"{name} tells no images")
    step, state = _state(run.checkpoints, encoder)
    for channels in (3, 1):
        setting = Setting(copy.deepcopy(encoder), channels, size, fit, seed, guide_target=target)
        try:
            with torch.random.fork_rng():
                method = build_method(name, kind.as_kept(options, state), setting)
        except InputError:
            raise NoDecoder(f"{name} can no more be built as it was pretrained") from None
        assert isinstance(method, Reconstructing)
        if {n: tuple(t.shape) for n, t in method.state_dict().items()} == {n: tuple(t.shape) for n, t in state.items()}:
            break
    else:
        raise NoDecoder("its states are of another version of the method")
    method.load_state_dict(state)
    method.to(next(encoder.parameters()).device).eval().requires_grad_(False)
    own = tuple((n, content(tensor)) for n, tensor in sorted(state.items()) if not n.startswith(_ENCODER))
    return OwnDecoder(method, f"the decoder of {name} itself, of step {step:,}", own)


def _state(checkpoints: Checkpoints, encoder: Encoder) -> tuple[int, Mapping[str, Tensor]]:
    """Step and weights of the newest state that has the encoder."""
    wanted = {_ENCODER + name: tensor.cpu() for name, tensor in encoder.state_dict().items()}
    steps = checkpoints.steps()
    for step in reversed(steps):
        try:
            state: dict[str, Any] = load_tree(checkpoints.path(step))["states"]
        except (DamagedFile, KeyError, TypeError):
            continue
        # Where weights were averaged, the encoder that is kept is of the average, and so is its decoder.
        average = {n.removeprefix("module."): t for n, t in (state.get("ema") or {}).items() if n.startswith("module.")}
        for kept in (state.get("method"), average):
            if isinstance(kept, Mapping) and all(
                name in kept and kept[name].shape == tensor.shape and torch.equal(kept[name], tensor)
                for name, tensor in wanted.items()
            ):
                return step, kept
    raise NoDecoder("its states are of another encoder than it keeps" if steps else "it holds no state any more")


def _in_channels(images: Tensor, channels: int) -> Tensor:
    """Images (B, C, *S) in so many channels: grey repeated, colour as its luminance."""
    if images.shape[1] == channels:
        return images
    grey = images if images.shape[1] == 1 else luminance(images).unsqueeze(1).to(images.dtype)
    return grey.expand(-1, channels, *images.shape[2:])
