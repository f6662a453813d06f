"""2D encoders from timm: ViT, SwinV2, ConvNeXt and their small siblings, and any timm name, behind the one contract.

Trunks at the paper's size with 3 + 1 input channels: ViT-B/16 86.6 M parameters (86.9 M with a neck of 128 channels),
SwinV2-B 86.9 M, ConvNeXt-B 87.6 M.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers import Format, LayerNorm2d, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from frepa.encoders.contract import Encoder, Features, StageShape, quarters
from frepa.encoders.embedding import PatchEmbedding, pick
from frepa.encoders.foreign import TrunkInput
from frepa.encoders.registry import register
from frepa.errors import InputError, nearest

# SwinV2 rather than Swin: its trunk has the paper's 86.9 M parameters, and its windows keep their meaning at any size.
TRUNKS = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "swin_tiny": "swinv2_tiny_window8_256",
    "swin_small": "swinv2_small_window8_256",
    "swin_base": "swinv2_base_window8_256",
    "convnext_atto": "convnext_atto",
    "convnext_femto": "convnext_femto",
    "convnext_pico": "convnext_pico",
    "convnext_nano": "convnext_nano",
    "convnext_tiny": "convnext_tiny",
    "convnext_small": "convnext_small",
    "convnext_base": "convnext_base",
}

_STRIDES = (8, 16, 32)
_MOST = 16384  # a side of the largest image, and more channels than any trunk has


class TimmEncoder(Encoder):
    """A timm trunk without its classifier. ``dense`` and ``embedding`` are the last feature map after the final norm.

    Args:
        name: name under this project, kept for messages and files.
        image_channels: channels of the image, without the guide.
        guide: what the guide channel holds.
        image_size: side in pixels of the images it is mostly used on: the grid of a ViT's learned positions, which are
            interpolated for other sizes, and the size that decides where Swin shifts its windows.
        patch_size: side of a patch in pixels (ViT and Swin); None is the trunk's own.
        output_stride: pixels per position of the map, 8, 16 or 32, by dilation (ConvNeXt, ResNet); None is the trunk's.
        depth: blocks of a plain ViT; None is the trunk's own.
        drop_path_rate: stochastic depth while training.
        final_norm: False leaves out the norm after the last stage, for trunks that were trained without one.
        neck: channels of a neck after the trunk (a 1 x 1 and a 3 x 3 convolution, each with a layer norm over the
            channels), whose map is then ``dense`` and ``embedding``; None is none. The authors' ViT-B has one of 128.
        uses_guide: False for a trunk trained elsewhere: it has no input for the guide, and drops that channel.
        mean, std: per image channel, applied inside to images in [0, 1]: what a trunk trained elsewhere expects.

    Raises:
        InputError: timm does not know the trunk, or the trunk does not have an option that was asked for.
    """

    trunk: Any  # timm's models share methods, not a typed base class

    def __init__(
        self,
        name: str,
        *,
        image_channels: int = 3,
        guide: str = "frangi",
        image_size: int = 512,
        patch_size: int | None = None,
        output_stride: int | None = None,
        depth: int | None = None,
        drop_path_rate: float = 0.0,
        neck: int | None = None,
        final_norm: bool = True,
        uses_guide: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        sizes = {"neck": neck, "patch_size": patch_size, "depth": depth, "image_size": image_size}
        for option, value in sizes.items():
            if value is not None and not (isinstance(value, int) and 1 <= value <= _MOST):
                raise InputError(f"encoder {name}: {option}={value}; give a whole number from 1 to {_MOST}.")
        asked = {"patch_size": patch_size, "output_stride": output_stride, "depth": depth}
        asked = {option: value for option, value in asked.items() if value is not None}
        model, told = create_trunk(
            name,
            required={**asked, "in_chans": image_channels + uses_guide},
            # Trunks differ in how they are told to take any size; each accepts the ones it knows.
            flexible={
                "img_size": image_size,
                "dynamic_img_size": True,
                "strict_img_size": False,
                "drop_path_rate": drop_path_rate,
            },
        )
        if not final_norm:
            _drop_norm(name, model)
        channels, stride = _last_stage(name, model)
        # What this project lists is held by tests; any other timm trunk is tried once, to say early what it cannot do.
        any_size, norm = True, True
        if name not in TRUNKS:
            any_size, norm, channels = _try_trunk(name, model, image_channels + uses_guide, image_size, stride)
        options: dict[str, Any] = {"image_size": image_size, "drop_path_rate": drop_path_rate, **asked}
        if not final_norm:
            options["final_norm"] = False
        trunk_channels = channels
        if neck is not None:
            options["neck"] = channels = neck
        super().__init__(
            name=name,
            dims=2,
            image_channels=image_channels,
            guide=guide,
            uses_guide=uses_guide,
            channels=channels,
            embedding_channels=channels,
            stride=stride,
            size_multiple=stride,
            options=options,
        )
        self._looks, self._stage_shapes = _all_stages(model, channels, stride, norm)
        self.input = TrunkInput(
            name, image_channels, 2, uses_guide=uses_guide, mean=mean, std=std, size=None if any_size else image_size
        )
        self.options |= self.input.options
        self.trunk = model
        # What timm was told, but for the input channels and what matters in training alone
        self.trunk_options = {k: v for k, v in told.items() if k not in ("in_chans", "drop_path_rate")}
        self._norm = norm
        self.neck = nn.Identity() if neck is None else _neck(trunk_channels, neck)

    @property
    def stage_shapes(self) -> tuple[StageShape, ...]:
        """Channels and strides of ``stages``."""
        return self._stage_shapes

    def extract(self, x: Tensor) -> Features:
        """Features of (B, in_channels, H, W), H and W multiples of the stride."""
        dense = self.neck(_maps(self.trunk, self.input(x), self._norm)[-1])
        return Features(dense, dense)

    def extract_stages(self, x: Tensor) -> list[Tensor]:
        """Maps of (B, in_channels, H, W) along the trunk; the last is ``dense``."""
        *before, last = _maps(self.trunk, self.input(x), self._norm, self._looks)
        return [*before, self.neck(last)]

    @property
    def patch_embedding(self) -> PatchEmbedding | None:
        """That of ViT and Swin, whose patches do not overlap."""
        layer = getattr(self.trunk, "patch_embed", None)
        if not isinstance(layer, PatchEmbed) or not isinstance(layer.proj, nn.Conv2d):
            return None
        # As created here both give a map with channels last, and a sequence where no size but one is taken.
        last = layer.output_fmt == Format.NHWC or layer.flatten
        return None if layer.flatten else PatchEmbedding(layer, layer.proj.out_channels, last)

    @property
    def takes_tokens(self) -> bool:  # type: ignore[override]
        """Whether this is a plain vision transformer without a neck."""
        plain = isinstance(self.trunk, VisionTransformer) and self.trunk.dynamic_img_size
        return plain and "neck" not in self.options

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Vectors (B, K, channels) of the patches ``keep`` of (B, in_channels, H, W); see ``Encoder.tokens``."""
        if not self.takes_tokens:
            return super().tokens(x, keep)
        self.check_input(x)
        trunk, prefix = self.trunk, self.trunk.num_prefix_tokens
        tokens = trunk._pos_embed(trunk.patch_embed(self.input(self.padded(x))))
        if keep is not None:
            tokens = torch.cat([tokens[:, :prefix], pick(tokens[:, prefix:], keep)], dim=1)
        tokens = trunk.norm_pre(tokens)
        for block in trunk.blocks:
            tokens = self.run(block, tokens)
        return trunk.norm(tokens)[:, prefix:]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, block by block."""
        super().set_grad_checkpointing(enable)
        if not hasattr(self.trunk, "set_grad_checkpointing"):
            raise InputError(f"encoder {self.name} has no activation checkpointing.")
        self.trunk.set_grad_checkpointing(enable)


def _drop_norm(name: str, model: Any) -> None:
    """Take away the norm after the last stage. Raises InputError where there is none."""
    head = getattr(model, "head", None)
    for place, attribute in ((head, "norm"), (model, "norm"), (model, "fc_norm")):
        if isinstance(getattr(place, attribute, None), nn.LayerNorm | LayerNorm2d | nn.GroupNorm):
            setattr(place, attribute, nn.Identity())
            return
    raise InputError(f"encoder {name} has no norm after its last stage: leave out final_norm.")


def _neck(channels: int, out: int) -> nn.Sequential:
    """From the trunk's channels to ``out``; the norms take the place of biases."""
    return nn.Sequential(
        nn.Conv2d(channels, out, 1, bias=False),
        LayerNorm2d(out),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        LayerNorm2d(out),
    )


