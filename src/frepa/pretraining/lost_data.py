"""A source that is lost while a run trains: seen by the share of samples that can no longer be read."""

from __future__ import annotations

from collections import deque

#: Samples looked back on, and how many in a row are enough whatever the share.
WINDOW, IN_A_ROW = 200, 20


class LostData:
    """Counts what could not be read among the last samples of this process.

    Args:
        share: of the window that may be unreadable, in [0, 1]; 1 never ends a run.
        batch: samples this process draws at once; the window and the row are never shorter.
        processes: over which the window is spread.
    """

    def __init__(self, share: float, batch: int, processes: int = 1) -> None:
        self.share = share
        self.window, self.in_a_row = max(WINDOW // processes, batch), max(IN_A_ROW, batch)
        self._seen: deque[bool] = deque(maxlen=self.window)
        self._row = 0
        self._first = ""

    def saw(self, read: int, unreadable: list[str]) -> str:
        """Add a batch; returns why the run has to end, or nothing.

        Args:
            read: samples that were there.
            unreadable: name and reason of each that was not.
        """
        self._seen.extend([False] * read + [True] * len(unreadable))
        self._row = 0 if read else self._row + len(unreadable)
        if unreadable:
            self._first = self._first or unreadable[0]
        elif not any(self._seen):
            self._first = ""
        lost = sum(self._seen)
        if self.share >= 1 or (lost <= self.share * self.window and self._row < self.in_a_row):
            return ""
        return (
            f"{lost} of the last {len(self._seen)} samples could not be read, and {self.share:.0%} are allowed: the "
            f"source may be gone. The first of them, {self._first}"
        )
