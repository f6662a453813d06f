"""Slices that cannot be read are counted and named wherever their series is used, and series have one number each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from dicom_making import CR, MR, dataset, save, series, smooth
from frepa.checks.run import check_source
from frepa.datasets.catalogue.entry import read_entry
from frepa.datasets.catalogue.resolve import read_dataset
from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.readers.dicom.folders import series_numbers

VOLUME = smooth((7, 10, 8), low=0, high=900)


def spoilt(paths: list[Path], *which: int) -> list[str]:
    """Overwrite files from the first byte on; their names."""
    for number in which:
        paths[number].write_bytes(b"\0" * paths[number].stat().st_size)
    return [paths[number].name for number in which]


@pytest.mark.parametrize("name", ["IM{:04d}", "IM{:04d}.dcm", "1.2.840.{}"])
@pytest.mark.parametrize("dims", [2, 3])
def test_check_names_the_unreadable_ends_of_a_series(tmp_path: Path, name: str, dims: int) -> None:
    lost = spoilt(series(tmp_path / "s", VOLUME, name=name, Modality="MR", SOPClassUID=MR), 0, 6)
    (tmp_path / "s" / "README").write_text("no slice, and not named like one")
    source = open_source(tmp_path, dims=dims, canonical=False)
    findings = check_source(source).findings
    assert {Path(finding.file).name for finding in findings if finding.kind in ("damaged", "truncated")} == set(lost)
    told = [finding for finding in findings if finding.kind == "slices unreadable"]
    assert len(told) == 1
    assert told[0].message.startswith("2 files of this folder cannot be read")
    assert all(name in told[0].message for name in lost)
    assert not any("README" in finding.file for finding in findings)
    assert source.warnings[0].startswith("1 volume is incomplete")


def test_empty_and_missing_slices_count_too(tmp_path: Path) -> None:
    paths = series(tmp_path, VOLUME, Modality="MR", SOPClassUID=MR)
    paths[0].write_bytes(b"")
    paths[6].unlink()
    paths[6].symlink_to(tmp_path / "nowhere.dcm")
    source = open_source(tmp_path, dims=3)
    assert {(entry.path, entry.kind) for entry in source.skipped} == {("IM0000.dcm", "empty"), ("IM0006.dcm", "empty")}
    assert "IM0000.dcm, IM0006.dcm" in source.notes[0].reason


def test_a_series_named_by_its_folder_tells_of_lost_slices_and_gaps(tmp_path: Path) -> None:
    lost = spoilt(series(tmp_path / "s", VOLUME, name="IM{:04d}", Modality="MR", SOPClassUID=MR), 0, 3)
    (tmp_path / "m.csv").write_text("path\ns\n")
    source = open_source(tmp_path / "m.csv", dims=3)
    scan = source.read(0)
    assert scan.array.shape == (1, 5, 10, 8)
    assert [note.kind for note in scan.notes] == ["slices unreadable", "slices missing"]
    assert (
        f"2 files of this folder cannot be read, and their slices are not in the volume: {', '.join(lost)}"
        in scan.notes
    )
    assert len(source.notes) == 2
    assert "2 volumes" not in source.warnings[0] or "incomplete" in source.warnings[0]


def test_all_slices_lost_is_an_error_that_says_why(tmp_path: Path) -> None:
    spoilt(series(tmp_path / "s", VOLUME[:2], Modality="MR", SOPClassUID=MR), 0, 1)
    (tmp_path / "m.csv").write_text("path\ns\n")
    with pytest.raises(InputError, match="none of its 2 DICOM files can be read: not a DICOM file"):
        open_source(tmp_path / "m.csv", dims=3)


def test_gaps_in_numbers_where_there_are_no_positions(tmp_path: Path) -> None:
    for number in (1, 2, 3, 5, 6):
        data = dataset(VOLUME[number], InstanceNumber=number, SeriesInstanceUID="1.2", Modality="MR", SOPClassUID=MR)
        save(data, tmp_path / f"{number}.dcm")
    found = check_source(open_source(tmp_path, dims=3, canonical=False)).findings
    assert [finding.message for finding in found if finding.kind == "slices missing"] == [
        "1 slice is missing, by the numbers of the others"
    ]


def bare(path: Path) -> None:
    """Take preamble and meta group away."""
    content = path.read_bytes()
    path.write_bytes(content[content.index(b"\x08\x00", 132) :])


def three_series(folder: Path) -> dict[str, np.ndarray]:
    """A series without preambles, a single X-ray image, and two ordinary series, by UID."""
    volumes = {uid: smooth((4, 8, 8), seed, low=0, high=900) for seed, uid in enumerate(("1.2.1", "1.2.3", "1.2.4"))}
    for letter, (uid, volume) in zip("ABC", volumes.items()):
        paths = series(folder, volume, uid=uid, name=letter + "{}.dcm", Modality="MR", SOPClassUID=MR)
        if uid == "1.2.1":
            for path in paths:
                bare(path)
    save(dataset(VOLUME[0], SeriesInstanceUID="1.2.2", Modality="CR", SOPClassUID=CR), folder / "X.dcm")
    return volumes


def test_series_have_one_number_whoever_counts_them(tmp_path: Path) -> None:
    volumes = three_series(tmp_path / "s")
    assert series_numbers(tmp_path / "s") == {"1.2.1": 0, "1.2.2": 1, "1.2.3": 2, "1.2.4": 3}
    source = open_source(tmp_path, dims=3)
    names = [source.name(index) for index in range(len(source))]
    assert names == ["s#series=0", "s#series=2", "s#series=3"]
    for index, volume in enumerate(volumes.values()):
        named = open_source(f"{tmp_path}/{names[index]}", dims=3).read(0)
        assert np.array_equal(named.array[0], volume)
        assert np.array_equal(source.read(index).array[0], volume)
    # A part of the folder changes no number
    part = open_source(f"{tmp_path}/s/[BC]*.dcm", dims=3)
    assert [part.name(index) for index in range(2)] == [".#series=2", ".#series=3"]


def test_the_catalogue_names_the_series_that_is_opened(tmp_path: Path) -> None:
    volumes = three_series(tmp_path / "data" / "s")
    steps = [{"dicom_series": {"patterns": ["**/s/*.dcm"], "modality": ["MR"]}}]
    facts = yaml.safe_load((Path(read_entry.__code__.co_filename).parent / "data" / "hcc-tace-seg.yaml").read_text())
    entry_file = tmp_path / "hcc-tace-seg.yaml"
    entry_file.write_text(yaml.safe_dump({**facts, "read": steps}))
    records = read_dataset(read_entry(entry_file), tmp_path / "data").records
    found = dict(zip((fields["series_uid"] for fields in records.fields), records.columns["path"]))
    assert set(found) == set(volumes)
    for uid, place in found.items():
        assert np.array_equal(open_source(place, dims=3).read(0).array[0], volumes[uid])
