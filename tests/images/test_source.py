"""What a folder, glob, file or manifest holds, and what is said when it holds nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from frepa.datasets.opening import open_source
from frepa.errors import InputError
from frepa.images.scan import UnreadableScan

RNG = np.random.default_rng(5)


def save(path: Path, shape: tuple[int, ...] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "scans"
    for name in ("b/2.png", "b/10.png", "a.jpg", "c/deep/er/x.bmp", "Z.PNG"):
        save(root / name)
    for name in (".hidden.png", "__MACOSX/a.png", ".git/b.png", "b/._2.png"):
        save(root / name)
    (root / "notes.txt").write_text("nothing")
    (root / "b" / "empty.png").touch()
    return root


def names(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_folder_is_read_in_one_order_without_hidden_files(folder: Path) -> None:
    source = open_source(folder)
    assert names(source) == ["Z.PNG", "a.jpg", "b/10.png", "b/2.png", "c/deep/er/x.bmp"]
    assert [(entry.path, entry.reason) for entry in source.skipped] == [("b/empty.png", "empty file (0 bytes)")]
    assert np.array_equal(source.read(2).array[0], np.asarray(Image.open(folder / "b" / "10.png")))


def test_linked_folders_are_followed_but_not_in_circles(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "y.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "c" / "up").symlink_to(folder)
    assert names(open_source(folder))[-2:] == ["c/deep/er/x.bmp", "link/y.png"]


def test_glob_and_single_file(folder: Path) -> None:
    assert names(open_source(f"{folder}/**/*.png")) == ["b/10.png", "b/2.png"]
    assert names(open_source(f"{folder}/[bc]")) == ["b/10.png", "b/2.png", "c/deep/er/x.bmp"]
    assert names(open_source(folder / "a.jpg")) == ["a.jpg"]


def test_members_are_records(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez_compressed(tmp_path / "m.npz", before=images, after=images[:3])
    source = open_source(f"{tmp_path}/m.npz#before")
    assert len(source) == 30
    assert source.name(29) == "m.npz#before[29]"
    assert np.array_equal(source.read(29).array, images[[29]])
    with pytest.raises(InputError, match="several arrays"):
        open_source(tmp_path / "m.npz")
    with pytest.raises(InputError, match="no member 'x'"):
        open_source(f"{tmp_path}/m.npz#x")


def test_a_mixed_folder_numbers_records_through(tmp_path: Path) -> None:
    stack = RNG.integers(0, 256, (4, 12, 10), dtype=np.uint8)
    np.save(tmp_path / "b.npy", stack)
    save(tmp_path / "a.png")
    save(tmp_path / "c.png")
    source = open_source(tmp_path)
    assert names(source) == ["a.png", "b.npy[0]", "b.npy[1]", "b.npy[2]", "b.npy[3]", "c.png"]
    assert np.array_equal(source.read(3).array, stack[[2]])
    assert source.read(5).size == (12, 10)
    with pytest.raises(IndexError):
        source.read(6)


def test_dims_choose_the_files(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    np.save(tmp_path / "v.npy", RNG.random((2, 5, 6, 7)))
    tifffile.imwrite(tmp_path / "t.tif", np.zeros((5, 6, 7), np.uint8), photometric="minisblack")
    assert names(open_source(tmp_path, dims=3)) == ["t.tif", "v.npy[0]", "v.npy[1]"]
    with pytest.raises(InputError, match="dims is 4"):
        open_source(tmp_path, dims=4)


def write_manifest(folder: Path, kind: str, columns: dict[str, list]) -> Path:
    path = folder / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values()))]
        path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifest_columns_follow_the_records(folder: Path, kind: str) -> None:
    np.savez(folder / "m.npz", train_images=RNG.integers(0, 256, (3, 8, 8), dtype=np.uint8))
    manifest = write_manifest(
        folder,
        kind,
        {
            "path": ["b/2.png", "m.npz#train_images", "missing.png", "a.jpg", "Z.PNG", "v.nii"],
            "label": [1, 0, 1, 2, 1, 1],
            "group": ["anna", "", "bob", "anna", "", "bob"],
            "modality": ["xray", "ct", "xray", "mr", "ct", "mr"],
            "dim": ["2D", "npz", "2", "2d", " 2D ", "3D"],
        },
    )
    source = open_source(manifest)
    assert names(source) == ["b/2.png", *(f"m.npz#train_images[{i}]" for i in range(3)), "a.jpg", "Z.PNG"]
    assert [(entry.path, entry.reason) for entry in source.skipped] == [("missing.png", "file not found")]
    assert source.aside == "1 row is left out, whose column dim says 3D; --dims 3 reads such rows."
    assert source.labels is not None
    assert source.labels.tolist() == ["1", "0", "0", "0", "2", "1"]
    assert source.modalities == ("ct", "mr", "xray")
    assert source.modality_codes is not None
    assert source.modality_codes.tolist() == [2, 0, 0, 0, 1, 0]
    assert source.group_codes is not None
    codes = source.group_codes.tolist()
    assert codes[0] == codes[4]  # the same patient
    assert len(set(codes)) == 5  # an empty cell is a group of its own, for every record
    scan, other, unknown = source.read(0), source.read(4), source.read(1)
    assert scan.group == other.group
    assert scan.group is not None
    assert "anna" not in scan.group
    assert unknown.group is None
    assert scan.modality == "xray"


def test_ids_are_stable_and_anonymous(folder: Path) -> None:
    source = open_source(folder)
    ids = [source.read(i).id for i in range(len(source))]
    assert len(set(ids)) == len(ids)
    assert all(set(text) <= set("0123456789abcdef") and len(text) == 16 for text in ids)
    assert ids == [open_source(folder).read(i).id for i in range(len(source))]


def test_fingerprint_tells_sources_apart(folder: Path) -> None:
    first = open_source(folder).fingerprint
    assert first == open_source(str(folder)).fingerprint
    assert first == open_source(folder, max_pixels=10**6).fingerprint
    selected = open_source(folder).select([0, 1]).fingerprint
    assert selected != open_source(folder).select([1, 0]).fingerprint != first
    manifests = [
        open_source(write_manifest(folder, "csv", {"path": ["a.jpg", "Z.PNG"], "label": labels})).fingerprint
        for labels in (["x", "y"], ["y", "x"])
    ]
    assert manifests[0] != manifests[1]
    (folder / "a.jpg").rename(folder / "a2.jpg")
    assert open_source(folder).fingerprint != first


def test_a_selection_is_a_source(folder: Path) -> None:
    manifest = write_manifest(folder, "csv", {"path": ["a.jpg", "Z.PNG", "b/2.png"], "label": ["x", "y", "z"]})
    part = open_source(manifest).select([2, 0])
    assert names(part) == ["b/2.png", "a.jpg"]
    assert part.labels is not None
    assert part.labels.tolist() == ["z", "x"]
    assert part.read(1).size == (12, 10)
    assert names(part.select([1])) == ["a.jpg"]
    with pytest.raises(IndexError):
        part.select([2])


def test_a_source_travels_to_other_processes(folder: Path) -> None:
    source = open_source(folder)
    there = pickle.loads(pickle.dumps(source))
    assert names(there) == names(source)
    assert np.array_equal(there.read(0).array, source.read(0).array)
    error = pickle.loads(pickle.dumps(UnreadableScan("a.png", "damaged")))
    assert (error.path, error.reason) == ("a.png", "damaged")


def test_channels_of_a_source(folder: Path) -> None:
    assert open_source(folder).channels == 1
    save(folder / "d.png", (12, 10, 3))
    source = open_source(folder)
    assert source.channels == 3
    assert source.select([0]).channels == 3


def test_errors_name_the_record_within_the_source(folder: Path) -> None:
    (folder / "b" / "2.png").write_bytes(b"broken")
    source = open_source(folder)
    with pytest.raises(UnreadableScan) as caught:
        source.read(names(source).index("b/2.png"))
    assert caught.value.path == "b/2.png"
    assert str(folder) not in str(caught.value)
    source.add_skipped([caught.value.skipped(), caught.value.skipped()])
    assert [entry.path for entry in source.skipped] == ["b/empty.png", "b/2.png"]


def test_limit_of_pixels_is_handed_down(folder: Path) -> None:
    with pytest.raises(UnreadableScan, match="more than the limit of 100"):
        open_source(folder, max_pixels=100).read(0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scams", "Did you mean scans"),
        ("no/such/folder", "does not exist"),
        ("scans/*.tiff", "No file matches"),
        ("scans/notes.txt", "no reader for this ending"),
        ("scans/b/empty.png", "0 bytes"),
        ("other.csv", "does not exist"),
    ],
)
def test_wrong_sources_are_explained(folder: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_source(folder.parent / text)


def test_folders_and_manifests_without_images_are_explained(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.csv").write_text("file,label\na.png,1\n")
    with pytest.raises(InputError, match="No 2D image found"):
        open_source(tmp_path / "x")
    with pytest.raises(InputError, match="no column 'path'; its columns are file, label"):
        open_source(tmp_path / "x" / "a.csv")
    (tmp_path / "x" / "b.csv").write_text("path\n")
    with pytest.raises(InputError, match="no rows"):
        open_source(tmp_path / "x" / "b.csv")
    (tmp_path / "x" / "c.csv").write_text("path,dim\na.png,3D\n")
    with pytest.raises(InputError, match="Use dims 3"):
        open_source(tmp_path / "x" / "c.csv")
    (tmp_path / "x" / "d.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="cannot be read"):
        open_source(tmp_path / "x" / "d.parquet")
    (tmp_path / "x" / "e.csv").write_text("path\na.png\nb.png\n,\n".replace(",", ""))
    with pytest.raises(InputError, match="None of the 2 files"):
        open_source(tmp_path / "x" / "e.csv")


def test_rows_of_every_kind_are_listed_as_if_each_were_looked_at_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(folder / "many.npz", images=RNG.integers(0, 255, (3, 8, 8), dtype=np.uint8))
    np.save(folder / "one.npy", RNG.integers(0, 255, (8, 8), dtype=np.uint8))
    save(folder / "ü b.png")
    (folder / "folder.png").mkdir()
    rows = ["a.jpg", "b/2.png", " b/10.png ", "", "lost.png", "Z.PNG", "./a.jpg", "b//2.png", "c/../a.jpg"]
    rows += [
        str(folder / "a.jpg"),
        "many.npz",
        "many.npz#images[1]",
        "one.npy",
        "ü b.png",
        ".hidden.png",
        "b/empty.png",
    ]
    rows += ["folder.png", "notes.txt", "a.jpg", "b/2.png/", "no\x00file.png", "a.jpg"]
    modalities = [f" m{i % 3}" if i % 4 else "" for i in range(len(rows))]
    manifest = folder / "m.parquet"
    pq.write_table(pa.table({"path": rows, "modality": modalities}), manifest)
    source = open_source(manifest)
    monkeypatch.setattr("frepa.images.finding.plain_endings", lambda dims: {})
    alone = open_source(manifest)
    assert names(source) == names(alone)
    assert source.skipped == alone.skipped
    assert source.fingerprint == alone.fingerprint
    assert source.modalities == alone.modalities
    assert list(source.modality_codes) == list(alone.modality_codes)
    assert list(source.listing()) == list(alone.listing())
    for index in range(len(source)):
        one, other = source.read(index), alone.read(index)
        assert np.array_equal(one.array, other.array)
        assert (one.id, one.modality) == (other.id, other.modality)
    assert len(source) == 17
    assert {entry.path for entry in source.skipped} >= {"lost.png", "(row 4)", "b/empty.png", "notes.txt"}


def test_real_manifest(shared_data: Path) -> None:
    source = open_source(shared_data / "pretrain_manifest.csv")
    assert len(source) == 8507  # 3,799 files and 4,708 images of one npz
    assert not source.skipped
    assert source.modality_codes is not None
    counts = dict(zip(source.modalities, np.bincount(source.modality_codes).tolist()))
    assert counts["xray_28px"] == 4708
    assert counts["octa"] == 139
    assert counts["fundus"] == 40
    for code in range(len(source.modalities)):
        scan = source.read(int(np.flatnonzero(source.modality_codes == code)[0]))
        assert scan.modality == source.modalities[code]
        assert scan.array.shape[0] in (1, 3)
