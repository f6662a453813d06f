"""Reading images for a detector: one that turns out to be broken is listed and left out, and the run goes on."""

from __future__ import annotations

from frepa.downstream.detection.data import DetectionData, DetectionImage
from frepa.images.intensity import Window
from frepa.images.scan import Skipped, UnreadableScan


class Reading:
    """Reads the rows of a set; headers were looked at before, pixels are met here first.

    Attributes:
        data: the set.
        unreadable: what could not be read, by row.
    """

    def __init__(self, data: DetectionData, window: Window = None) -> None:
        self.data = data
        self.unreadable: dict[int, Skipped] = {}
        self._window = window

    def __call__(self, row: int) -> DetectionImage | None:
        """The image and its boxes; None where the file is broken, which is noted."""
        try:
            return self.data.read(row, self._window)
        except UnreadableScan as error:
            self.unreadable[row] = error.skipped(self.data.name(row))
            return None
