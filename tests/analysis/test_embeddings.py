"""`frepa embed`: the vectors are the encoder's, the files say whose, and a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import tiny_encoders  # noqa: F401 (registers them)
from dicom_making import series
from frepa.analysis import embedding_files, embeddings
from frepa.cli import main
from frepa.encoders.files import load_encoder
from frepa.errors import InputError, Stopped
from frepa.images.files import FileSource
from frepa.verbs.embed import embed
from frepa.verbs.prepare import prepare
from tiny_runs import ENCODER, ENCODER3D, balls, read_rows

HOW = {"encoder": ENCODER, "image_size": 32, "num_workers": 0, "quiet": True}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images of 32 x 32 in folders of their classes, and a table that also knows patients and parts."""
    root = tmp_path_factory.mktemp("classes")
    rows = ["path,label,split,group"]
    for i in range(11):
        kind = ("bright", "dark")[i % 2]
        (root / kind).mkdir(exist_ok=True)
        Image.fromarray(balls((32, 32), i)[0]).save(root / kind / f"{i}.png")
        rows.append(f"{kind}/{i}.png,{kind},{('train', 'test')[i % 3 == 0]},Doe-{i // 2}")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return root


def read(out: Path) -> tuple[dict[str, np.ndarray], dict]:
    """What a parquet file holds, by Arrow alone: columns by name, and the facts."""
    table = parquet.read_table(out / "embeddings.parquet")
    facts = json.loads(table.schema.metadata[b"frepa"])
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            shape = facts["dense"] if name == "dense" else [column.type.list_size]
            columns[name] = column.flatten().to_numpy().reshape(len(table), *shape)
        else:
            columns[name] = np.array(column.to_pylist(), object)
    return columns, facts


