"""Video (.mp4, .avi, .mov, .mkv, .mpg, .wmv): every frame is an image. Needs the extra ``frepa[video]`` (PyAV).

PyAV is under the BSD licence; its wheels carry an FFmpeg with GPL encoders, which is why it is not installed by
default. Frames are RGB, or grey where all three colours are equal.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from frepa.images.guards import check_memory, reported
from frepa.images.readers.pixels import channels_first, check_size
from frepa.images.scan import Header, Scan, Trouble, UnreadableScan
from frepa.images.volumes import file_key

_OPEN = 4
_open: OrderedDict[Any, _Film] = OrderedDict()


def header(path: Path, member: str | None, *, dims: int, max_pixels: int) -> Header:
    """Size and number of frames; these are counted without decoding them."""
    film = _film(path, member, max_pixels)
    return Header(3, film.size, len(film.times))


def read(path: Path, member: str | None, row: int, *, dims: int, max_pixels: int) -> Scan:
    """Frame ``row``, ``(1 | 3, H, W)`` uint8."""
    film = _film(path, member, max_pixels)
    with reported(path, _told):
        return Scan(channels_first(film.frame(row)))


class _Film:
    """An open file that goes on from frame to frame, and seeks where the next one is not asked for."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        import av

        self._container = av.open(str(path))
        if not self._container.streams.video:
            raise UnreadableScan(str(path), "holds no video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"  # loader processes are the parallel ones
        self.size = (self._stream.height, self._stream.width)
        check_size(path, self.size, max_pixels)
        check_memory(path, 3 * self.size[0] * self.size[1])
        stamps = [packet.pts for packet in self._container.demux(self._stream) if packet.pts is not None]
        self.times = sorted(stamps)
        if not self.times:
            raise UnreadableScan(str(path), "holds no frames")
        self._frames: Iterator[Any] = iter(())
        self._next = -1
        self._path = path

    def frame(self, row: int) -> np.ndarray:
        """``(H, W, 3)`` uint8."""
        if row != self._next:
            self._container.seek(self.times[row], stream=self._stream, backward=True)
            self._frames = self._container.decode(self._stream)
        for frame in self._frames:
            if frame.pts is None or frame.pts >= self.times[row]:
                self._next = row + 1
                return frame.to_ndarray(format="rgb24")
        self._next = -1
        raise UnreadableScan(str(self._path), f"truncated: frame {row} cannot be decoded", kind="truncated")


def _film(path: Path, member: str | None, max_pixels: int) -> _Film:
    if member is not None:
        raise UnreadableScan(str(path), f"frames have numbers, not names; it has no member {member!r}")
    with reported(path, _told):
        key = file_key(path, max_pixels, os.getpid())  # a forked process must not share the open file
        if key not in _open:
            while len(_open) >= _OPEN:
                _open.popitem(last=False)
            _open[key] = _Film(path, max_pixels)
        _open.move_to_end(key)
        return _open[key]


def _told(error: Exception) -> tuple[str, Trouble]:
    if isinstance(error, ImportError):
        return "video needs PyAV; pip install 'frepa[video]'", "undecodable"
    return f"damaged or truncated video ({type(error).__name__})", "truncated"
