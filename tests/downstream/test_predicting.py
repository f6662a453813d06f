"""`frepa predict` and `load_head`: what was trained is put on new scans, and lies on them."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from dicom_making import AXIAL, CORONAL, CR, SAGITTAL, dataset, save, series
from frepa.cli import main
from frepa.datasets.opening import open_source
from frepa.downstream.segmentation.model import Segmenter
from frepa.downstream.trained import Answer, TrainedHead, load_head
from frepa.errors import InputError, Stopped
from frepa.images.files import FileSource
from frepa.verbs.predict import predict
from tiny_runs import balls, classifying, detecting, read_rows, speckles, threshold

OBLIQUE = [0.8, 0.6, 0.0, -0.6, 0.8, 0.0, 0.0, 0.0, 1.0]


def same_grid(one: sitk.Image, other: sitk.Image) -> None:
    assert one.GetSize() == other.GetSize()
    np.testing.assert_allclose(one.GetSpacing(), other.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(one.GetOrigin(), other.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(one.GetDirection(), other.GetDirection(), atol=1e-5)


def shown_in_a_notebook(found: Answer, *words: str) -> None:
    """The picture and the line of the table; and in a terminal no arrays."""
    page = found._repr_html_()
    data = re.search("data:image/png;base64,([^']*)'", page)
    assert data
    assert Image.open(io.BytesIO(base64.b64decode(data[1]))).size[0] > 100
    rows = dict(re.findall("<tr><td>([^<]*)</td><td[^>]*>([^<]*)</td></tr>", page))
    assert list(rows) == list(found.row)
    assert len(repr(found)) < 200
    for word in words:
        assert word in repr(found)


@pytest.mark.parametrize(
    ("ending", "direction", "spacing"),
    [
        ("nii.gz", [1, 0, 0, 0, 1, 0, 0, 0, 1], (1.0, 1.0, 1.0)),
        ("nii.gz", OBLIQUE, (0.7, 0.7, 5.0)),
        ("nii", [-1, 0, 0, 0, 1, 0, 0, 0, -1], (0.5, 2.0, 1.0)),  # flipped
        ("mha", [0, 0, 1, 1, 0, 0, 0, 1, 0], (3.0, 0.4, 0.9)),  # axes exchanged
        ("nrrd", OBLIQUE, (0.3, 1.1, 2.0)),
    ],
)
def test_a_mask_lies_on_the_grid_of_its_volume(solid, tmp_path, monkeypatch, ending, direction, spacing) -> None:
    monkeypatch.setattr(Segmenter, "predict", threshold)
    image = sitk.GetImageFromArray(speckles((6, 9, 11)))
    image.SetSpacing(spacing)
    image.SetOrigin((-31.5, 12.25, 800.0))
    image.SetDirection([float(value) for value in direction])
    path = tmp_path / f"scan.{ending}"
    sitk.WriteImage(image[2:, 1:, :], str(path))  # cropped: the origin moves
    out = predict(str(solid), [str(path)], out=str(tmp_path / "out"), quiet=True, probabilities=True)
    mask, scan = sitk.ReadImage(str(out / "masks/scan.nii.gz")), sitk.ReadImage(str(path))
    same_grid(mask, scan)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(scan) > 50)
    maps = sitk.ReadImage(str(out / "probabilities/scan.nii.gz"))
    assert maps.GetDimension() == 4
    np.testing.assert_array_equal(sitk.GetArrayFromImage(maps)[1], sitk.GetArrayFromImage(scan) > 50)
    (row,) = read_rows(out / "predictions.csv")
    assert int(row["pixels_1"]) == int((sitk.GetArrayFromImage(scan) > 50).sum())
    assert float(row["ml_1"]) == pytest.approx(int(row["pixels_1"]) * np.prod(spacing) / 1000)


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, (0.8, 0.6, 0, 0, 0, -1)])
def test_a_mask_lies_on_its_dicom_series_in_3d_and_on_its_slices_in_2d(
    solid, flat, tmp_path, monkeypatch, orientation
) -> None:
    monkeypatch.setattr(Segmenter, "predict", threshold)
    files = series(tmp_path / "series", speckles((5, 7, 9)), orientation=orientation, PatientID="4711", Modality="MR")
    scan = sitk.ReadImage([str(file) for file in files])
    out = predict(str(solid), [str(tmp_path / "series")], out=str(tmp_path / "3d"), quiet=True)
    mask = sitk.ReadImage(str(out / "masks/series.nii.gz"))
    # Slices may be stacked from the other end; every voxel is at the same place of the patient all the same.
    back = sitk.GetArrayFromImage(sitk.Resample(mask, scan, sitk.Transform(), sitk.sitkNearestNeighbor))
    np.testing.assert_array_equal(back, sitk.GetArrayFromImage(scan) > 50)
    out = predict(str(flat), [str(tmp_path / "series")], out=str(tmp_path / "2d"), quiet=True, format="png")
    for file in files:
        own = np.asarray(Image.open(out / "masks" / f"{file.stem}.png"))
        np.testing.assert_array_equal(own > 0, sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[0] > 50)
    assert not any("4711" in path.read_text(errors="replace") for path in out.glob("*.*"))


def test_masks_of_images(flat, tmp_path, monkeypatch) -> None:
    """PNG, a NIfTI file of one slice that lies in a patient, and an X-ray."""
    monkeypatch.setattr(Segmenter, "predict", threshold)
    values = speckles((20, 30))
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "a.png")
    image = sitk.GetImageFromArray(values[None])
    image.SetSpacing((0.5, 0.7, 9.0))
    image.SetDirection([-1, 0, 0, 0, 0, 1, 0, 1, 0])
    sitk.WriteImage(image, str(tmp_path / "b.nii.gz"))
    save(dataset(values.astype(np.uint16), SOPClassUID=CR, Modality="CR", PixelSpacing=[0.2, 0.1]), tmp_path / "c.dcm")
    out = predict(str(flat), [str(tmp_path / "*.*")], out=str(tmp_path / "out"), quiet=True)
    for name in "ac":
        assert (np.asarray(Image.open(out / f"masks/{name}.png")) == 255).tolist() == (values > 50).tolist()
    mask = sitk.ReadImage(str(out / "masks/b.nii.gz"))
    same_grid(mask, sitk.ReadImage(str(tmp_path / "b.nii.gz")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask)[0] == 255, values > 50)
    rows = {row["image"]: row for row in read_rows(out / "predictions.csv")}
    assert rows["a.png"]["mm2_255"] == ""  # nothing says how large its pixels are
    assert float(rows["c.dcm"]["mm2_255"]) == pytest.approx(0.02 * (values > 50).sum())


def test_a_run_in_folds_is_averaged_and_one_fold_is_itself(flat, tmp_path) -> None:
    image = flat.parent / "set/images/3.png"
    every = load_head(flat)
    folds = [load_head(flat, fold=fold).predict(image).probabilities for fold in (1, 2)]
    assert np.abs(folds[0] - folds[1]).max() > 1e-4
    np.testing.assert_allclose(every.predict(image).probabilities, np.mean(folds, axis=0), atol=1e-6)
    assert every.models[0].encoder is every.models[1].encoder
    found = every.predict(image)
    np.testing.assert_array_equal(found.mask == 255, np.mean(folds, axis=0).argmax(0) == 1)
    shown_in_a_notebook(found, "<SegmentedScan of 28 x 32: ", f"pixels_255 {(found.mask > 0).sum()}>")
    assert repr(every).startswith("<TrainedSegmenter: Segmentation, 2 heads, averaged, on encoder tiny_for_tests")
    with pytest.raises(InputError, match=r"--fold 3: not in the run .*; its folds are 1, 2"):
        load_head(flat, fold=3)
    with pytest.raises(InputError, match=r"--seed 5: not in the run .*; it has no seeds"):
        load_head(flat, seed=5)


def test_what_is_predicted_is_what_the_run_tested(flat, tmp_path) -> None:
    out = predict(str(flat), [str(flat.parent / "set/images")], out=str(tmp_path / "out"), quiet=True, fold=2)
    tested = sorted((flat / "folds/2/predictions/set").iterdir())
    assert len(tested) == 4
    for path in tested:
        assert (out / "masks" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Two images of one name, one in a folder, and two that cannot be read."""
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(["a.png", "a.bmp", "deep/a.png", "z.png"]):
        Image.fromarray(balls((28, 32), seed)[0]).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "empty.png").write_bytes(b"")
    return folder


