"""Video frames against the arrays they were written from, and files that are none. PyAV is an extra: frepa[video]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.scan import UnreadableScan


def write(path: Path, frames: np.ndarray) -> None:
    """Lossless (FFV1), a key frame every fifth frame, ``(T, H, W, 3)`` uint8."""
    av = pytest.importorskip("av", reason="video needs the extra frepa[video]")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = "bgr0", 5
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, "rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())


def test_every_frame_is_an_image_in_any_order(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (17, 48, 64, 3), dtype=np.uint8)
    frames[3] = frames[3, ..., :1]  # grey: three equal colours
    write(tmp_path / "us.mkv", frames)
    source = open_source(tmp_path)
    assert len(source) == 17
    assert source.header(0).size == (48, 64)
    for index in (0, 1, 2, 9, 16, 4, 5, 3, 0):
        expected = np.moveaxis(frames[index], -1, 0)
        array = source.read(index).array
        assert np.array_equal(array, expected[:1] if index == 3 else expected), index
    assert source.name(4) == "us.mkv[4]"


def test_truncated_video_is_named(tmp_path: Path) -> None:
    write(tmp_path / "us.mkv", np.random.default_rng(0).integers(0, 256, (17, 48, 64, 3), dtype=np.uint8))
    whole = (tmp_path / "us.mkv").read_bytes()
    (tmp_path / "us.mkv").write_bytes(whole[: len(whole) // 2])
    source = open_source(tmp_path)  # the frames that are there
    assert 3 < len(source) < 17
    assert source.read(2).array.shape == (3, 48, 64)
    (tmp_path / "us.mkv").write_bytes(whole[:100])
    with pytest.raises(InputError, match="video"):
        open_source(tmp_path)


def test_without_the_extra_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"anything")
    from frepa.images.readers import video

    with pytest.raises(UnreadableScan, match=r"pip install 'frepa\[video\]'"):
        video.header(tmp_path / "a.mp4", None, dims=2, max_pixels=2**28)
