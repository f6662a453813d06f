"""Long lists of DICOM files: how often headers and pixels are read, and that nothing else follows from it."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicom_making import series, smooth
from frepa.datasets.opening import open_source
from frepa.images.intensity import bounds
from frepa.images.readers.dicom import described, opening, pixels, reader
from frepa.images.scan import UnreadableScan

SHUFFLED = (3, 0, 5, 1, 4, 2)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was given to pydicom, by name."""
    counts: Counter[str] = Counter()
    read_dataset = opening.read_dataset

    def counted(path, tags, **options):  # type: ignore[no-untyped-def]
        counts[path.name] += 1
        return read_dataset(path, tags, **options)

    for module in (opening, pixels):
        monkeypatch.setattr(module, "read_dataset", counted)
    return counts


def test_each_file_of_a_series_is_parsed_when_it_is_opened_and_once_more_for_its_pixels(
    tmp_path: Path, parsed: Counter[str]
) -> None:
    volume = smooth((6, 12, 9))
    series(tmp_path, volume, order=SHUFFLED)
    source = open_source(tmp_path, dims=2)
    limits = set()
    for place in range(6):
        scan = source.read(place)
        limits.add(bounds(scan))  # of the whole volume
        assert np.array_equal(np.sort(scan.array.reshape(-1)), np.sort(volume[place].reshape(-1)))
    assert sorted(parsed.values()) == [2] * 6
    assert limits == {tuple(np.percentile(volume, (0.5, 99.5)).tolist())}


def test_what_was_learnt_when_a_series_was_opened_is_what_its_headers_say(tmp_path: Path) -> None:
    series(tmp_path, smooth((6, 12, 9)), order=SHUFFLED, PatientID="somebody", shift=(0.0, 0.3, 0.0))
    source = open_source(tmp_path, dims=2)
    learnt = [source.read(place) for place in range(6)]
    described._known.clear()
    described._described.cache_clear()
    anew = [source.read(place) for place in range(6)]
    for one, other in zip(learnt, anew):
        assert np.array_equal(one.array, other.array)
        assert np.array_equal(one.affine, other.affine)
        for name in ("spacing", "modality", "unit", "group", "padding", "notes", "id"):
            assert getattr(one, name) == getattr(other, name), name


def test_a_series_that_changed_since_it_was_opened_is_read_anew_and_refused(tmp_path: Path) -> None:
    paths = series(tmp_path, smooth((4, 12, 9)))
    source = open_source(tmp_path, dims=2)
    data = pydicom.dcmread(paths[0])
    data.ImagePositionPatient = [0.0, 0.0, 500.0]
    data.ImageOrientationPatient = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]
    data.save_as(paths[0])
    os.utime(paths[0], (1, 1))
    with pytest.raises(UnreadableScan, match="not what it was when the source was opened"):
        source.read(0)


def test_a_slice_that_changed_after_its_volumes_statistics_is_read_as_it_is_now(tmp_path: Path) -> None:
    paths = series(tmp_path, smooth((4, 12, 9)))
    source = open_source(tmp_path, dims=2)
    bounds(source.read(0))
    data = pydicom.dcmread(paths[2])
    data.PixelData = np.full((12, 9), 77, np.int16).tobytes()
    data.save_as(paths[2])
    os.utime(paths[2], (1, 1))
    assert np.unique(source.read(2).array).tolist() == [77]


def test_slices_that_are_held_go_when_they_were_read(tmp_path: Path) -> None:
    series(tmp_path, smooth((4, 12, 9)))
    source = open_source(tmp_path, dims=2)
    scans = [source.read(place) for place in range(4) if bounds(source.read(place))]
    assert all(scan.array.base is None or scan.array.base.nbytes == scan.array.nbytes for scan in scans)
    assert len(reader._held) <= 1  # the first was read before they were held


def test_threads_may_read_the_slices_of_a_volume_at_the_same_time(tmp_path: Path) -> None:
    volume = smooth((8, 12, 9))
    series(tmp_path, volume)
    source = open_source(tmp_path, dims=2)

    def read(place: int) -> tuple[int, np.ndarray]:
        scan = source.read(place % 8)
        bounds(scan)
        return place % 8, scan.array

    with ThreadPoolExecutor(8) as pool:
        for place, array in pool.map(read, range(200)):
            assert np.array_equal(np.sort(array.reshape(-1)), np.sort(volume[place].reshape(-1)))
