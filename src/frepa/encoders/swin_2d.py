"""SwinV2 as torchvision builds it, which Frepa's authors trained (see `published`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from frepa.encoders.contract import Encoder, Features, StageShape
from frepa.encoders.foreign import TrunkInput
from frepa.encoders.registry import register


class TorchvisionSwin(Encoder):
    """``dense`` and ``embedding`` are the last stage's map, without a norm after it.

    Args:
        name: registered name.
        image_channels: channels of the image, without the guide.
        guide: what the guide channel holds.
        width: channels of the first stage; each of the others has twice as many.
        patch_size: side of a patch in pixels.
        depths: blocks of each stage. heads: of the attention of each stage.
        window: positions per side of a window.
        uses_guide: False for a trunk without an input for the guide: that channel is dropped.
        mean, std: per image channel, applied inside to images in [0, 1]; None where the trunk takes these.
    """

    def __init__(
        self,
        name: str,
        *,
        image_channels: int = 3,
        guide: str = "frangi",
        width: int = 128,
        patch_size: int = 4,
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (4, 8, 16, 32),
        window: int = 8,
        uses_guide: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        channels, stride = width * 2 ** (len(depths) - 1), patch_size * 2 ** (len(depths) - 1)
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
            options={
                "width": width,
                "patch_size": patch_size,
                "depths": list(depths),
                "heads": list(heads),
                "window": window,
            },
        )
        self.input = TrunkInput(name, image_channels, 2, uses_guide=uses_guide, mean=mean, std=std)
        self.options |= self.input.options
        whole = SwinTransformer(
            patch_size=[patch_size] * 2,
            embed_dim=width,
            depths=list(depths),
            num_heads=list(heads),
            window_size=[window] * 2,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        )
        self.trunk = whole.features
        self.trunk[0][0] = nn.Conv2d(image_channels + uses_guide, width, patch_size, patch_size)

    @property
    def stage_shapes(self) -> tuple[StageShape, ...]:
        """One per stage."""
        width, side = int(self.options["width"]), int(self.options["patch_size"])
        return tuple(StageShape(width * 2**k, (side * 2**k,) * 2) for k in range(len(self.options["depths"])))

    def extract(self, x: Tensor) -> Features:
        """Features of (B, in_channels, H, W), H and W multiples of the stride."""
        dense = self.extract_stages(x)[-1]
        return Features(dense, dense)

    def extract_stages(self, x: Tensor) -> list[Tensor]:
        """The map of every stage; the last is ``dense``."""
        x, maps = self.input(x), []
        for number, layer in enumerate(self.trunk):
            for block in layer if number % 2 else [layer]:
                x = self.run(block, x)
            if number % 2:
                maps.append(x.movedim(-1, 1))
        return maps


register("swin_torchvision", dims=2)(TorchvisionSwin)
