"""Training crops whose frozen maps are computed once: more steps of the head then cost the head alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frepa.downstream.crops import CaseCache, CropPlan, CropStream, draw_crops
from frepa.downstream.segmentation.model import Segmenter
from frepa.images.sampling import SampleStream
from frepa.machine import memory_of

# Memory for maps, as a share of that of the device they are kept on.
_SHARE = 0.1
# A pool of fewer passes over the images would show the head too few places, flips and turns.
_FEWEST_EPOCHS = 4


class CropPool:
    """Crops of the run's positions, of which the first ``size`` are kept with their maps and drawn again and again.

    A crop of the pool is one place in one image, flipped and turned as it was drawn. Where memory lasts for the whole
    run every crop is new; where it does not even last for four passes over the images, and where the encoder is tuned,
    nothing is kept (``size`` None), and every crop passes through the encoder.

    Args:
        total: crops the run takes in all.
    """

    def __init__(
        self, segmenter: Segmenter, cache: CaseCache, stream: CropStream, plan: CropPlan, *, total: int
    ) -> None:
        self._segmenter, self._cache, self._stream, self._plan = segmenter, cache, stream, plan
        self._kept: dict[int, tuple[list[Tensor], Tensor, Tensor]] = {}
        self._total = total
        self.size: int | None = None
        if segmenter.tuning is not None:
            return
        first = self._encode([0])[0]
        bytes_ = sum(item.nbytes for item in (*first[0], first[1], first[2]))
        room = int(_SHARE * memory_of(segmenter.device)) // max(bytes_, 1)
        if room >= min(total, _FEWEST_EPOCHS * stream.length):
            self.size = min(total, room)
            self._kept[0] = first
            self._order = SampleStream(self.size, plan.seed)

    def batch(self, positions: Sequence[int], *, following: bool) -> tuple[list[Tensor], Tensor, Tensor]:
        """Maps, classes (B, *crop) and valid (B, *crop) of the crops at these positions of the run.

        ``following``: the next positions are read ahead.
        """
        if following:
            count = len(positions)
            after = [at for at in self._drawn([at + count for at in positions]) if at not in self._kept]
            self._cache.ahead(self._stream.cases(after))
        drawn = self._drawn(positions)
        missing = [at for at in dict.fromkeys(drawn) if at not in self._kept]
        fresh = dict(zip(missing, self._encode(missing))) if missing else {}
        if self.size is not None:
            self._kept |= fresh
        rows = [fresh[at] if at in fresh else self._kept[at] for at in drawn]
        maps = [torch.stack(each) for each in zip(*(row[0] for row in rows))]
        return maps, torch.stack([row[1] for row in rows]).float(), torch.stack([row[2] for row in rows])

    def _drawn(self, positions: Sequence[int]) -> list[int]:
        if self.size is None or self.size == self._total:
            return list(positions)
        return self._order.at(positions).tolist()

    def _encode(self, positions: Sequence[int]) -> list[tuple[list[Tensor], Tensor, Tensor]]:
        cases = [self._cache[index] for index in self._stream.cases(positions)]
        crops = draw_crops(cases, positions, self._plan)
        prepare = self._segmenter.encoder.prepare_input
        inputs = torch.cat([prepare(image[None], guide[None]) for image, guide in zip(crops.image, crops.guide)])
        maps = self._segmenter.read(inputs)
        return [
            ([item[row].clone() for item in maps], crops.classes[row].to(torch.uint8), crops.valid[row].clone())
            for row in range(len(positions))
        ]