def create_trunk(name: str, *, required: dict[str, Any], flexible: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The timm model for a registered name or ``timm:NAME``, without classifier, and the options that it was given.

    Options in ``flexible`` are left out where the architecture does not know them; those in ``required`` raise
    InputError.
    """
    trunk = TRUNKS.get(name, name.removeprefix("timm:"))
    if not timm.is_model(trunk):
        known = timm.list_models()
        raise InputError(f"timm {timm.__version__} has no model {trunk!r}. {nearest(trunk.split('.')[0], known)}")
    flexible = dict(flexible)
    while True:
        try:
            return timm.create_model(trunk, num_classes=0, **required, **flexible), {**required, **flexible}
        except TypeError as error:
            # Raised by the constructor's signature, before any weight is made.
            unknown = re.findall(r"'(\w+)'", str(error)) if "unexpected keyword argument" in str(error) else []
            refused = [option for option in unknown if option in required]
            if refused:
                raise InputError(f"encoder {name} has no option {refused[0]!r}.") from None
            if not any(flexible.pop(option, None) is not None for option in unknown):
                raise
        except AssertionError as error:
            stride = required.get("output_stride", _STRIDES[0])
            if stride in _STRIDES:
                raise
            raise InputError(
                f"encoder {name}: output_stride={stride}; {', '.join(map(str, _STRIDES))} are possible, by dilation. "
                "For a finer map give an encoder with smaller patches, such as vit_tiny,patch_size=8."
            ) from error


def _last_stage(name: str, model: nn.Module) -> tuple[int, int]:
    """Channels and stride of the last feature map, as timm declares them."""
    info = getattr(model, "feature_info", None)
    if info is None or not hasattr(model, "forward_intermediates"):
        raise InputError(f"encoder {name} gives no feature maps (timm has no forward_intermediates for it).")
    last = _declared(model)[-1]
    return int(last["num_chs"]), int(last["reduction"])


def _declared(model: Any) -> list[dict[str, Any]]:
    info = model.feature_info
    return info if isinstance(info, list) else info.get_dicts()


def _all_stages(model: nn.Module, channels: int, stride: int, norm: bool) -> tuple[list[int], tuple[StageShape, ...]]:
    """Which of the trunk's maps ``stages`` gives, and their shapes; ``channels`` and ``stride`` are the last one's."""
    # In some trunks the norm is a neck, which changes the number of channels
    key = "num_chs_norm" if norm else "num_chs"
    found = [(int(item.get(key, item["num_chs"])), int(item["reduction"])) for item in _declared(model)]
    plain = len({reduction for _, reduction in found}) == 1
    looks = quarters(len(found)) if plain else list(range(len(found)))
    shapes = [StageShape(found[look][0], (found[look][1],) * 2) for look in looks[:-1]]
    return looks, (*shapes, StageShape(channels, (stride,) * 2))


def _maps(model: Any, x: Tensor, norm: bool = True, looks: int | list[int] = 1) -> list[Tensor]:
    """Feature maps (B, channels, h, w) after these stages or blocks, the last of them after the trunk's final norm."""
    *before, dense = model.forward_intermediates(
        x, indices=looks, norm=norm, output_fmt="NCHW", intermediates_only=True
    )
    # Some trunks keep their final norm in the classifier, to be used after pooling (ConvNeXt's ``head.norm``, BEiT's
    # ``fc_norm``). It belongs to the features, so it is applied at every position.
    last = late_norm(model)[1]
    if isinstance(last, LayerNorm2d | nn.GroupNorm):
        dense = last(dense)
    elif isinstance(last, nn.LayerNorm) and last.normalized_shape == dense.shape[1:2]:
        dense = last(dense.movedim(1, -1)).movedim(-1, 1)
    return [*before, dense]


def late_norm(model: Any) -> tuple[str, nn.Module | None]:
    """Name and module of a final norm that a timm model keeps in its classifier, behind ``forward_features``."""
    found = getattr(getattr(model, "head", None), "norm", None)
    return ("head.norm", found) if found else ("fc_norm", getattr(model, "fc_norm", None))


def last_map(encoder: TimmEncoder, model: Any, x: Tensor) -> Tensor:
    """Of a timm model built like the encoder's trunk, the map (B, channels, h, w) that the encoder would read.

    ``x`` is as the model's first layer takes it.
    """
    return _maps(model, x, encoder._norm)[-1]


def _try_trunk(name: str, model: nn.Module, inputs: int, image_size: int, stride: int) -> tuple[bool, bool, int]:
    """Whether a trunk takes any size, whether it can normalise its last map, and the map's true channel count."""
    device = next(model.parameters()).device
    reasons = []
    training = model.training
    model.eval()  # a trial must not move the statistics of batch norms
    try:
        for size in ((2 * stride, 3 * stride), (image_size, image_size)):
            for norm in (True, False):
                try:
                    with torch.no_grad():
                        (dense,) = _maps(model, torch.zeros(1, inputs, *size, device=device), norm)
                except (AssertionError, RuntimeError, ValueError) as error:
                    reasons.append(str(error))
                    continue
                if dense.shape[2:] == tuple(length // stride for length in size):
                    return size[0] != size[1], norm, dense.shape[1]
                reasons.append(f"map of {tuple(dense.shape)} for an image of {size}, stride {stride}")
    finally:
        model.train(training)
    raise InputError(f"encoder {name} cannot be used at image_size={image_size}: {reasons[-1]}")


for _name in TRUNKS:
    register(_name, dims=2)(TimmEncoder)
register("timm:", dims=2)(TimmEncoder)
