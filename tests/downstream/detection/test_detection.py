"""`frepa detect` from source to run folder, in 2D and through slice transfer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import tiny_encoders  # noqa: F401 (registers them)
from frepa.cli import main
from frepa.downstream.detection.data import DetectionData, DetectionImage
from frepa.downstream.detection.model import load_detector
from frepa.downstream.segmentation.model import load_segmenter
from frepa.downstream.trained import load_head
from frepa.encoders.reference import open_encoder, trained_names, weights_hash
from frepa.errors import InputError
from frepa.images.intensity import Window
from frepa.images.scan import UnreadableScan
from frepa.verbs.detect import detect

ENCODER = "random:tiny_for_tests"
STACKS = "slices:random:tiny_for_tests,rounds=1,width=8,heads=2,chunk=8"
QUICK = {"max_steps": 150, "batch_size": 4, "lr": 3e-3, "quiet": True, "num_workers": 0, "val_every": 50,
         "max_boxes": 10}  # fmt: skip


def picture(seed: int, size: tuple[int, int] = (48, 60)) -> tuple[np.ndarray, list[tuple[str, list[int]]]]:
    """Grey noise with one bright block and one dark one, and their boxes (y, x, y, x)."""
    rng = np.random.default_rng(seed)
    image = rng.normal(120, 6, size)
    found = []
    for kind, change in (("bright", 100), ("dark", -100)):
        left = 0 if kind == "bright" else size[1] // 2
        y, x = int(rng.integers(0, size[0] - 14)), left + int(rng.integers(0, size[1] // 2 - 14))
        h, w = rng.integers(8, 14, 2).tolist()
        image[y : y + h, x : x + w] += change
        found.append((kind, [y, x, y + h, x + w]))
    return np.clip(image, 0, 255).astype(np.uint8), found


def write_table(path: Path, columns: list[str], rows: list[list]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cells")
    rows = []
    for i in range(32):
        image, found = picture(i)
        Image.fromarray(image).save(root / f"{i:02d}.png")
        part = "train" if i < 16 else "val" if i < 22 else "test"
        rows += [[f"{i:02d}.png", part, kind, x0, y0, x1, y1] for kind, (y0, x0, y1, x1) in found]
    empty = np.random.default_rng(9).normal(120, 6, (48, 60)).astype(np.uint8)
    Image.fromarray(empty).save(root / "empty.png")
    rows.append(["empty.png", "test", "", "", "", "", ""])
    (root / "broken.png").write_bytes((root / "00.png").read_bytes()[:700])
    rows.append(["broken.png", "train", "bright", 1, 1, 9, 9])
    return write_table(root / "cells.csv", ["path", "split", "label", "x_min", "y_min", "x_max", "y_max"], rows)


@pytest.fixture(scope="module")
def run(cells: Path) -> Path:
    return detect(str(cells), encoder=ENCODER, out=str(cells.parent / "run"), **QUICK)


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_blocks_are_found(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["classes"] == ["bright", "dark"]
    assert results["guide"] == "frangi"
    for name in results["classes"]:
        scores = results["test"]["per_class"][name]
        assert scores["ap_50"] > 0.5
        assert scores["cpm"]["value"] > 0.8
        assert scores["sensitivity"] > 0.7
        assert scores["precision"] > 0.7
    assert results["cases"] == {"train": 16, "val": 6, "test": 11}


def test_cases_and_findings_tell_the_same(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    cases, found = read_rows(run / "cases.csv"), read_rows(run / "findings.csv")
    assert len(cases) == results["test"]["images"]
    for case in cases:
        own = [row for row in found if row["image"] == case["case"]]
        assert sum(row["above_threshold"] == "1" for row in own) == int(case["boxes"])
        assert int(case["hits"]) + int(case["misses"]) == int(case["findings"])
        scores = [float(row["score"]) for row in own]
        assert scores == sorted(scores, reverse=True)
        for row in own:
            assert 0 <= float(row["x_min"]) < float(row["x_max"]) <= 60
            assert 0 <= float(row["y_min"]) < float(row["y_max"]) <= 48
    sensitivity = sum(int(case["hits"]) for case in cases) / sum(int(case["findings"]) for case in cases)
    per_class = results["test"]["per_class"].values()
    hits = sum(item["sensitivity"] * item["findings"] for item in per_class)
    assert hits / sum(item["findings"] for item in per_class) == pytest.approx(sensitivity)


def test_a_broken_image_is_listed_and_left_out(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    skipped = read_rows(run / "skipped.csv")
    assert [row["image"] for row in skipped] == ["broken.png"]
    assert results["left_out"] == 1


def test_an_image_that_breaks_on_the_way_is_left_out(cells: Path, tmp_path: Path, monkeypatch) -> None:
    read = DetectionData.read

    def breaking(self: DetectionData, row: int, window: Window = None) -> DetectionImage:
        if self.name(row) in ("03.png", "25.png"):
            raise UnreadableScan(self.name(row), "the disk failed")
        return read(self, row, window)

    monkeypatch.setattr(DetectionData, "read", breaking)
    run = detect(str(cells), encoder=ENCODER, out=str(tmp_path / "run"), **QUICK | {"max_steps": 5})
    skipped = {row["image"]: row["reason"] for row in read_rows(run / "skipped.csv")}
    assert set(skipped) == {"03.png", "25.png", "broken.png"}
    assert skipped["03.png"] == "the disk failed"
    assert "25.png" not in [row["case"] for row in read_rows(run / "cases.csv")]
    assert json.loads((run / "results.json").read_text())["test"]["images"] == 10


def test_the_run_folder_explains_itself(run: Path) -> None:
    assert yaml.safe_load((run / "config.yaml").read_text())["encoder"] == ENCODER
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == list(range(1, 151))
    for line in losses:
        assert line["loss"] == pytest.approx(line["class"] + 2 * line["giou"] + line["l1"] / 2, rel=1e-4)
    assert [line["step"] for line in lines if "val_ap" in line] == [50, 100, 150]
    page = (run / "report.html").read_text()
    for part in ("CPM", "FROC", "guide channel: frangi", "1 images could not be read", "skipped.csv"):
        assert part in page
    assert {path.name for path in (run / "overlays").iterdir()} == {"best.png", "median.png", "worst.png"}


def test_a_saved_detector_finds_the_same(run: Path, cells: Path) -> None:
    detector = load_detector(run)
    own = read_rows(run / "findings.csv")
    name = own[0]["image"]
    found = load_head(run).predict(cells.parent / name).found
    rows = [row for row in own if row["image"] == name]
    np.testing.assert_allclose(found.scores, [float(row["score"]) for row in rows], atol=1e-5)
    sides = [[float(row[side]) for side in ("y_min", "x_min", "y_max", "x_max")] for row in rows]
    np.testing.assert_allclose(found.corners, sides, atol=1e-3)
    results = json.loads((run / "results.json").read_text())
    assert list(detector.settings.thresholds) == pytest.approx(results["thresholds"][0])


def test_the_encoder_is_not_changed(run: Path) -> None:
    fresh, reference = open_encoder(ENCODER)
    assert weights_hash(fresh) == reference.weights == weights_hash(load_detector(run).encoder)
    tensors = load_file(run / "head.safetensors")
    assert tensors
    assert not any(name.startswith("encoder.") for name in tensors)
    with pytest.raises(InputError, match="no segmentation head"):
        load_segmenter(run)


def test_folds_test_every_image_once(cells: Path, tmp_path: Path) -> None:
    quick = QUICK | {"max_steps": 3, "val_every": 3}
    run = detect(str(cells), encoder=ENCODER, out=str(tmp_path / "run"), folds=3, crop_size=32, image_size=40, **quick)
    cases = read_rows(run / "cases.csv")
    assert sorted(row["case"] for row in cases) == sorted([*(f"{i:02d}.png" for i in range(32)), "empty.png"])
    assert {row["fold"] for row in cases} == {"1", "2", "3"}
    results = json.loads((run / "results.json").read_text())
    cpm = results["test"]["mean"]["cpm"]
    assert cpm["value"] == pytest.approx(np.mean(cpm["folds"]))
    assert cpm["std"] == pytest.approx(np.std(cpm["folds"], ddof=1))
    assert results["test"]["images"] == 33
    heads = [load_detector(run / "folds" / str(fold)).head.state_dict() for fold in (1, 2, 3)]
    assert not torch.equal(heads[0]["body.output.weight"], heads[1]["body.output.weight"])
    with pytest.raises(InputError, match=r"one per fold: give .*folds/1"):
        load_detector(run)


def test_the_same_command_gives_the_same_run(cells: Path, tmp_path: Path) -> None:
    quick = QUICK | {"max_steps": 4, "val_every": 2}
    runs = [
        detect(str(cells), encoder=ENCODER, out=str(tmp_path / str(n)), **quick | {"num_workers": n}) for n in (0, 2)
    ]
    assert (runs[0] / "findings.csv").read_bytes() == (runs[1] / "findings.csv").read_bytes()
    heads = [load_file(run / "head.safetensors") for run in runs]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.fixture(scope="module")
def nodules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of several depths, stored in turned axes, with one bright ball each, listed as LUNA16 lists nodules."""
    root = tmp_path_factory.mktemp("nodules")
    rows = []
    for i in range(18):
        rng = np.random.default_rng(i)
        size = np.array([24, 20, 8 + i % 3])  # i, j, k of the file
        affine = np.diag([-1.0, 1, 2, 1]) if i % 2 else np.diag([1.0, -1, 2, 1])
        affine[:3, 3] = rng.integers(-50, 50, 3)
        middle = rng.uniform([6, 6, 3], size - [7, 7, 4])
        world = affine[:3, :3] @ middle + affine[:3, 3]
        grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
        distance = np.linalg.norm(((grid - middle) * [1, 1, 2]), axis=-1)
        volume = rng.normal(0, 8, size) + 150 * (distance < 5)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), affine), root / f"v{i:02d}.nii.gz")
        part = "train" if i < 9 else "val" if i < 12 else "test"
        rows.append([f"v{i:02d}.nii.gz", part, -world[0], -world[1], world[2], 10.0])
    return write_table(root / "nodules.csv", ["path", "split", "coordX", "coordY", "coordZ", "diameter_mm"], rows)