def by_hand(path: Path, encoder: str = ENCODER) -> np.ndarray:
    """The encoder's map of an image of its own size, whose percentiles are 0 and 1."""
    values = np.asarray(Image.open(path), np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    image = torch.from_numpy(np.clip((values - low) / (high - low), 0, 1)[None, None].astype(np.float32))
    model = load_encoder(encoder).eval()
    with torch.no_grad():
        return model(model.prepare_input(image, model.make_guide(image))).dense[0].numpy()


def test_vectors_are_the_mean_of_the_map(classes, tmp_path) -> None:
    out = embed(str(classes), **HOW, out=str(tmp_path / "out"), dense="full")
    found, facts = read(out)
    assert found["embedding"].dtype == np.float32
    for name, vector, dense in zip(found["name"], found["embedding"], found["dense"]):
        expected = by_hand(classes / name)
        np.testing.assert_allclose(dense, expected, atol=1e-5)
        np.testing.assert_allclose(vector, expected.mean((1, 2)), atol=1e-5)
    assert len(found["name"]) == len(set(found["id"])) == 11
    assert found["label"].tolist() == [name.split("/")[0] for name in found["name"]]
    assert facts["encoder"]["weights"] == json.loads((out / "results.json").read_text())["encoder"]["weights"]
    assert len(facts["encoder"]["weights"]) == 32
    half = embed(str(classes), **HOW, out=str(tmp_path / "half"), dense="half")
    assert parquet.read_schema(half / "embeddings.parquet").field("dense").type == pa.list_(pa.float16(), 8 * 16 * 16)
    np.testing.assert_allclose(read(half)[0]["dense"], found["dense"], atol=2e-3)


def test_npz_holds_the_same(classes, tmp_path) -> None:
    found, _ = read(embed(str(classes), **HOW, out=str(tmp_path / "a"), dense="half"))
    out = embed(str(classes), **HOW, out=str(tmp_path / "b"), dense="half", format="npz")
    with np.load(out / "embeddings.npz", allow_pickle=False) as file:
        assert set(file.files) == {*found, "frepa"}
        for name, column in found.items():
            own = file[name].tolist()
            assert own == (column.tolist() if column.dtype != object else [value or "" for value in column])
        assert file["dense"].dtype == np.float16
        assert json.loads(str(file["frepa"]))["encoder"]["name"] == "tiny_for_tests"


def test_what_is_known_of_the_images_is_written(classes, tmp_path) -> None:
    out = embed(str(classes / "table.csv"), **HOW, out=str(tmp_path / "out"))
    found, _ = read(out)
    lines = {row["path"]: row for row in read_rows(classes / "table.csv")}
    people = [lines[name]["group"] for name in found["name"]]
    for name, label, split, group in zip(*(found[column] for column in ("name", "label", "split", "group"))):
        assert (label, split) == (lines[name]["label"], lines[name]["split"])
        assert {own for own, person in zip(found["group"], people) if person == lines[name]["group"]} == {group}
    assert len(set(found["group"])) == 6
    for path in out.iterdir():
        assert b"Doe-" not in path.read_bytes()
    scores = {row["score"]: row["value"] for row in out.scores.to_pylist()}
    assert set(scores) == {"nearest of the same class", "by chance"}
    assert "nearest of the same class" in out._repr_html_()
    # A store has the same patients under the same names, and no names of files.
    store = prepare(str(classes / "table.csv"), out=str(tmp_path / "store"), quiet=True, num_workers=0)
    packed, _ = read(embed(str(store), **HOW, out=str(tmp_path / "packed")))
    assert not any("dark" in name or "bright" in name for name in packed["name"])
    order = {row: i for i, row in enumerate(found["id"])}
    places = [order[row] for row in packed["id"]]
    assert sorted(places) == list(range(11))
    for column in ("label", "split", "group", "embedding"):
        np.testing.assert_array_equal(packed[column], found[column][places])


def test_volumes_whole_slice_by_slice_and_over_their_slices(tmp_path) -> None:
    (tmp_path / "scans").mkdir()
    for seed, depth in enumerate((4, 6)):
        volume = balls((depth, 16, 16), seed)[0]
        nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), tmp_path / "scans" / f"{seed}.nii.gz")
    how = {**HOW, "image_size": 16}
    slices, _ = read(embed(str(tmp_path / "scans"), **how, out=str(tmp_path / "2d")))
    assert slices["name"].tolist() == [f"0.nii.gz[{i}]" for i in range(4)] + [f"1.nii.gz[{i}]" for i in range(6)]
    page = (tmp_path / "2d/report.html").read_text()
    assert "Nearest neighbours" in page
    carried, _ = read(
        embed(str(tmp_path / "scans"), **{**how, "encoder": f"slices:{ENCODER},rounds=1,width=8,heads=2"},
              out=str(tmp_path / "carried"))
    )  # fmt: skip
    means = [slices["embedding"][:4].mean(0), slices["embedding"][4:].mean(0)]
    np.testing.assert_allclose(carried["embedding"], means, atol=1e-5)
    whole, _ = read(embed(str(tmp_path / "scans"), **{**how, "encoder": ENCODER3D}, out=str(tmp_path / "3d")))
    assert whole["name"].tolist() == ["0.nii.gz", "1.nii.gz"]
    assert whole["embedding"].shape == (2, 8)


def test_npz_of_medmnist_and_a_dicom_series(tmp_path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 5), ("val", 3), ("test", 4)):
        arrays[f"{part}_images"] = rng.integers(0, 255, (count, 20, 20), np.uint8)
        arrays[f"{part}_labels"] = np.arange(count).reshape(-1, 1) % 2
    np.savez(tmp_path / "med.npz", **arrays)
    found, _ = read(embed(str(tmp_path / "med.npz"), **HOW, out=str(tmp_path / "a")))
    assert found["split"].tolist() == ["train"] * 5 + ["val"] * 3 + ["test"] * 4
    assert found["label"].tolist() == [str(k % 2) for n in (5, 3, 4) for k in range(n)]
    series(tmp_path / "scan", rng.integers(0, 99, (4, 8, 8)).astype(np.int16), PatientID="A-4711")
    found, _ = read(embed(str(tmp_path / "scan"), **HOW, out=str(tmp_path / "b")))
    assert len(found["name"]) == 4
    assert len(set(found["group"])) == 1
    assert found["group"][0] is not None
    assert not any(b"A-4711" in path.read_bytes() for path in (tmp_path / "b").iterdir())