def test_names_and_unreadable_scans(flat, mixed, tmp_path) -> None:
    out = predict(str(flat), [str(mixed)], out=str(tmp_path / "out"), quiet=True, overlays=True)
    rows = {row["image"]: row["mask"] for row in read_rows(out / "predictions.csv")}
    assert rows == {
        "a.bmp": "masks/a.png", "a.png": "masks/a.png.png", "deep/a.png": "masks/deep/a.png", "z.png": "masks/z.png",
    }  # fmt: skip
    assert all((out / mask).is_file() for mask in rows.values())
    assert len(list(out.glob("overlays/**/*.png"))) == 4
    skipped = {row["image"]: row["reason"] for row in read_rows(out / "skipped.csv")}
    assert set(skipped) == {"broken.png", "empty.png"}
    assert all(skipped.values())
    facts = json.loads((out / "results.json").read_text())
    assert (facts["scans"], facts["left_out"], facts["task"]) == (4, 2, "segmentation")


def test_names_that_are_numbers(flat, solid, tmp_path) -> None:
    """Images of a stack stand in its order; identifiers are no endings; a series that is named alone has its name."""
    np.save(tmp_path / "stack.npy", np.stack([balls((28, 32), seed)[0] for seed in range(12)]))
    how = {"quiet": True, "num_workers": 0}
    out = predict(str(flat), [str(tmp_path / "stack.npy")], out=str(tmp_path / "flat"), **how)
    places = [re.findall("[0-9]+", row["image"]) for row in read_rows(out / "predictions.csv")]
    assert places == [[str(i)] for i in range(12)]
    for number in (17, 18):
        series(tmp_path / f"two/1.2.840.{number}", speckles((5, 7, 9)))
    out = predict(str(solid), [str(tmp_path / "two")], out=str(tmp_path / "solid"), **how)
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["1.2.840.17.nii.gz", "1.2.840.18.nii.gz"]
    out = predict(str(solid), [str(tmp_path / "two/1.2.840.18")], out=str(tmp_path / "one"), **how)
    (row,) = read_rows(out / "predictions.csv")
    assert (row["image"], row["mask"]) == ("1.2.840.18", "masks/1.2.840.18.nii.gz")


