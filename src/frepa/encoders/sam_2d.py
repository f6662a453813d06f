"""SAM's image encoder (Kirillov et al., 2023): windows, relative positions and a convolutional neck, by timm.

MedSAM, SAM itself and the ViT of Frepa's authors have this architecture; see `published` for their files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from frepa.encoders.contract import Encoder, Features, StageShape, quarters
from frepa.encoders.foreign import TrunkInput
from frepa.encoders.registry import register


class SamEncoder(Encoder):
    """``dense`` and ``embedding`` are the map after the neck.

    Args:
        name: registered name.
        image_channels: channels of the image, without the guide.
        guide: what the guide channel holds.
        image_size: side in pixels whose grid the learned positions have; they are interpolated for other sizes.
        patch_size: side of a patch.
        width: channels of a token. depth: blocks. heads: of the attention. hidden: width of the blocks' MLP.
        neck: channels after the neck.
        relative: the attention knows relative positions.
        window: patches per side of the windows of attention, 0 for none; ``everywhere``: blocks that have none.
        epsilon: of the blocks' layer norms.
        uses_guide: False for a trunk without an input for the guide: that channel is dropped.
        mean, std: per image channel, applied inside to images in [0, 1]; None where the trunk takes these.
    """

    def __init__(
        self,
        name: str,
        *,
        image_channels: int = 3,
        guide: str = "frangi",
        image_size: int = 1024,
        patch_size: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        neck: int = 256,
        relative: bool = True,
        window: int = 14,
        everywhere: Sequence[int] = (2, 5, 8, 11),
        epsilon: float = 1e-6,
        uses_guide: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        shape: dict[str, Any] = {
            "image_size": image_size, "patch_size": patch_size, "width": width, "depth": depth, "heads": heads,
            "hidden": hidden, "neck": neck, "relative": relative, "window": window, "everywhere": list(everywhere),
            "epsilon": epsilon,
        }  # fmt: skip
        super().__init__(
            name=name,
            dims=2,
            image_channels=image_channels,
            guide=guide,
            uses_guide=uses_guide,
            channels=neck,
            embedding_channels=neck,
            stride=patch_size,
            size_multiple=patch_size,
            options=shape,
        )
        self.input = TrunkInput(name, image_channels, 2, uses_guide=uses_guide, mean=mean, std=std)
        self.options |= self.input.options
        norm: Any = partial(nn.LayerNorm, eps=epsilon)
        self.trunk = VisionTransformerSAM(
            img_size=image_size,
            patch_size=patch_size,
            in_chans=image_channels + uses_guide,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=hidden / width,
            norm_layer=norm,
            use_rel_pos=relative,
            window_size=window,
            global_attn_indexes=tuple(everywhere) if window else (),
            neck_chans=neck,
        )
        self._looks = quarters(depth)

    @property
    def stage_shapes(self) -> tuple[StageShape, ...]:
        """Blocks at a quarter, half and three quarters of the depth, and the map after the neck."""
        stride = (int(self.options["patch_size"]),) * 2
        inner = StageShape(int(self.options["width"]), stride)
        return (*[inner] * (len(self._looks) - 1), StageShape(self.channels, stride))

    def extract(self, x: Tensor) -> Features:
        """Features of (B, in_channels, H, W), H and W multiples of the patch."""
        dense = self.trunk.forward_features(self.input(x))
        return Features(dense, dense)

    def extract_stages(self, x: Tensor) -> list[Tensor]:
        """Maps of (B, in_channels, H, W) along the trunk; the last is ``dense``."""
        last, maps = self.trunk.forward_intermediates(self.input(x), indices=self._looks)
        return [*maps[:-1], last]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, block by block."""
        super().set_grad_checkpointing(enable)
        self.trunk.set_grad_checkpointing(enable)


register("sam", dims=2)(SamEncoder)
