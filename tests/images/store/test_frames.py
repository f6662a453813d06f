"""Arrays to bytes and back, whole and in part, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from frepa.images.store.frames import DamagedRecord, pack, unpack, unpack_crop

RNG = np.random.default_rng(2)
TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64"]
SHAPES = [(1, 1, 1), (1, 5, 7), (3, 130, 517), (1, 4100, 30), (1, 1, 1, 1), (1, 70, 33, 130), (1, 20, 65, 64)]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_and_crop_are_what_was_packed(kind: str, shape: tuple[int, ...]) -> None:
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        array = RNG.normal(size=shape).astype(dtype)
    else:
        ends = np.iinfo(dtype)
        array = RNG.integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)
    array[:, : shape[1] // 2] = 0  # whole chunks of zeros are stored in another way
    packed = pack(array)
    assert pack(array).data == packed.data
    whole = unpack(packed.data, packed.chunks, shape, dtype)
    assert whole.dtype == dtype
    assert whole.flags.writeable
    assert np.array_equal(whole, array)
    for _ in range(5):
        start = [int(RNG.integers(n)) for n in shape[1:]]
        size = [int(RNG.integers(1, n - first + 1)) for n, first in zip(shape[1:], start)]
        cut = unpack_crop(memoryview(packed.data), packed.chunks, shape, dtype, start, size)
        assert np.array_equal(cut, array[(slice(None), *(slice(s, s + n) for s, n in zip(start, size)))])


def test_packing_waits_for_no_thread() -> None:
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "RUSAGE_THREAD"):
        pytest.skip("this system does not count what a thread waits")
    arrays = RNG.integers(0, 9, (50, 1, 64, 64), dtype=np.uint8)
    pack(arrays[0])
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    for array in arrays:
        packed = pack(array)
        unpack(packed.data, packed.chunks, array.shape, array.dtype)
    # A thread that is made and ended is waited for at least once
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < len(arrays) / 2


def test_real_images_shrink(shared_data) -> None:
    from frepa.datasets.opening import open_source

    source = open_source(shared_data / "BrainMR2D_unlabeled")
    arrays = [source.read(i).array for i in range(0, len(source), 100)]
    assert sum(len(pack(a).data) for a in arrays) < 0.7 * sum(a.nbytes for a in arrays)


def test_a_crop_looks_at_its_own_chunks_only() -> None:
    array = RNG.integers(0, 1000, (1, 128, 128, 128), dtype=np.int16)
    packed = pack(array)
    assert packed.chunks == 8
    spoilt = bytearray(packed.data)
    spoilt[len(spoilt) // 16] ^= 0x10  # in the first of eight chunks of equal length
    far = unpack_crop(spoilt, 8, array.shape, array.dtype, (64, 64, 64), (64, 64, 64))
    assert np.array_equal(far, array[:, 64:, 64:, 64:])
    with pytest.raises(DamagedRecord, match="chunk 0"):
        unpack_crop(spoilt, 8, array.shape, array.dtype, (0, 0, 0), (64, 64, 64))
    with pytest.raises(DamagedRecord, match="chunk 0"):
        unpack_crop(spoilt, 8, array.shape, array.dtype, (63, 63, 63), (2, 2, 2))


def test_any_changed_byte_is_noticed_by_a_crop_of_everything() -> None:
    array = RNG.integers(0, 9, (1, 66, 40, 40), dtype=np.int16)
    packed = pack(array)
    ends = range(len(packed.data) - 60, len(packed.data))
    for place in [*range(300), *ends, *RNG.integers(0, len(packed.data), 100).tolist()]:
        spoilt = bytearray(packed.data)
        spoilt[place] ^= 1 << int(RNG.integers(8))
        with pytest.raises(DamagedRecord):
            unpack_crop(spoilt, packed.chunks, array.shape, array.dtype, (0, 0, 0), (66, 40, 40))


def test_another_array_than_the_index_says() -> None:
    packed = pack(np.zeros((1, 8, 9), np.uint8))
    with pytest.raises(DamagedRecord, match="another array"):
        unpack(packed.data, packed.chunks, (1, 9, 8), np.dtype(np.uint8))
    with pytest.raises(DamagedRecord, match="another array"):
        unpack(packed.data, packed.chunks, (1, 8, 9), np.dtype(np.int8))
    with pytest.raises(DamagedRecord):
        unpack(b"no array at all", 1, (1, 8, 9), np.dtype(np.uint8))
