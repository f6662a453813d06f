"""nnU-Net's residual-encoder U-Net (ResEnc), from the optional package ``dynamic-network-architectures``.

Its weights keep nnU-Net's names (``trunk.encoder.*``, ``trunk.decoder.*``): a pretrained encoder can enter nnU-Net.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepa.encoders.contract import Encoder, Features, StageShape
from frepa.encoders.registry import register
from frepa.errors import InputError

# Features and residual blocks of each stage. "resenc_large" is what nnU-Net's ResEnc-L planner gives isotropic data.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "resenc_tiny": ((8, 16, 32, 64), (1, 1, 1, 1)),
    "resenc_small": ((16, 32, 64, 128, 160, 160), (1, 2, 2, 2, 2, 2)),
    "resenc_large": ((32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)),
}


def resenc_options(name: str) -> dict[str, Any]:
    """What nnU-Net's ``ResidualEncoderUNet`` is told for this name, but for its input channels and classes."""
    features, blocks = SHAPES[name]
    return {
        "n_stages": len(features),
        "features_per_stage": features,
        "conv_op": nn.Conv3d,
        "kernel_sizes": 3,
        "strides": (1, *(2,) * (len(features) - 1)),
        "n_blocks_per_stage": blocks,
        "n_conv_per_stage_decoder": 1,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }


class ResEnc3d(Encoder):
    """nnU-Net's ResEnc. ``dense`` is its last feature map at full resolution, ``embedding`` its bottleneck.

    Args:
        name: one of ``SHAPES``.
        image_channels: channels of the volume, without the guide.
        guide: what the guide channel holds.
        uses_guide: False for a trunk without an input for the guide channel.

    Raises:
        InputError: the package it comes from is not installed.
    """

    def __init__(self, name: str, *, image_channels: int = 1, guide: str = "frangi", uses_guide: bool = True) -> None:
        try:
            from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
        except ImportError:
            raise InputError(
                f"encoder {name} needs the package dynamic-network-architectures, which is not installed. "
                "Install it with: pip install 'frepa[nnunet]'"
            ) from None
        features, _ = SHAPES[name]
        multiple = 2 ** (len(features) - 1)
        super().__init__(
            name=name,
            dims=3,
            image_channels=image_channels,
            guide=guide,
            uses_guide=uses_guide,
            channels=features[0],
            embedding_channels=features[-1],
            stride=1,
            size_multiple=multiple,
            options={},
        )
        self.trunk: Any = ResidualEncoderUNet(
            input_channels=image_channels + uses_guide,
            num_classes=1,
            **resenc_options(name),
        )
        self.trunk.apply(self.trunk.initialize)
        # Its decoder holds the encoder a second time and one output layer per stage: neither belongs to the features.
        del self.trunk.decoder.encoder, self.trunk.decoder.seg_layers

    @property
    def stage_shapes(self) -> tuple[StageShape, ...]:
        """Channels and strides of ``stages``."""
        return tuple(StageShape(n, (2**level,) * 3) for level, n in reversed(list(enumerate(SHAPES[self.name][0]))))

    def extract(self, x: Tensor) -> Features:
        """Features of (B, in_channels, D, H, W), axes multiples of the deepest stride."""
        maps = self._walk(x)
        return Features(maps[-1][..., : x.shape[-1]], maps[0])

    def extract_stages(self, x: Tensor) -> list[Tensor]:
        """The bottleneck of (B, in_channels, D, H, W) and every step up; the last is ``dense``."""
        return [item[..., : x.shape[-1] // shape.stride[-1]] for item, shape in zip(self._walk(x), self.stage_shapes)]

    def _walk(self, x: Tensor) -> list[Tensor]:
        encoder, decoder, length = self.trunk.encoder, self.trunk.decoder, x.shape[-1]
        x = self.without_unused(x)
        if all(size == self.size_multiple for size in x.shape[2:]):
            x = F.pad(x, (0, length))  # instance norm needs two positions at the bottleneck
        if encoder.stem is not None:
            x = self.run(encoder.stem, x)
        skips = []
        for stage in encoder.stages:
            x = self.run(stage, x)
            skips.append(x)
        maps = [skips.pop()]
        for up, stage in zip(decoder.transpconvs, decoder.stages):
            maps.append(self.run(stage, torch.cat((up(maps[-1]), skips.pop()), dim=1)))
        return maps


for _name in SHAPES:
    register(_name, dims=3)(ResEnc3d)
