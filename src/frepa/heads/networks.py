"""Whole networks in the place of a head, trained end to end on what they are shown: MONAI's BasicUNet and a ResNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frepa.heads.reading import channels_last, fitted

_GROUPS = 4
_WIDTH = {2: 16, 3: 8}
_PLANES = {2: 32, 3: 16}


class UNetBody(nn.Module):
    """MONAI's BasicUNet on maps of full resolution; its last convolution starts at zero.

    Args:
        channels: of all maps together.
        classes: number of scores.
        dims: 2 or 3.
        width: channels of the first level, a multiple of 4; None is 16 in 2D and 8 in 3D. The next have 1, 2, 4, 8
            times as many.
        multiple: maps are grown to multiples of it by their last values; 16 in heads of older versions.
    """

    def __init__(self, channels: int, classes: int, dims: int, *, width: int | None = None, multiple: int = 1) -> None:
        super().__init__()
        from monai.networks.nets import BasicUNet

        width = width or _WIDTH[dims]
        self.multiple = multiple
        self.network = BasicUNet(
            spatial_dims=dims,
            in_channels=channels,
            out_channels=classes,
            features=(width, width, 2 * width, 4 * width, 8 * width, width),
            # Groups and not instances, which need more than one position: crops may be small.
            norm=("group", {"num_groups": _GROUPS}),
        )
        nn.init.zeros_(self.network.final_conv.weight)
        nn.init.zeros_(self.network.final_conv.bias)
        # A last odd position is halved alone. As MONAI has it, it is left out, and a single one cannot be halved; to
        # grow every axis to a multiple of 16 first costs 2.4 times as much on 24 x 28 x 20.
        for pooling in (layer for layer in self.network.modules() if isinstance(layer, (nn.MaxPool2d, nn.MaxPool3d))):
            pooling.ceil_mode = True

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, *S) of one size, of any extent, to (B, classes, *S)."""
        network: Any = self.network
        x = torch.cat(list(maps), 1)
        size = tuple(x.shape[2:])
        x = network.conv_0(channels_last(fitted(x, [-(-n // self.multiple) * self.multiple for n in size])))
        finer = []
        for down in (network.down_1, network.down_2, network.down_3, network.down_4):
            finer.append(x)
            x = down(x)
        for up in (network.upcat_4, network.upcat_3, network.upcat_2, network.upcat_1):
            own = finer.pop()
            x = up.convs(torch.cat([own, fitted(up.upsample(x), own.shape[2:])], 1))
        return fitted(network.final_conv(x), size)


def resnet(channels: int, classes: int, dims: int) -> nn.Module:
    """A small ResNet of four blocks by MONAI (1.2 M parameters in 2D), (B, channels, *S) to (B, classes).

    Its first convolution is 3 x 3 with stride 2 and there is no pooling after it, so that images of 28 pixels are not
    a single position after two stages. Its last layer starts at zero.
    """
    from monai.networks.nets.resnet import ResNet

    planes = _PLANES[dims]
    network = ResNet(
        "basic",
        [1, 1, 1, 1],
        [planes, 2 * planes, 4 * planes, 8 * planes],
        spatial_dims=dims,
        n_input_channels=channels,
        conv1_t_size=3,
        conv1_t_stride=2,
        no_max_pool=True,
        num_classes=classes,
    )
    assert network.fc is not None
    nn.init.zeros_(network.fc.weight)
    nn.init.zeros_(network.fc.bias)
    return network