def test_unreadable_images_are_listed_and_left_out(classes, tmp_path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for seed, name in enumerate(["a.png", "c.png", "e.png"]):
        Image.fromarray(balls((32, 32), seed)[0]).save(folder / name)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "d.png").write_bytes(b"")
    out = embed(str(folder), **HOW, out=str(tmp_path / "out"), batch_size=1)
    assert read(out)[0]["name"].tolist() == ["a.png", "c.png", "e.png"]
    rows = {row["image"]: row["reason"] for row in read_rows(out / "skipped.csv")}
    assert set(rows) == {"b.png", "d.png"}
    assert all(rows.values())
    for name in "ace":
        (folder / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"none of the images can be read\. d\.png: empty file"):
        embed(str(folder), **HOW, out=str(tmp_path / "none"))


@pytest.mark.parametrize("format", ["parquet", "npz"])
def test_a_stopped_run_goes_on_where_it_was(classes, tmp_path, monkeypatch, format) -> None:
    """The file has the same bytes as one that was never stopped, and nothing is encoded twice."""
    how = {**HOW, "batch_size": 2, "format": format, "dense": "half"}
    whole = embed(str(classes), **how, out=str(tmp_path / "whole"))
    encode, seen = embeddings._Embedder.__call__, []

    def stopping(self, frames, dense):
        if len(seen) == 3:
            raise Stopped("stopped")
        seen.append(len(frames))
        return encode(self, frames, dense)

    monkeypatch.setattr(embedding_files, "_ROWS", 4)  # parts of two batches
    monkeypatch.setattr(embeddings._Embedder, "__call__", stopping)
    with pytest.raises(Stopped):
        embed(str(classes), **how, out=str(tmp_path / "out"))
    assert len(list((tmp_path / "out/parts").iterdir())) == 1
    with pytest.raises(InputError, match="Add --resume to continue it"):
        embed(str(classes), **how, out=str(tmp_path / "out"))
    with open(tmp_path / "out/done.jsonl", "a") as file:
        file.write('{"first": 4, "en')  # cut short by a kill
    monkeypatch.setattr(embeddings._Embedder, "__call__", lambda *args: (seen.append(len(args[1])), encode(*args))[1])
    seen.clear()
    monkeypatch.setattr(embedding_files, "_ROWS", 4096)
    out = embed(str(classes), **how, out=str(tmp_path / "out"), resume=True)
    assert seen == [2, 2, 2, 1]
    name = f"embeddings.{format}"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert (out / "report.html").read_bytes() == (whole / "report.html").read_bytes()
    assert not (out / "parts").exists()
    seen.clear()
    embed(str(classes), **how, out=str(tmp_path / "out"), resume=True)
    assert seen == []


def test_a_part_that_was_lost_is_made_again(classes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embedding_files, "_ROWS", 4)
    monkeypatch.setattr(embeddings, "write_page", lambda *args, **how: (_ for _ in ()).throw(Stopped("stopped")))
    with pytest.raises(Stopped):
        embed(str(classes), **HOW, out=str(tmp_path / "out"), batch_size=2)
    parts = sorted((tmp_path / "out/parts").iterdir())
    assert [part.stem for part in parts] == ["000000000", "000000004", "000000008"]
    parts[1].unlink()
    monkeypatch.undo()
    out = embed(str(classes), **HOW, out=str(tmp_path / "out"), batch_size=2, resume=True)
    whole = embed(str(classes), **HOW, out=str(tmp_path / "whole"), batch_size=2)
    assert (out / "embeddings.parquet").read_bytes() == (whole / "embeddings.parquet").read_bytes()
    assert not (out / "parts").exists()


