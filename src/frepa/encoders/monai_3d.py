"""3D encoders from MONAI behind the one contract: ViT, SwinUNETR, MedNeXt, and small siblings of each.

At the paper's size (section 4.1.2) with 1 + 1 input channels: ViT of width 1024 32.0 M parameters, SwinUNETR with
feature size 36 35.1 M, MedNeXt-L with 24 filters 34.8 M; the two U-shaped ones counted whole, without their output
convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepa.encoders.contract import Encoder, Features, StageShape, per_axis, quarters
from frepa.encoders.embedding import PatchEmbedding, embedded, pick
from frepa.encoders.registry import register
from frepa.errors import InputError

# The paper gives width and total, not depth. With 2 input channels, patches of 16 and 128^3 crops:
#   patch embedding 2 * 16^3 * 1024 + 1024 = 8,389,632; positions 8^3 * 1024 = 524,288; last norm 2,048
#   block of MLP width m: 4 * 1024^2 + 1024 (attention) + 2,049 * m + 1024 (MLP) + 4 * 1024 (norms)
# 4 blocks with m = 768 give 32,012,288. Two blocks with m = 3584 give as many; four attend farther.
VITS: dict[str, dict[str, int]] = {
    "vit3d_tiny": {"hidden_size": 192, "mlp_dim": 384, "num_layers": 4, "num_heads": 3},
    "vit3d_small": {"hidden_size": 384, "mlp_dim": 1536, "num_layers": 6, "num_heads": 6},
    "vit3d_base": {"hidden_size": 1024, "mlp_dim": 768, "num_layers": 4, "num_heads": 16},
}
SWINS = {"swinunetr_tiny": 12, "swinunetr_small": 24, "swinunetr_base": 36}
# Filters; blocks and expansion ratios on the way down, which the way up mirrors; blocks and ratio at the bottleneck.
# Blocks and ratios are those that MedNeXt's authors call S, B, M and L.
MEDNEXTS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int, int]] = {
    "mednext_tiny": (8, (1, 1, 1, 1), (2, 2, 2, 2), 1, 2),
    "mednext_small": (24, (2, 2, 2, 2), (2, 2, 2, 2), 2, 2),
    "mednext_base": (24, (2, 2, 2, 2), (2, 3, 4, 4), 2, 4),
    "mednext_medium": (24, (3, 4, 4, 4), (2, 3, 4, 4), 4, 4),
    "mednext_large": (24, (3, 4, 8, 8), (3, 4, 8, 8), 8, 8),
}


class Vit3d(Encoder):
    """MONAI's ViT. ``dense`` and ``embedding`` are its tokens after the last norm, laid out as a map.

    Args:
        name: one of ``VITS``.
        image_channels: channels of the volume, without the guide.
        guide: what the guide channel holds.
        image_size: side in voxels of the crops it is mostly used on: the grid of its learned positions, which are
            interpolated for other sizes.
        patch_size: side of a patch in voxels.
        depth: number of blocks; None is the name's own.
        mlp_dim: width of a block's hidden layer; None is the name's own.
        uses_guide: False for a trunk without an input for the guide channel.
    """

    takes_tokens = True

    def __init__(
        self,
        name: str,
        *,
        image_channels: int = 1,
        guide: str = "frangi",
        image_size: int = 128,
        patch_size: int = 16,
        depth: int | None = None,
        mlp_dim: int | None = None,
        uses_guide: bool = True,
    ) -> None:
        if image_size % patch_size:
            raise InputError(f"image_size {image_size} of encoder {name} is no multiple of patch_size {patch_size}.")
        asked = {key: value for key, value in {"num_layers": depth, "mlp_dim": mlp_dim}.items() if value is not None}
        shape = {**VITS[name], **asked}
        super().__init__(
            name=name,
            dims=3,
            image_channels=image_channels,
            guide=guide,
            uses_guide=uses_guide,
            channels=shape["hidden_size"],
            embedding_channels=shape["hidden_size"],
            stride=patch_size,
            size_multiple=patch_size,
            options={
                "image_size": image_size,
                "patch_size": patch_size,
                "depth": shape["num_layers"],
                "mlp_dim": shape["mlp_dim"],
            },
        )
        self.grid = image_size // patch_size
        self.trunk_options: dict[str, Any] = {
            "in_channels": image_channels + uses_guide,
            "img_size": image_size,
            "patch_size": patch_size,
            **shape,
        }
        from monai.networks.nets import ViT  # seconds, which names that are not known need not wait for

        self.trunk: Any = ViT(**self.trunk_options)
        blocks: Any = self.trunk.blocks
        for block in blocks:
            block.attn.use_flash_attention = True  # the same attention without its (tokens x tokens) matrix in memory
            # Older MONAI builds a cross attention that is never called: parameters without gradient stop DDP.
            for unused in ("cross_attn", "norm_cross_attn"):
                if hasattr(block, unused):
                    delattr(block, unused)

    @property
    def stage_shapes(self) -> tuple[StageShape, ...]:
        """Channels and strides of ``stages``."""
        return (StageShape(self.channels, per_axis(self.stride, 3)),) * len(quarters(len(self.trunk.blocks)))

    def extract(self, x: Tensor) -> Features:
        """Features of (B, in_channels, D, H, W), axes multiples of the patch size."""
        (dense,) = self._walk(x, [len(self.trunk.blocks) - 1])
        return Features(dense, dense)

    def extract_stages(self, x: Tensor) -> list[Tensor]:
        """Maps of (B, in_channels, D, H, W) along the depth; the last is ``dense``."""
        return self._walk(x, quarters(len(self.trunk.blocks)))

    def _walk(self, x: Tensor, looks: list[int]) -> list[Tensor]:
        """Maps after these blocks, the last block's after the last norm."""
        patches = self.trunk.patch_embedding.patch_embeddings(self.without_unused(x))
        tokens = (patches + self.positions(patches.shape[2:])).flatten(2).transpose(1, 2)
        seen = []
        for number, block in enumerate(self.trunk.blocks):
            tokens = self.run(block, tokens)
            if number in looks:
                seen.append(tokens)
        seen[-1] = self.trunk.norm(seen[-1])
        return [item.transpose(1, 2).reshape(patches.shape) for item in seen]

    @property
    def patch_embedding(self) -> PatchEmbedding:
        """The convolution that makes tokens of patches."""
        return PatchEmbedding(self.trunk.patch_embedding.patch_embeddings, self.channels, channels_last=False)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Vectors (B, K, channels) of the patches ``keep`` of (B, in_channels, D, H, W); see ``Encoder.tokens``."""
        self.check_input(x)
        x, layer = self.without_unused(self.padded(x)), self.trunk.patch_embedding.patch_embeddings
        if keep is None:
            patches = layer(x)
            tokens = (patches + self.positions(patches.shape[2:])).flatten(2).transpose(1, 2)
        else:  # a patch of a volume is long: embedding one that is not kept costs as much as the blocks do
            grid = torch.Size(length // step for length, step in zip(x.shape[2:], per_axis(self.stride, 3)))
            places = self.positions(grid).flatten(2).transpose(1, 2).expand(len(x), -1, -1)
            tokens = embedded(layer, x, keep) + pick(places, keep)
        for block in self.trunk.blocks:
            tokens = self.run(block, tokens)
        return self.trunk.norm(tokens)

    def positions(self, grid: Sequence[int]) -> Tensor:
        """The learned positions (1, channels, *grid), interpolated where the grid is another than the trained one."""
        positions = self.trunk.patch_embedding.position_embeddings
        positions = positions.transpose(1, 2).reshape(1, self.channels, self.grid, self.grid, self.grid)
        if tuple(grid) == tuple(positions.shape[2:]):
            return positions
        return F.interpolate(positions, size=tuple(grid), mode="trilinear", align_corners=False)


class SwinUnetr3d(Encoder):
    """MONAI's SwinUNETR. ``dense`` is its last feature map at full resolution, ``embedding`` its bottleneck at 1/32.

    Args:
        name: one of ``SWINS``.
        image_channels: channels of the volume, without the guide.
        guide: what the guide channel holds.
        drop_path_rate: stochastic depth while training.
        uses_guide: False for a trunk without an input for the guide channel.
    """

    def __init__(
        self,
        name: str,
        *,
        image_channels: int = 1,
        guide: str = "frangi",
        drop_path_rate: float = 0.0,
        uses_guide: bool = True,
    ) -> None:
        width = SWINS[name]
        super().__init__(
            name=name,
            dims=3,
            image_channels=image_channels,
            guide=guide,
            uses_guide=uses_guide,
            channels=width,
            embedding_channels=16 * width,
            stride=1,
            size_multiple=32,
            options={"drop_path_rate": drop_path_rate},
        )
        # "merging" drops some positions and repeats others in older MONAI, not in newer; "mergingv2" never does.
        self.trunk_options: dict[str, Any] = {
            "in_channels": image_channels + uses_guide,
            "out_channels": 1,
            "feature_size": width,
            "dropout_path_rate": drop_path_rate,
            "downsample": "mergingv2",
        }
        from monai.networks.nets import SwinUNETR

        self.trunk: Any = SwinUNETR(**self.trunk_options)
        del self.trunk.out

    @property
    def stage_shapes(self) -> tuple[StageShape, ...]:
        """Channels and strides of ``stages``."""
        steps = ((16, 32), (8, 16), (4, 8), (2, 4), (1, 2), (1, 1))
        return tuple(StageShape(self.channels * wider, (step,) * 3) for wider, step in steps)

    def extract(self, x: Tensor) -> Features:
        """Features of (B, in_channels, D, H, W), axes multiples of 32."""
        maps = self._walk(x)
        return Features(maps[-1][..., : x.shape[-1]], maps[0])

    def extract_stages(self, x: Tensor) -> list[Tensor]:
        """The bottleneck of (B, in_channels, D, H, W) and every step up; the last is ``dense``."""
        return [item[..., : x.shape[-1] // shape.stride[-1]] for item, shape in zip(self._walk(x), self.stage_shapes)]

    def _walk(self, x: Tensor) -> list[Tensor]:
        net, run = self.trunk, self.run
        x = _two_positions(self.without_unused(x), 32)
        hidden = net.swinViT(x, net.normalize)
        maps = [run(net.encoder10, hidden[4])]
        maps.append(run(net.decoder5, maps[-1], hidden[3]))
        maps.append(run(net.decoder4, maps[-1], run(net.encoder4, hidden[2])))
        maps.append(run(net.decoder3, maps[-1], run(net.encoder3, hidden[1])))
        maps.append(run(net.decoder2, maps[-1], run(net.encoder2, hidden[0])))
        maps.append(run(net.decoder1, maps[-1], run(net.encoder1, x)))
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, block by block."""
        super().set_grad_checkpointing(enable)
        for module in self.trunk.swinViT.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = enable


