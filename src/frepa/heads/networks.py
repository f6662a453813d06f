"""Whole networks in the place of a head, trained end to end on what they are shown: MONAI's BasicUNet and a ResNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frepa.heads.reading import fitted

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
    """

    def __init__(self, channels: int, classes: int, dims: int, *, width: int | None = None) -> None:
        super().__init__()
        from monai.networks.nets import BasicUNet

        width = width or _WIDTH[dims]
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

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, *S) of one size to (B, classes, *S)."""
        x = torch.cat(list(maps), 1)
        size = tuple(x.shape[2:])
        # Four halvings: smaller inputs are grown at the end of each axis, and the answer is cut.
        return fitted(self.network(fitted(x, [-(-n // 16) * 16 for n in size])), size)


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