def test_no_more_is_held_than_a_part(classes, tmp_path, monkeypatch) -> None:
    """However many images there are: what is read ahead, a batch, a part; and row groups no larger than a part."""
    monkeypatch.setattr(embedding_files, "_ROWS", 4)
    counts = {"read": 0, "done": 0}
    held = []
    reading, add = FileSource.read, embedding_files.Parts.add

    def counted(self, index):
        counts["read"] += 1
        return reading(self, index)

    def adding(self, end, table, unread):
        counts["done"] = end
        add(self, end, table, unread)
        held.append((counts["read"] - end, sum(len(waiting) for waiting in self._waiting)))

    monkeypatch.setattr(FileSource, "read", counted)
    monkeypatch.setattr(embedding_files.Parts, "add", adding)
    out = embed(str(classes), **{**HOW, "num_workers": 2}, out=str(tmp_path / "out"), batch_size=1)
    assert max(ahead for ahead, _ in held) <= 3
    assert max(waiting for _, waiting in held) < 4
    about = parquet.ParquetFile(out / "embeddings.parquet").metadata
    assert [about.row_group(i).num_rows for i in range(about.num_row_groups)] == [4, 4, 3]


def test_what_cannot_go_on_is_said(classes, tmp_path, monkeypatch, capsys) -> None:
    source = tmp_path / "images"
    source.mkdir()
    for seed in range(3):
        Image.fromarray(balls((32, 32), seed)[0]).save(source / f"{seed}.png")
    words = ["embed", str(source), f"--out={tmp_path / 'out'}", "--image-size=32", "--quiet", "--num-workers=0"]
    assert main([*words, f"--encoder={ENCODER}"]) == 0
    assert main([*words, f"--encoder={ENCODER},seed=3", "--resume"]) == 2
    assert "was begun with another encoder" in capsys.readouterr().err
    assert main([*words[:3], "--image-size=16", *words[4:], f"--encoder={ENCODER}", "--resume"]) == 2
    assert "image_size: was 32, now 16" in capsys.readouterr().err
    Image.fromarray(balls((32, 32), 9)[0]).save(source / "9.png")
    assert main([*words, f"--encoder={ENCODER}", "--resume"]) == 2
    assert "was begun with other images" in capsys.readouterr().err
    assert main([*words, f"--encoder={ENCODER}", "--overwrite"]) == 0
    assert len(read(tmp_path / "out")[0]["name"]) == 4


def test_wrong_input_is_said_in_plain_words(classes, tmp_path, monkeypatch) -> None:
    def words(source: Path = classes, **options: object) -> str:
        with pytest.raises(InputError) as error:
            embed(str(source), **{**HOW, **options}, out=str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "holds 2D images, and the encoder takes volumes" in words(encoder=ENCODER3D)
    assert "a slice transfer has no map of a volume" in words(encoder=f"slices:{ENCODER}", dense="half")
    assert "nowhere" in words(tmp_path / "nowhere")
    assert "--batch-size 0: expected 1 or more" in words(batch_size=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "--map tsne needs scikit-learn" in words(map="tsne")


def test_values_that_are_none_end_it(classes, tmp_path, monkeypatch) -> None:
    encode = embeddings._Embedder.__call__
    monkeypatch.setattr(
        embeddings._Embedder, "__call__", lambda *args: [None if x is None else x * 1e9 for x in encode(*args)]
    )
    with pytest.raises(InputError, match=r"--dense half: the map of bright/0\.png holds values above 65,504"):
        embed(str(classes), **HOW, out=str(tmp_path / "a"), dense="half")
    monkeypatch.setattr(
        embeddings._Embedder, "__call__", lambda *args: [None if x is None else x / 0 for x in encode(*args)]
    )
    with pytest.raises(InputError, match=r"what it makes of bright/0\.png is infinite or not a number"):
        embed(str(classes), **HOW, out=str(tmp_path / "b"))