@pytest.fixture(scope="module")
def stacks(nodules: Path) -> Path:
    quick = QUICK | {"max_steps": 150, "val_every": 50}
    return detect(str(nodules), encoder=STACKS, out=str(nodules.parent / "run"), **quick)


def test_balls_are_found_through_slices(stacks: Path, nodules: Path) -> None:
    results = json.loads((stacks / "results.json").read_text())
    assert results["criterion"] == "sphere"
    top = results["test"]["top_one"]
    assert top["centre_ratio"] > 0.6
    assert top["iou"]["cases"] == results["cases"]["test"]
    # The centre in millimetres is where the table has it.
    truth = {row["path"]: row for row in read_rows(nodules)}
    near = []
    for name in dict.fromkeys(row["image"] for row in read_rows(stacks / "findings.csv")):
        best = next(row for row in read_rows(stacks / "findings.csv") if row["image"] == name)
        sides = [float(best[f"coord{axis}"]) - float(truth[name][f"coord{axis}"]) for axis in "XYZ"]
        near.append(max(map(abs, sides)) < 5)  # inside the box of 10 mm
    assert np.mean(near) == pytest.approx(top["centre_ratio"])


@pytest.mark.parametrize(("given", "images", "volumes"), [({}, 2e-3, 5e-4), ({"lr": 1e-3}, 1e-3, 1e-3)])
def test_the_rate_follows_from_the_axes_unless_it_is_given(
    cells: Path, nodules: Path, tmp_path: Path, given: dict[str, float], images: float, volumes: float
) -> None:
    quick = {name: value for name, value in QUICK.items() if name != "lr"} | {"max_steps": 1, "schedule": "constant"}
    for source, encoder, expected in ((cells, ENCODER, images), (nodules, STACKS, volumes)):
        run = detect(str(source), encoder=encoder, out=str(tmp_path / f"{source.stem}-{expected}"), **quick, **given)
        first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        assert first["lr"] == pytest.approx(expected)


