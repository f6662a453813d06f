"""`frepa evaluate`: what was trained is scored on another labelled set, and others' code gets the same numbers."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, roc_auc_score

from frepa.cli import main
from frepa.downstream.segmentation.trained import TrainedSegmenter
from frepa.errors import InputError, Stopped
from frepa.images.files import FileSource
from frepa.images.scan import UnreadableScan
from frepa.verbs.evaluate import evaluate
from frepa.verbs.predict import predict
from tiny_runs import balls, classifying, detecting, masked_set, segmenting

QUIET = {"quiet": True, "num_workers": 0}
LUNA16_RATES = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def exact(run: Path) -> list[dict]:
    """What an evaluation kept of every case, with all digits."""
    return [json.loads(line) for line in (run / "done.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmenting(tmp_path_factory.mktemp("flat"), folds=2)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of another size, with masks of 0 and 1, and no parts."""
    root = tmp_path_factory.mktemp("other") / "other"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        image, mask = balls((36, 30), 40 + i)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


def dsc(truth: np.ndarray, found: np.ndarray) -> float:
    return 2 * float((truth & found).sum()) / float(truth.sum() + found.sum())


def test_masks_predicted_and_scored_by_numpy_are_the_evaluation(flat, other, tmp_path) -> None:
    """Of two folds together, whose probabilities are averaged."""
    masks = predict(str(flat), [str(other / "images")], out=str(tmp_path / "masks"), **QUIET)
    out = evaluate(str(flat), [str(other)], out=str(tmp_path / "out"), cldice=True, **QUIET)
    lines = {line["key"]: line for line in exact(out)}
    assert sorted(lines) == [f"other/{i}" for i in range(5)]
    scores = []
    for i in range(5):
        truth = np.asarray(Image.open(other / f"masks/{i}.png")) > 0
        found = np.asarray(Image.open(masks / f"masks/{i}.png")) > 0
        scores.append(dsc(truth, found))
        own = lines[f"other/{i}"]
        assert own["scores"]["dsc"] == scores[-1]
        assert own["scores"]["sensitivity"] == (truth & found).sum() / truth.sum()
        assert own["scores"]["specificity"] == (~truth & ~found).sum() / (~truth).sum()
        assert own["baselines"]["all_foreground"] == dsc(truth, np.ones_like(truth))
        written = np.asarray(Image.open(out / f"predictions/other/{i}.png"))
        np.testing.assert_array_equal(written, found.astype(np.uint8))  # with the values of this set's masks
    test = out.results["sets"]["other"]["test"]
    assert test["dsc"]["mean"] == np.mean(scores)
    assert test["dsc"]["std"] == np.std(scores, ddof=1)
    assert test["cldice"]["cases"] == 5
    rows = read_rows(out / "cases.csv")
    assert [float(row["dsc"]) for row in rows] == pytest.approx(scores, abs=1e-6)
    results = out.results
    assert len(results["heads"]) == 2
    assert set(results["sets"]["other"]["baselines"]) == {"all_foreground", "guide"}
    assert results["training"] == []
    assert (out / "overlays/other-best.png").is_file()
    page = out.report.path.read_text()
    assert "2, averaged" in page
    assert "guide channel thresholded, no network" in page
    one = evaluate(str(flat), [str(other)], out=str(tmp_path / "one"), fold=2, **QUIET)
    assert exact(one) != exact(out)
    assert ("other", "dsc") in {(row["of"], row["score"]) for row in one.scores.to_pylist()}