def test_it_goes_on_after_a_stop_and_does_nothing_twice(flat, mixed, tmp_path, monkeypatch, capsys) -> None:
    whole = predict(str(flat), [str(mixed)], out=str(tmp_path / "whole"), quiet=True)
    answer, done = TrainedHead.answer, []

    def counted(self, scan, grid):
        if len(done) == 2:
            raise Stopped("stopped")
        done.append(scan.id)
        return answer(self, scan, grid)

    monkeypatch.setattr(TrainedHead, "answer", counted)
    words = ["predict", str(flat), str(mixed), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 3
    assert main(words) == 2
    assert "Add --resume to continue it" in capsys.readouterr().err

    def listed(self, scan, grid):
        done.append(scan.id)
        return answer(self, scan, grid)

    monkeypatch.setattr(TrainedHead, "answer", listed)
    Image.fromarray(balls((28, 32), 9)[0]).save(mixed / "new.png")
    assert main([*words, "--resume"]) == 0
    assert len(done) == 5 == len(set(done))
    rows, before = (read_rows(folder / "predictions.csv") for folder in (tmp_path / "out", whole))
    assert [row for row in rows if row["image"] != "new.png"] == before
    for path in whole.glob("masks/**/*.png"):
        assert (tmp_path / "out" / path.relative_to(whole)).read_bytes() == path.read_bytes()
    (tmp_path / "out/masks/z.png").unlink()  # a file that was lost is made again
    assert main([*words, "--resume"]) == 0
    assert len(done) == 6
    assert main([*words, "--resume", "--overlays"]) == 2
    assert "overlays: was False, now True" in capsys.readouterr().err


def test_masks_among_the_scans_are_not_scans(flat, tmp_path) -> None:
    """Of a run that was told to write into the folder it reads: not when it goes on, nor of the next one."""
    scans = tmp_path / "scans"
    shutil.copytree(flat.parent / "set/images", scans)
    how = {"quiet": True, "num_workers": 0}
    out = predict(str(flat), [str(scans)], out=str(scans / "first"), **how)
    predict(str(flat), [str(scans)], out=str(scans / "first"), **how, resume=True)
    other = predict(str(flat), [str(scans)], out=str(scans / "second"), **how)
    for done in (out, other):
        assert [row["image"] for row in read_rows(done / "predictions.csv")] == [f"{i}.png" for i in range(8)]
        (row,) = read_rows(done / "skipped.csv")
        assert (row["image"], row["reason"][:27]) == ("first/", "a folder that frepa wrote; ")
    # What is named itself is read: masks may be looked at too.
    assert len(open_source(str(scans / "first"), dims=2)) == 8
    assert len(open_source(str(scans / "first/masks"), dims=2)) == 8


def test_scans_are_read_one_after_the_other(flat, tmp_path, monkeypatch) -> None:
    """No more are held than the threads read ahead, however many there are."""
    (tmp_path / "many").mkdir()
    for seed in range(12):
        Image.fromarray(balls((28, 32), seed)[0]).save(tmp_path / "many" / f"{seed}.png")
    read, answer, held = FileSource.read, TrainedHead.answer, []
    count = {"read": 0, "done": 0}

    def reading(self, index):
        count["read"] += 1
        return read(self, index)

    def answering(self, scan, grid):
        count["done"] += 1
        held.append(count["read"] - count["done"])
        return answer(self, scan, grid)

    monkeypatch.setattr(FileSource, "read", reading)
    monkeypatch.setattr(TrainedHead, "answer", answering)
    predict(str(flat), [str(tmp_path / "many")], out=str(tmp_path / "out"), quiet=True, num_workers=2)
    assert count == {"read": 12, "done": 12}
    assert max(held) <= 3


def test_classes(tmp_path) -> None:
    run = classifying(tmp_path, folds=2)
    out = predict(str(run), [str(tmp_path / "set")], out=str(tmp_path / "out"), quiet=True)
    rows = read_rows(out / "predictions.csv")
    assert len(rows) == 20
    cases = {row["case"]: row for row in read_rows(run / "cases.csv")}
    one = predict(str(run), [str(tmp_path / "set")], out=str(tmp_path / "one"), quiet=True, fold=1)
    alone = {row["image"]: row for row in read_rows(one / "predictions.csv")}
    for name, case in cases.items():
        if case["fold"] == "1":
            assert float(alone[name]["p_dark"]) == pytest.approx(float(case["p_dark"]), abs=2e-5)
            assert alone[name]["predicted"] == case["predicted"]
    scan = tmp_path / "set/dark/3.png"
    shown_in_a_notebook(load_head(run).predict(scan), "<ClassifiedScan of 20 x 24: predicted ", ", p_dark 0.")
    folds = [load_head(run, fold=fold).predict(scan).probabilities for fold in (1, 2)]
    row = next(row for row in rows if row["image"] == "dark/3.png")
    assert float(row["p_dark"]) == pytest.approx(np.mean([found["dark"] for found in folds]), abs=1e-6)
    assert len(row["p_dark"]) > 10  # all digits
    with pytest.raises(InputError, match="--probabilities: this head gives no maps"):
        predict(str(run), [str(tmp_path / "set")], out=str(tmp_path / "no"), quiet=True, probabilities=True)


def test_answers_that_are_nearly_certain_are_told_apart(tmp_path) -> None:
    """In single precision they would all be 1, and an AUC would rank them as equal."""
    (classifier,) = load_head(classifying(tmp_path)).models
    logits = torch.tensor([[9.0, -9.0], [9.5, -9.5], [10.0, -10.0]])
    found = classifier.probabilities(logits).numpy()
    np.testing.assert_allclose(1 - found[:, 0], 1 / (1 + np.exp([18.0, 19.0, 20.0])), rtol=1e-6)


def test_boxes(tmp_path) -> None:
    run = detecting(tmp_path)
    out = predict(str(run), [str(tmp_path / "set/*.png")], out=str(tmp_path / "out"), quiet=True, overlays=True)
    boxes = read_rows(out / "boxes.csv")
    for image in {row["image"] for row in read_rows(run / "findings.csv")}:
        listed = [row for row in read_rows(run / "findings.csv") if row["image"] == image]
        own = [row for row in boxes if row["image"] == image]
        assert [(row["label"], row["above_threshold"]) for row in own] == [
            (row["label"], row["above_threshold"]) for row in listed
        ]
        for name in ("score", "x_min", "y_min", "x_max", "y_max"):
            np.testing.assert_allclose([float(r[name]) for r in own], [float(r[name]) for r in listed], atol=2e-3)
        filed = json.loads((out / "boxes" / image).with_suffix(".json").read_text())
        assert filed["size"] == {"x": 48, "y": 40}
        assert [item["score"] for item in filed["boxes"]] == [float(row["score"]) for row in own]
        line = next(row for row in read_rows(out / "predictions.csv") if row["image"] == image)
        assert int(line["boxes_bright"]) == sum(r["label"] == "bright" and r["above_threshold"] == "1" for r in own)
    assert any(int(row["boxes_bright"]) for row in read_rows(out / "predictions.csv"))
    assert len(list((out / "overlays").iterdir())) == 14
    shown_in_a_notebook(load_head(run).predict(tmp_path / "set/3.png"), "<DetectedScan of 40 x 48: boxes_bright ")


def test_a_store_is_a_source(flat, tmp_path) -> None:
    from frepa.verbs.prepare import prepare

    images = flat.parent / "set/images"
    store = prepare(str(images), out=str(tmp_path / "store"), keep_names=True, quiet=True, num_workers=0)
    out = predict(str(flat), [str(store)], out=str(tmp_path / "out"), quiet=True)
    direct = predict(str(flat), [str(images)], out=str(tmp_path / "direct"), quiet=True)
    for path in sorted((direct / "masks").iterdir()):
        assert (out / "masks" / path.name).read_bytes() == path.read_bytes()


def test_a_series_with_a_gap_is_named(solid, tmp_path, capsys) -> None:
    files = series(tmp_path / "series", speckles((8, 12, 12)))
    files[4].unlink()
    out = predict(str(solid), [str(tmp_path / "series")], out=str(tmp_path / "out"), quiet=True)
    said = capsys.readouterr()
    assert "1 volume is incomplete" in said.err
    assert "1 volume, on CPU." in said.out + said.err
    assert "1 scan." in said.out + said.err
    (row,) = read_rows(out / "predictions.csv")
    assert "1 slice missing in 1 place" in row["notes"]


def test_a_volume_without_voxel_size_is_predicted_and_that_is_said(solid, tmp_path, capsys) -> None:
    (tmp_path / "scans").mkdir()
    np.save(tmp_path / "scans" / "bare.npy", speckles((8, 12, 12)))
    sitk.WriteImage(sitk.GetImageFromArray(speckles((8, 12, 12))), tmp_path / "scans" / "sized.nii.gz")
    out = predict(str(solid), [str(tmp_path / "scans")], out=str(tmp_path / "out"), quiet=True)
    assert "Of 1 of the scans the files say no voxel size" in capsys.readouterr().err
    bare, sized = read_rows(out / "predictions.csv")
    assert (bare["notes"], bare["ml_1"]) == ("its file says no voxel size", "")
    assert sized["notes"] == ""
    assert float(sized["ml_1"]) == pytest.approx(int(sized["pixels_1"]) / 1000)


def test_wrong_input_is_said_in_plain_words(flat, solid, tmp_path) -> None:
    volume = tmp_path / "volume.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(speckles((6, 9, 11))), str(volume))

    def words(run: Path, *source: Path, **options: object) -> str:
        with pytest.raises(InputError) as error:
            predict(str(run), [str(path) for path in source], out=str(tmp_path / "out"), quiet=True, **options)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    said = words(flat, volume)
    assert "holds 6 slices, and the head was trained on 2D images. Train one on volumes" in said
    assert "holds 2D images, and the head was trained on volumes" in words(solid, flat.parent / "set/images")
    assert "no head.safetensors here" in words(tmp_path, volume)
    assert "nowhere.png" in words(flat, tmp_path / "nowhere.png")
    assert "not the encoder that the head was trained on" in words(
        flat, flat.parent / "set/images", encoder="random:tiny_for_tests,seed=4"
    )
    with pytest.raises(InputError, match="holds 8 images, and one is expected"):
        load_head(flat).predict(flat.parent / "set/images")
    with pytest.raises(InputError, match=r"An array of shape \(4, 5, 6\) is no 2D image"):
        load_head(flat).predict(np.zeros((4, 5, 6)))