class MedNext3d(Encoder):
    """MONAI's MedNeXt. ``dense`` is its last feature map at full resolution, ``embedding`` its bottleneck at 1/16.

    On a CPU it computes in float32 whatever is asked for: its depthwise convolutions of volumes, the transposed ones
    above all, take longer in bfloat16.

    Args:
        name: one of ``MEDNEXTS``.
        image_channels: channels of the volume, without the guide.
        guide: what the guide channel holds.
        kernel_size: of the depthwise convolutions, 3 or 5 in its authors' experiments.
        uses_guide: False for a trunk without an input for the guide channel.
    """

    def __init__(
        self,
        name: str,
        *,
        image_channels: int = 1,
        guide: str = "frangi",
        kernel_size: int = 3,
        uses_guide: bool = True,
    ) -> None:
        filters, blocks, ratios, blocks_bottleneck, ratio_bottleneck = MEDNEXTS[name]
        multiple = 2 ** len(blocks)
        super().__init__(
            name=name,
            dims=3,
            image_channels=image_channels,
            guide=guide,
            uses_guide=uses_guide,
            channels=filters,
            embedding_channels=filters * multiple,
            stride=1,
            size_multiple=multiple,
            options={"kernel_size": kernel_size},
        )
        self.trunk_options: dict[str, Any] = {
            "in_channels": image_channels + uses_guide,
            "init_filters": filters,
            "encoder_expansion_ratio": ratios,
            "decoder_expansion_ratio": ratios[::-1],
            "bottleneck_expansion_ratio": ratio_bottleneck,
            "kernel_size": kernel_size,
            "use_residual_connection": True,
            "blocks_down": blocks,
            "blocks_bottleneck": blocks_bottleneck,
            "blocks_up": blocks[::-1],
        }
        from monai.networks.nets import MedNeXt

        self.trunk: Any = MedNeXt(**self.trunk_options)
        del self.trunk.out_0

    @property
    def stage_shapes(self) -> tuple[StageShape, ...]:
        """Channels and strides of ``stages``."""
        steps = [2**level for level in range(len(self.trunk.enc_stages), -1, -1)]
        return tuple(StageShape(self.channels * step, (step,) * 3) for step in steps)

    def extract(self, x: Tensor) -> Features:
        """Features of (B, in_channels, D, H, W), axes multiples of 16."""
        maps = self._walk(x)
        return Features(maps[-1][..., : x.shape[-1]], maps[0])

    def extract_stages(self, x: Tensor) -> list[Tensor]:
        """The bottleneck of (B, in_channels, D, H, W) and every step up; the last is ``dense``."""
        return [item[..., : x.shape[-1] // shape.stride[-1]] for item, shape in zip(self._walk(x), self.stage_shapes)]

    def _walk(self, x: Tensor) -> list[Tensor]:
        if x.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return self._maps(x.float())
        return self._maps(x)

    def _maps(self, x: Tensor) -> list[Tensor]:
        net = self.trunk
        x = net.stem(_two_positions(self.without_unused(x), 16))
        skips = []
        for stage, down in zip(net.enc_stages, net.down_blocks):
            x = self._stage(stage, x)
            skips.append(x)
            x = self.run(down, x)
        maps = [self._stage(net.bottleneck, x)]
        for up, stage in zip(net.up_blocks, net.dec_stages):
            maps.append(self._stage(stage, self.run(up, maps[-1]) + skips.pop()))
        return maps

    def _stage(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        for block in blocks:
            x = self.run(block, x)
        return x


def _two_positions(x: Tensor, multiple: int) -> Tensor:
    """Pad a volume whose bottleneck would be a single position: norms over positions need two at least."""
    if all(length == multiple for length in x.shape[2:]):
        return F.pad(x, (0, multiple))
    return x


for _name in VITS:
    register(_name, dims=3)(Vit3d)
for _name in SWINS:
    register(_name, dims=3)(SwinUnetr3d)
for _name in MEDNEXTS:
    register(_name, dims=3)(MedNext3d)