def test_the_guide_is_thresholded_where_the_training_part_says(flat, other, tmp_path) -> None:
    """The baseline beside the score is the one that the heads' own runs chose, on images this set has none of."""
    from frepa.corruption.guide import hessian_guide
    from frepa.datasets.reading import read_scan
    from frepa.downstream.trained import load_head
    from frepa.images.intensity import to_unit

    out = evaluate(str(flat), [str(other)], out=str(tmp_path / "out"), **QUIET)
    noted = load_head(flat).noted("baselines")
    kinds, thresholds = zip(*(item["guide"] for item in noted))
    image = to_unit(read_scan(other / "images/2.png", 2))
    import torch

    guide = hessian_guide(torch.from_numpy(image)[None], kind=kinds[0])[0, 0].numpy()
    truth = np.asarray(Image.open(other / "masks/2.png")) > 0
    line = next(line for line in exact(out) if line["key"] == "other/2")
    assert line["baselines"]["guide"] == dsc(truth, guide > np.mean(thresholds))


def test_volumes_are_scored_as_their_files_say(tmp_path) -> None:
    nibabel = pytest.importorskip("nibabel")
    run = segmenting(tmp_path / "trained", (8, 16, 16))
    turned = np.array([[0, -1.5, 0, 3], [2, 0, 0, 1], [0, 0, -1, 9], [0, 0, 0, 1.0]])  # axes exchanged and flipped
    for folder in ("imagesTs", "labelsTs"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for i in range(2):
        for folder, array in zip(("imagesTs", "labelsTs"), balls((9, 12, 14), 30 + i)):
            nibabel.save(nibabel.Nifti1Image(array, turned), tmp_path / "set" / folder / f"{i}.nii.gz")
    out = evaluate(str(run), [str(tmp_path / "set")], out=str(tmp_path / "out"), **QUIET)
    masks = predict(str(run), [str(tmp_path / "set/imagesTs")], out=str(tmp_path / "masks"), **QUIET)
    for i in range(2):
        truth, found, written = (
            np.asarray(nibabel.load(folder / f"{i}.nii.gz").dataobj)
            for folder in (tmp_path / "set/labelsTs", masks / "masks", out / "predictions/set")
        )
        np.testing.assert_array_equal(found, written)
        assert next(e for e in exact(out) if e["key"] == f"set/{i}")["scores"]["dsc"] == dsc(truth > 0, found > 0)


@pytest.fixture(scope="module")
def tellers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifying(tmp_path_factory.mktemp("classes"), folds=2)


def test_classes(tellers, tmp_path) -> None:
    for kind, factor in (("dark", 0.6), ("bright", 0.9)):
        (tmp_path / "new" / kind).mkdir(parents=True)
        for i in range(6):
            picture = (balls((22, 20), 60 + i)[0] * factor).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "new" / kind / f"{i}.png")
    (tmp_path / "new/dark/9.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    out = evaluate(str(tellers), [str(tmp_path / "new")], out=str(tmp_path / "out"), **QUIET)
    told = predict(str(tellers), [str(tmp_path / "new")], out=str(tmp_path / "told"), **QUIET)
    rows = read_rows(told / "predictions.csv")
    truth = np.array([row["image"].startswith("dark") for row in rows])
    dark = np.array([float(row["p_dark"]) for row in rows])
    test = out.results["test"]
    assert test["acc"]["value"] == accuracy_score(truth, dark > 0.5)
    assert test["auc"]["value"] == pytest.approx(roc_auc_score(truth, dark), abs=1e-12)
    found = {line["key"]: line["probabilities"] for line in exact(out)}
    assert {key: p[1] for key, p in found.items()} == {row["image"]: float(row["p_dark"]) for row in rows}
    assert (test["acc"]["low"] <= test["acc"]["value"] <= test["acc"]["high"], out.results["left_out"]) == (True, 1)
    (broken,) = read_rows(out / "skipped.csv")
    assert broken["image"] == "dark/9.png"
    assert out.results["baselines"]["majority"]["acc"] == 0.5
    assert (out / "confusion.png").is_file()


def test_the_file_for_medmnist_is_as_its_evaluator_reads_it(tmp_path, capsys) -> None:
    rng = np.random.default_rng(0)
    labels = {part: (np.arange(count) % 2)[:, None] for part, count in (("train", 16), ("val", 8), ("test", 10))}
    arrays = {f"{part}_labels": kind.astype(np.uint8) for part, kind in labels.items()}
    for part, kind in labels.items():
        noise = rng.normal(0, 30, (len(kind), 20, 20))
        arrays[f"{part}_images"] = np.clip(90 + 60 * kind[:, :, None] + noise, 0, 255).astype(np.uint8)
    np.savez(tmp_path / "breastmnist_64.npz", **arrays)
    from frepa.verbs.classify import classify
    from tiny_runs import ENCODER, QUICK

    run = classify(str(tmp_path / "breastmnist_64.npz"), encoder=ENCODER, out=str(tmp_path / "run"), **QUICK)
    out = evaluate(str(run), [str(tmp_path / "breastmnist_64.npz")], out=str(tmp_path / "out"), **QUIET)
    assert "the heads were trained on this set" in capsys.readouterr().err
    (file,) = out.folder.glob("breastmnist_64_test_*@frepa.csv")
    # As Evaluator.parse_and_evaluate of MedMNIST 3 takes it apart: no header, the image's number, a score per class
    table = np.loadtxt(file, delimiter=",")
    scores = table[table[:, 0].argsort()][:, 1:]
    truth = labels["test"][:, 0]
    auc, acc = roc_auc_score(truth, scores[:, -1]), accuracy_score(truth, scores[:, -1] > 0.5)
    assert file.name == f"breastmnist_64_test_[AUC]{auc:.3f}_[ACC]{acc:.3f}@frepa.csv"
    own = read_rows(run / "cases.csv")
    np.testing.assert_allclose(scores[:, 1], [float(row["p_1"]) for row in own], atol=1e-5)
    val = evaluate(str(run), [str(tmp_path / "breastmnist_64.npz")], out=str(tmp_path / "val"), part="val", **QUIET)
    assert len(list(val.folder.glob("breastmnist_64_val_*.csv"))) == 1
    every = evaluate(str(run), [str(tmp_path / "breastmnist_64.npz")], out=str(tmp_path / "all"), part="all", **QUIET)
    assert len(exact(every)) == 34
    assert not list(every.folder.glob("breastmnist*"))  # which is no part of theirs


@pytest.mark.parametrize("flag", ["organamnist", "chestmnist", "breastmnist"])
def test_medmnist_s_own_evaluator_reads_the_file_and_scores_as_we_do(flag: str, tmp_path, monkeypatch) -> None:
    """Sets with one class of eleven, with several findings or none, and with two classes."""
    others = pytest.importorskip("medmnist.evaluator")
    from frepa.verbs.classify import classify
    from tiny_runs import ENCODER, QUICK

    rng = np.random.default_rng(2)
    classes = len(others.INFO[flag]["label"])
    arrays = {}
    for part, count in (("train", 44), ("val", 22), ("test", 33)):
        labels = (np.arange(count) % classes)[:, None]
        if flag == "chestmnist":
            labels = (rng.random((count, classes)) < 0.3).astype(np.int64)
            labels[0], labels[1] = 0, 1  # each finding is there and is not
        shades = labels.mean(1) * (20 if labels.shape[1] == 1 else 200)
        images = 40 + shades[:, None, None] + rng.normal(0, 30, (count, 16, 16))
        arrays |= {f"{part}_images": images.clip(0, 255).astype(np.uint8), f"{part}_labels": labels.astype(np.uint8)}
    np.savez(tmp_path / f"{flag}.npz", **arrays)
    run = classify(str(tmp_path / f"{flag}.npz"), encoder=ENCODER, out=str(tmp_path / "run"), **QUICK)
    out = evaluate(str(run), [str(tmp_path / f"{flag}.npz")], out=str(tmp_path / "out"), **QUIET)
    (file,) = out.folder.glob(f"{flag}_test_*@frepa.csv")
    monkeypatch.setattr(others.Evaluator.__init__, "__defaults__", (None, str(tmp_path)))  # where it looks for the set
    theirs = others.Evaluator.parse_and_evaluate(str(file))
    assert pytest.approx(out.results["test"]["acc"]["value"], abs=1e-12) == theirs.ACC
    assert pytest.approx(out.results["test"]["auc"]["value"], abs=1e-12) == theirs.AUC
    assert list(out.folder.glob(f"{flag}*.csv")) == [file]  # it writes it again, under the name it gives: ours


def test_boxes(tmp_path) -> None:
    run = detecting(tmp_path / "a")
    manifest = tmp_path / "a/set/boxes.csv"
    out = evaluate(str(run), [str(manifest)], out=str(tmp_path / "out"), part="all", **QUIET)
    found = predict(str(run), [str(tmp_path / "a/set/*.png")], out=str(tmp_path / "boxes"), **QUIET)
    mine = {(r["image"], r["label"], r["score"], r["x_min"], r["y_max"]) for r in read_rows(out / "findings.csv")}
    theirs = {
        (r["image"], r["label"], *(f"{float(r[name]):.6f}" for name in ("score", "x_min", "y_max")))
        for r in read_rows(found / "boxes.csv")
    }
    assert mine == theirs
    kept = [row for row in read_rows(found / "boxes.csv") if row["above_threshold"] == "1"]
    truths = read_rows(manifest)
    for kind in ("bright", "dark"):  # sensitivity and precision at the run's own threshold, centre in box
        hits = {number: 0 for number, row in enumerate(truths) if row["label"] == kind}
        false = 0
        for box in (row for row in kept if row["label"] == kind):
            y, x = ((float(box[f"{axis}_min"]) + float(box[f"{axis}_max"])) / 2 for axis in "yx")
            inside = [
                number for number in hits
                if truths[number]["path"] == box["image"]
                and float(truths[number]["x_min"]) <= x < float(truths[number]["x_max"])
                and float(truths[number]["y_min"]) <= y < float(truths[number]["y_max"])
            ]  # fmt: skip
            false += not inside
            for number in inside:
                hits[number] = 1
        own = out.results["test"]["per_class"][kind]
        total = sum(hits.values())
        assert own["sensitivity"] == total / 14
        assert own["precision"] == pytest.approx(total / max(total + false, 1))
    assert set(out.results["baselines"]["usual"]) == {"ap_10", "ap_50", "ap_50_95"}
    assert (out / "overlays/best.png").is_file()
    assert not (out / "luna16.csv").exists()  # images lie nowhere


def froc_of_luna16(marks: list[dict[str, str]], nodules: list[dict[str, str]]) -> list[float]:
    """Sensitivity at 1/8, 1/4, ... 8 false positives a scan, from the two tables that LUNA16's script reads.

    A mark within the radius of a nodule finds it, with the highest score of those; a mark within no nodule is false.
    """
    false, best, scans = [], [0.0] * len(nodules), {row["path"].removesuffix(".mhd") for row in nodules}
    for mark in marks:
        place, score = [float(mark[f"coord{axis}"]) for axis in "XYZ"], float(mark["probability"])
        found = [
            number for number, row in enumerate(nodules)
            if row["path"] == mark["seriesuid"] + ".mhd"
            and math.dist(place, [float(row[f"coord{axis}"]) for axis in "XYZ"]) < float(row["diameter_mm"]) / 2
        ]  # fmt: skip
        for number in found:
            best[number] = max(best[number], score)
        false += [] if found else [score]
    points = [(0.0, 0.0)] + [
        (sum(s >= t for s in false) / len(scans), sum(s >= t for s in best) / len(nodules))
        for t in sorted({*false, *filter(None, best)}, reverse=True)
    ]
    return np.interp(LUNA16_RATES, *zip(*points)).tolist()


def test_the_table_for_luna16_has_its_columns_and_millimetres(tmp_path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    from frepa.verbs.detect import detect
    from tiny_runs import ENCODER3D, QUICK

    (tmp_path / "set").mkdir()
    rows = ["path,coordX,coordY,coordZ,diameter_mm"]
    for i in range(6):
        volume = np.random.default_rng(i).normal(100, 5, (12, 20, 20)).astype(np.float32)
        z, y, x = np.random.default_rng(i + 50).integers(2, 6, 3).tolist()
        volume[z : z + 5, y : y + 8, x : x + 8] += 150
        image = sitk.GetImageFromArray(volume)
        image.SetSpacing((0.7, 0.7, 2.0))
        image.SetOrigin((-40.0, 12.0, 300.0 + i))
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        sitk.WriteImage(image, str(tmp_path / f"set/1.2.{i}.mhd"))
        place = image.TransformContinuousIndexToPhysicalPoint((x + 3.5, y + 3.5, z + 2.0))
        rows.append(f"1.2.{i}.mhd,{','.join(map(str, place))},{4.0 + 3 * i}")
    (tmp_path / "set/boxes.csv").write_text("\n".join(rows) + "\n")
    run = detect(
        str(tmp_path / "set/boxes.csv"), encoder=ENCODER3D, out=str(tmp_path / "run"), crop_size=16,
        **{**QUICK, "max_steps": 2}
    )  # fmt: skip
    out = evaluate(str(run), [str(tmp_path / "set/boxes.csv")], out=str(tmp_path / "out"), part="all", **QUIET)
    lines = read_rows(out / "luna16.csv")
    assert list(lines[0]) == ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
    findings = read_rows(out / "findings.csv")
    assert len(lines) == len(findings) > 0
    for line, box in zip(lines, findings):
        assert line["seriesuid"] + ".mhd" == box["image"]
        image = sitk.ReadImage(str(tmp_path / "set" / box["image"]))
        middle = [(float(box[f"{axis}_min"]) + float(box[f"{axis}_max"])) / 2 - 0.5 for axis in "xyz"]
        world = image.TransformContinuousIndexToPhysicalPoint(middle)
        np.testing.assert_allclose([float(line[f"coord{axis}"]) for axis in "XYZ"], world, atol=1e-4)
        assert float(line["probability"]) == pytest.approx(float(box["score"]), abs=1e-6)
    expected = froc_of_luna16(lines, read_rows(tmp_path / "set/boxes.csv"))
    assert 0 < sum(expected) < 7
    own = out.results["test"]["per_class"]["finding"]
    assert [own["sensitivity_at"][f"{rate:g}"]["value"] for rate in LUNA16_RATES] == pytest.approx(expected)
    assert own["cpm"]["value"] == pytest.approx(sum(expected) / 7)


def test_it_goes_on_after_a_stop(flat, other, tmp_path, monkeypatch, capsys) -> None:
    whole = evaluate(str(flat), [str(other)], out=str(tmp_path / "whole"), **QUIET)
    segment, done = TrainedSegmenter.segment, []

    def counted(self, image):
        if len(done) == 2:
            raise Stopped("stopped")
        done.append(image.shape)
        return segment(self, image)

    monkeypatch.setattr(TrainedSegmenter, "segment", counted)
    words = ["evaluate", str(flat), str(other), "--out", str(tmp_path / "out"), "--quiet", "--num-workers", "0"]
    assert main(words) == 3
    assert main(words) == 2
    assert "Add --resume to continue it" in capsys.readouterr().err
    monkeypatch.setattr(TrainedSegmenter, "segment", lambda self, image: done.append(1) or segment(self, image))
    assert main([*words, "--resume"]) == 0
    assert len(done) == 5 + 3  # and three pictures
    for name in ("cases.csv", "skipped.csv", "predictions/other/4.png"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    changed = {"test_seconds", "warnings"}
    mine, theirs = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "out", whole))
    assert {k: v for k, v in mine.items() if k not in changed} == {k: v for k, v in theirs.items() if k not in changed}
    assert main([*words, "--resume", "--cldice"]) == 2
    assert "cldice: was False, now True" in capsys.readouterr().err


def test_broken_images_are_listed(flat, other, tmp_path, monkeypatch) -> None:
    """One whose header tells it, and one that breaks while it is decoded."""
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for path in (other / folder).iterdir():
            (tmp_path / "set" / folder / path.name).write_bytes(path.read_bytes())
    cut = tmp_path / "set/images/3.png"
    cut.write_bytes(cut.read_bytes()[:300])
    read = FileSource.read

    def broken(self, index):
        if self.name(index) == "images/1.png":
            raise UnreadableScan("/somewhere/else", "its pixels are broken")
        return read(self, index)

    monkeypatch.setattr(FileSource, "read", broken)
    out = evaluate(str(flat), [str(tmp_path / "set")], out=str(tmp_path / "out"), **QUIET)
    assert [line["key"] for line in exact(out)] == [f"set/{i}" for i in (0, 2, 4)]
    assert [row["image"] for row in read_rows(out / "skipped.csv")] == ["images/3.png", "images/1.png"]
    assert out.results["sets"]["set"]["test"]["dsc"]["cases"] == 3


def test_wrong_input_is_said_in_plain_words(flat, tellers, other, tmp_path) -> None:
    def words(run: Path, *sources: Path, **options: object) -> str:
        with pytest.raises(InputError) as error:
            evaluate(str(run), [str(path) for path in sources], out=str(tmp_path / "out"), **QUIET, **options)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    pictures = masked_set(tmp_path / "pictures", count=3)
    assert "no head.safetensors here" in words(other, other)
    assert "has no masks, which frepa segment learns" in words(flat, tellers.parent / "set")
    assert "has no classes, which frepa classify learns" in words(tellers, pictures)
    assert "a run of classification is evaluated on one set at a time" in words(tellers, other, pictures)
    assert "--cldice: says nothing to a run of classification" in words(tellers, tellers.parent / "set", cldice=True)
    assert "has no part val (there are 3 test)" in words(flat, pictures, part="val")
    # Three classes for a head of two, and classes of other names
    mask = np.asarray(Image.open(pictures / "masks/0.png")).copy()
    mask[:4] = 7
    Image.fromarray(mask).save(pictures / "masks/0.png")
    assert "its masks hold 3 classes, and the head knows two" in words(flat, pictures)
    assert evaluate(str(flat), [str(pictures)], out=str(tmp_path / "fine"), mask_threshold=9, **QUIET).results
    for kind in ("dark", "grey"):
        (tmp_path / "kinds" / kind).mkdir(parents=True)
        Image.fromarray(balls((20, 24), 1)[0]).save(tmp_path / "kinds" / kind / "0.png")
    said = words(tellers, tmp_path / "kinds")
    assert "has the class 'grey', which the head does not know. It tells apart 'bright', 'dark'" in said


def test_names_of_targets_and_values_of_classes_must_agree() -> None:
    from frepa.datasets.cases import SegmentationSet
    from frepa.datasets.labels import LabelMap
    from frepa.downstream.segmentation.evaluation import agreed_labels

    item = SegmentationSet("s", "folder", ())
    vessel, disc = (LabelMap((0, 255), 0, ("background", name)) for name in ("vessel", "disc"))
    nameless, three = LabelMap((0, 1), 0), LabelMap((0, 1, 2), None, ("background", "anterior", "posterior"))
    assert agreed_labels(vessel, nameless, item, "s", None) == nameless
    assert agreed_labels(vessel, disc, item, "s", 0.0) == disc
    with pytest.raises(InputError, match="show 'disc' where the head was trained on 'vessel'"):
        agreed_labels(vessel, disc, item, "s", None)
    assert agreed_labels(three, nameless, item, "s", None) == three  # some of the head's classes
    with pytest.raises(InputError, match="the mask value 255, and the head knows the classes of the values"):
        agreed_labels(three, LabelMap((0, 255), 0), item, "s", None)
    with pytest.raises(InputError, match="show 'tail' where the head was trained on 'posterior'"):
        agreed_labels(three, LabelMap((0, 1, 2), None, ("background", "anterior", "tail")), item, "s", None)
