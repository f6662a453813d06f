"""npy and npz: axes, members, no pickle, no needless reading."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from frepa.images.readers import numpy_arrays
from frepa.images.readers.numpy_arrays import header, read
from frepa.images.scan import Header, UnreadableScan

RNG = np.random.default_rng(4)


def head(path: Path, member: str | None = None, dims: int = 2) -> Header:
    return header(path, member, dims=dims, max_pixels=10**6)


def record(path: Path, row: int = 0, member: str | None = None, dims: int = 2) -> np.ndarray:
    return read(path, member, row, dims=dims, max_pixels=10**6).array


@pytest.mark.parametrize(
    ("shape", "dims", "count", "channels", "pick"),
    [
        ((20, 30), 2, 1, 1, lambda a: a[None]),
        ((20, 30, 3), 2, 1, 3, lambda a: a.transpose(2, 0, 1)),
        ((3, 20, 30), 2, 1, 3, lambda a: a),
        ((1, 20, 30), 2, 1, 1, lambda a: a),
        ((7, 20, 30), 2, 7, 1, lambda a: a[[2]]),
        ((7, 20, 30, 3), 2, 7, 3, lambda a: a[2].transpose(2, 0, 1)),
        ((7, 3, 20, 30), 2, 7, 3, lambda a: a[2]),
        ((12, 20, 30), 3, 1, 1, lambda a: a[None]),
        ((7, 12, 20, 30), 3, 7, 1, lambda a: a[[2]]),
        ((3, 12, 20, 30), 3, 3, 1, lambda a: a[[2]]),
        ((7, 1, 12, 20, 30), 3, 7, 1, lambda a: a[2]),
    ],
)
def test_axes(tmp_path: Path, shape: tuple[int, ...], dims: int, count: int, channels: int, pick) -> None:
    array = RNG.integers(0, 4000, shape).astype(np.int16)
    np.save(tmp_path / "a.npy", array)
    found = head(tmp_path / "a.npy", dims=dims)
    assert (found.count, found.channels) == (count, channels)
    assert np.array_equal(record(tmp_path / "a.npy", 2 if count > 1 else 0, dims=dims), pick(array))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_members_stored_plainly_and_compressed(tmp_path: Path, save) -> None:
    train = RNG.integers(0, 256, (50, 8, 9), dtype=np.uint8)
    save(tmp_path / "a.npz", train_images=train, test_images=train[:5], train_labels=np.zeros((50, 1)))
    assert head(tmp_path / "a.npz", "train_images").count == 50
    for row in (0, 17, 49):
        assert np.array_equal(record(tmp_path / "a.npz", row, "train_images"), train[[row]])
    with pytest.raises(UnreadableScan, match=r"several arrays.*a\.npz#train_images"):
        head(tmp_path / "a.npz")
    with pytest.raises(UnreadableScan, match=r"no member 'val_images'.*test_images"):
        head(tmp_path / "a.npz", "val_images")


def test_three_grey_images_of_a_stack_are_not_one_of_colour(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 28, 3), np.uint8))
    assert head(tmp_path / "a.npz").count == 9
    assert record(tmp_path / "a.npz", 8).shape == (1, 28, 3)


def test_the_only_array_of_images_needs_no_name(tmp_path: Path) -> None:
    array = RNG.random((6, 8, 9), dtype=np.float32)
    np.savez(tmp_path / "a.npz", pictures=array, labels=np.arange(6))
    assert head(tmp_path / "a.npz").member == "pictures"
    assert np.array_equal(record(tmp_path / "a.npz", 5), array[[5]])


def test_a_member_is_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8))
    opened = []
    plain = numpy_arrays._member
    monkeypatch.setattr(numpy_arrays, "_member", lambda *a: (opened.append(1), plain(*a))[1])
    for row in range(40):
        record(tmp_path / "a.npz", row, "images")
    assert len(opened) == 1


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((4, 8, 8), np.uint8))
    assert record(tmp_path / "a.npz", 1, "images").max() == 0
    np.savez_compressed(tmp_path / "a.npz", images=RNG.integers(1, 99, (4, 8, 8), dtype=np.uint8))
    assert record(tmp_path / "a.npz", 1, "images").min() > 0


def test_memory_held_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_arrays, "CACHE_BYTES", 3000)
    for i in range(5):
        np.savez_compressed(tmp_path / f"{i}.npz", images=np.full((16, 8, 8), i, np.uint8))
    for i in [0, 1, 2, 3, 4, 0]:
        assert record(tmp_path / f"{i}.npz", 3, "images").max() == i
    assert sum(numpy_arrays._in_memory(kept) for kept, _ in numpy_arrays._CACHE.values()) <= 3000


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    array = np.empty((2, 8, 8), dtype=object)
    array[0, 0, 0] = Bomb()
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=array)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    for name, member in (("a.npy", None), ("a.npz", "images"), ("b.npy", None)):
        for call in (lambda n, m: head(tmp_path / n, m), lambda n, m: record(tmp_path / n, 0, m)):
            with pytest.raises(UnreadableScan):
                call(name, member)
    assert not (tmp_path / "ran").exists()


def test_claims_beyond_the_file_are_refused_before_allocation(tmp_path: Path) -> None:
    def lying(shape: tuple[int, ...]) -> bytes:
        np.save(tmp_path / "x.npy", np.zeros((10, 10), np.uint8))
        text = (tmp_path / "x.npy").read_bytes()
        old = b"(10, 10)"
        start = text.index(old)
        new = str(shape).encode()
        line = text[10:128].replace(old, new).rstrip()
        return text[:10] + line + b" " * (117 - len(line)) + b"\n" + text[128:] if start else b""

    (tmp_path / "bomb.npy").write_bytes(lying((10**6, 10**6)))
    with pytest.raises(UnreadableScan, match="1000000 x 1000000"):
        head(tmp_path / "bomb.npy")
    (tmp_path / "long.npy").write_bytes(lying((10**6, 30, 30)))
    with pytest.raises(UnreadableScan, match="shorter than its header"):
        record(tmp_path / "long.npy", 5)
    with zipfile.ZipFile(tmp_path / "long.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", lying((10**6, 30, 30)))
    with pytest.raises(UnreadableScan, match="more data than the file can hold"):
        record(tmp_path / "long.npz", 5, "images")


def test_damaged_files(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8))
    data = (tmp_path / "a.npz").read_bytes()
    middle = bytes(b ^ 255 for b in data[500:600])
    for broken in (data[:500], data[:500] + middle + data[600:], b"", b"nothing"):
        (tmp_path / "a.npz").write_bytes(broken)
        with pytest.raises(UnreadableScan):
            record(tmp_path / "a.npz", 1, "images")


def test_values_that_are_no_image(tmp_path: Path) -> None:
    np.save(tmp_path / "nan.npy", np.array([[1.0, np.inf], [0, 0]]))
    with pytest.raises(UnreadableScan, match="1 of 4 values are NaN or infinite"):
        record(tmp_path / "nan.npy")
    np.save(tmp_path / "complex.npy", np.ones((4, 4), complex))
    with pytest.raises(UnreadableScan, match="complex"):
        record(tmp_path / "complex.npy")
    np.save(tmp_path / "volume.npy", np.zeros((5, 6, 7, 8)))
    with pytest.raises(UnreadableScan, match="dims 3"):
        head(tmp_path / "volume.npy")
    np.save(tmp_path / "empty.npy", np.zeros((0, 6), np.uint8))
    with pytest.raises(UnreadableScan, match="nothing to read"):
        head(tmp_path / "empty.npy")


def test_big_endian_and_double_become_native(tmp_path: Path) -> None:
    array = RNG.integers(0, 60000, (6, 7)).astype(">u2")
    np.save(tmp_path / "a.npy", array)
    result = record(tmp_path / "a.npy")
    assert result.dtype.isnative
    assert np.array_equal(result[0], array)
    np.save(tmp_path / "b.npy", np.asfortranarray(RNG.random((6, 7))))
    assert record(tmp_path / "b.npy").dtype == np.float32