def test_of_a_slice_transfer_the_blocks_train_and_the_2d_encoder_does_not(stacks: Path) -> None:
    fresh, _ = open_encoder(STACKS)
    trained = load_detector(stacks).encoder
    names = trained_names(trained)
    before, after = fresh.state_dict(), trained.state_dict()
    assert names
    assert not any(name.startswith("encoder2d.") for name in names)
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in names), name


def test_boxes_of_a_volume_are_in_the_axes_of_its_file(stacks: Path, nodules: Path) -> None:
    row = next(row for row in read_rows(nodules) if row["path"] == read_rows(stacks / "findings.csv")[0]["image"])
    path = nodules.parent / row["path"]
    found = load_head(stacks).predict(path)
    listed = next(item for item in read_rows(stacks / "findings.csv") if item["image"] == row["path"])
    sides = [float(listed[f"{axis}_{end}"]) for end in ("min", "max") for axis in "zyx"]
    np.testing.assert_allclose(found.found.corners[0], sides, atol=1e-3)
    assert found.grid.size == nibabel.load(path).shape[::-1]
    # From the file's own voxels to the millimetres of the table, by nibabel's affine.
    middle = np.array([sum(float(listed[f"{axis}_{end}"]) for end in ("min", "max")) / 2 for axis in "xyz"]) - 0.5
    world = nibabel.affines.apply_affine(nibabel.load(path).affine, middle) * [-1, -1, 1]
    np.testing.assert_allclose(world, [float(listed[f"coord{axis}"]) for axis in "XYZ"], atol=1e-3)


