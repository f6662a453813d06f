"""Segmentation head: the reconstruction decoder's body with one output channel per class."""

from __future__ import annotations

from frepa.heads.decoder import DenseHead


class SegmentationHead(DenseHead):
    """Dense map to class scores: ``head(dense, size) -> logits (B, classes, *size)``.

    Args:
        channels: channels of the dense map.
        stride: pixels per position of the dense map: one int, or one per axis.
        classes: number of classes, background included.
        dims: 2 or 3.
        width: channels at full resolution; None is 16, or 8 for volumes that must be upsampled.
    """

    def __init__(
        self, channels: int, stride: int | tuple[int, ...], classes: int, dims: int, *, width: int | None = None
    ) -> None:
        super().__init__(channels, stride, classes, dims, width=width)
        self.classes = classes