def test_cached_features_give_the_same_head(nodules: Path, tmp_path: Path) -> None:
    quick = QUICK | {"max_steps": 3, "val_every": 3, "batch_size": 2, "augment": False, "crop_size": 64}
    plain = detect(str(nodules), encoder=STACKS, out=str(tmp_path / "plain"), **quick)
    kept = detect(str(nodules), encoder=STACKS, out=str(tmp_path / "kept"), feature_cache=str(tmp_path / "c"), **quick)
    # Every training volume is looked at once for the statistics, whatever the steps draw.
    assert len(list((tmp_path / "c").glob("*.safetensors"))) == 9 + 3 + 6
    one, other = (load_file(run / "head.safetensors") for run in (plain, kept))
    for name in one:
        torch.testing.assert_close(one[name], other[name])
    with pytest.raises(InputError, match="Give --crop-size 24 or more"):
        detect(
            str(nodules), encoder=STACKS, out=str(tmp_path / "no"), feature_cache=str(tmp_path / "c"),
            **quick | {"crop_size": 8},
        )  # fmt: skip


def test_findings_larger_than_a_window_are_told_of(cells: Path, tmp_path: Path) -> None:
    run = detect(str(cells), encoder=ENCODER, out=str(tmp_path / "run"), crop_size=8,
                 **QUICK | {"max_steps": 1, "overlap": 0.0, "batch_size": 64})  # fmt: skip
    warnings = json.loads((run / "results.json").read_text())["warnings"]
    sides = [
        max(int(row["x_max"]) - int(row["x_min"]), int(row["y_max"]) - int(row["y_min"]))
        for row in read_rows(cells)
        if row["label"] and row["path"] != "broken.png"
    ]
    told = f"{sum(side > 8 for side in sides)} of 64 findings are larger than a window of 8 x 8"
    assert any(sentence.startswith(told) for sentence in warnings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folds": 1}, "--folds 1: expected 2 or more"),
        ({"nms_iou": 1.5}, "--nms-iou 1.5"),
        ({"max_boxes": 0}, "--max-boxes 0"),
        ({"crop_size": 0}, "--crop-size 0"),
        ({"folds": 40}, "cannot be divided into 40 folds"),
        ({"encoder": "random:tiny3d_for_tests"}, "2D"),
        ({"feature_cache": "cache"}, "has none"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(cells: Path, tmp_path: Path, change, words) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match=words):
        detect(str(cells), **{"encoder": ENCODER, "out": str(out), **QUICK, **change})
    assert not out.exists()


def test_a_run_is_never_overwritten_unasked(run: Path, cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "results.json").read_bytes()
    assert main(["detect", str(cells), "--encoder", ENCODER, "--out", str(run), "--max-steps", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (run / "results.json").read_bytes() == before
