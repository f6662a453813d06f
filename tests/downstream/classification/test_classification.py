"""`frepa classify` from source to run folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import accuracy_score, roc_auc_score

import tiny_encoders  # noqa: F401 (registers them)
from frepa.cli import main
from frepa.downstream.classification.model import load_classifier
from frepa.downstream.segmentation.model import load_segmenter
from frepa.downstream.trained import load_head
from frepa.encoders.contract import Encoder
from frepa.encoders.reference import open_encoder, trained_names, weights_hash
from frepa.encoders.slice_transfer import SliceTransfer
from frepa.errors import InputError
from frepa.images.intensity import to_unit
from frepa.verbs.classify import classify

ENCODER = "random:tiny_for_tests"
STACKS = "slices:random:tiny_for_tests,rounds=1,width=8,heads=2,chunk=4"
QUICK = {"max_steps": 120, "batch_size": 8, "lr": 3e-2, "head": "mlp", "hidden": 16, "quiet": True, "num_workers": 0}


def picture(kind: int, seed: int, size: tuple[int, ...] = (20, 24)) -> np.ndarray:
    """Grey noise with stripes along the last axis (0), along the one before (1), or none (2)."""
    rng = np.random.default_rng(1000 * kind + seed)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    stripes = np.zeros(size) if kind == 2 else 80.0 * (grid[-1 - kind] % 4 < 2)
    return np.clip(80 + stripes + rng.normal(0, 8, size), 0, 255).astype(np.uint8)


def make_folders(root: Path, count: int = 16, classes: int = 3) -> Path:
    for kind in range(classes):
        folder = root / ("flat", "upright", "plain")[kind]
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(picture(kind, i)).save(folder / f"{kind}{i:02d}.png")
    return root


def make_stacks(path: Path, count: int = 12) -> Path:
    """A MedMNIST file of volumes whose slices are striped in one way or the other."""
    arrays = {}
    for part, first in (("train", 0), ("val", 100), ("test", 200)):
        volumes = [picture(i % 2, first + i, (6, 12, 12)) for i in range(count)]
        arrays[f"{part}_images"] = np.stack(volumes)
        arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
    np.savez(path, **arrays)
    return path


def read_cases(run: Path) -> list[dict[str, str]]:
    with open(run / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classify")
    source = make_folders(root / "set")
    (source / "plain" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot more")
    return classify(str(source), encoder=ENCODER, out=str(root / "run"), **QUICK)


def test_scores_are_those_of_the_listed_cases(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    rows = read_cases(run)
    classes = results["classes"]
    assert classes == ["flat", "plain", "upright"]
    assert len(rows) == results["cases"]["test"]
    p = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    t = np.array([classes.index(row["truth"]) for row in rows])
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert results["test"]["acc"]["value"] == pytest.approx(accuracy_score(t, p.argmax(1)))
    assert results["test"]["auc"]["value"] == pytest.approx(roc_auc_score(np.eye(3)[t], p), abs=1e-3)
    assert results["test"]["auc"]["value"] > 0.9  # stripes are easy
    assert results["test"]["acc"]["value"] > 0.8
    assert all(row["truth"] == row["case"].split("/")[0] for row in rows)
    assert all(row["predicted"] == classes[int(found.argmax())] for row, found in zip(rows, p))
    assert np.sum(results["confusion"]) == len(rows)
    assert (run / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_an_unreadable_image_is_counted_listed_and_left_out(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["left_out"] == 1
    assert results["images"] == 48 == sum(results["cases"].values())
    with open(run / "skipped.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["image"] == "plain/broken.png"
    assert row["reason"]


def test_the_best_validation_head_is_kept_and_the_loss_falls(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 120
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    scores = {line["step"]: (line["val_auc"], line["val_acc"]) for line in lines if "val_auc" in line}
    (training,) = json.loads((run / "results.json").read_text())["training"]
    assert training["best_step"] == min(step for step, value in scores.items() if value == max(scores.values()))


def test_the_folder_explains_itself_and_names_the_guide(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["guide"] == results["encoder"]["guide"] == "frangi"
    assert yaml.safe_load((run / "config.yaml").read_text())["encoder"] == ENCODER
    page = (run / "report.html").read_text()
    assert page.count("frangi") >= 3
    assert "http://" not in page
    assert "https://" not in page


def test_a_saved_classifier_answers_as_the_run_did(run: Path) -> None:
    classifier = load_classifier(run)
    _, reference = open_encoder(ENCODER)
    assert weights_hash(classifier.encoder) == reference.weights
    assert not any(parameter.requires_grad for parameter in classifier.encoder.parameters())
    head = load_head(run)
    for row in read_cases(run)[:3]:
        found = head.predict(run.parent / "set" / row["case"]).probabilities
        for name, value in found.items():
            assert value == pytest.approx(float(row[f"p_{name}"]), abs=2e-5)
    with pytest.raises(InputError, match="holds no segmentation head"):
        load_segmenter(run)


def test_every_image_passes_the_encoder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folders(tmp_path / "set", 8)
    passed: list[int] = []
    forward = Encoder.forward

    def counted(self: Encoder, x: torch.Tensor) -> object:
        passed.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Encoder, "forward", counted)
    options = QUICK | {"max_steps": 10}
    classify(str(source), encoder=ENCODER, out=str(tmp_path / "run"), folds=3, **options)
    assert sum(passed) == 24
    assert max(passed) == 16
    passed.clear()
    classify(str(source), encoder=ENCODER, out=str(tmp_path / "augmented"), augment=True, **options)
    assert sum(passed) > 24 + 10 * 8


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_equal_seeds_give_equal_runs_whatever_the_number_of_threads(tmp_path: Path, pooling: str) -> None:
    source = make_folders(tmp_path / "set", 6)
    runs = [
        classify(
            str(source), encoder=ENCODER, out=str(tmp_path / f"r{i}"), seed=seed, pooling=pooling,
            **(QUICK | {"num_workers": workers, "max_steps": 6}),
        )
        for i, (workers, seed) in enumerate([(0, 1), (3, 1), (0, 2)])
    ]  # fmt: skip
    first, same, other = [(folder / "metrics.jsonl").read_bytes() for folder in runs]
    assert first == same
    assert first != other
    assert (runs[0] / "cases.csv").read_bytes() == (runs[1] / "cases.csv").read_bytes()


def test_folds_test_every_image_once(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "set", 10)
    folder = classify(str(source), encoder=ENCODER, out=str(tmp_path / "run"), folds=5, **QUICK)
    rows = read_cases(folder)
    assert len({row["case"] for row in rows}) == len(rows) == 30
    # Classes are spread evenly: ten of each over five folds.
    for fold in "12345":
        assert (
            sorted(row["truth"] for row in rows if row["fold"] == fold)
            == ["flat"] * 2 + ["plain"] * 2 + ["upright"] * 2
        )
    scores = json.loads((folder / "results.json").read_text())["test"]
    for name in ("acc", "auc"):
        assert len(scores[name]["folds"]) == 5
        assert scores[name]["value"] == pytest.approx(np.mean(scores[name]["folds"]))
        assert scores[name]["std"] == pytest.approx(np.std(scores[name]["folds"], ddof=1))
    fold = [row for row in rows if row["fold"] == "2"]
    assert scores["acc"]["folds"][1] == pytest.approx(np.mean([row["truth"] == row["predicted"] for row in fold]))
    per_class = json.loads((folder / "results.json").read_text())["per_class"]
    assert np.mean([item["auc"] for item in per_class.values()]) == pytest.approx(scores["auc"]["value"])
    with pytest.raises(InputError, match=r"It has one per fold: give .*folds/1"):
        load_classifier(folder)
    found = load_head(folder, fold=2).predict(source / fold[0]["case"]).probabilities
    assert found["flat"] == pytest.approx(float(fold[0]["p_flat"]), abs=2e-5)
    assert load_classifier(folder / "folds" / "1").classes == ("flat", "plain", "upright")


def test_several_labels_per_image(tmp_path: Path) -> None:
    """Stripes may lie both ways: each is a finding of its own."""
    rows = ["path,label,split"]
    for i in range(60):
        flat, upright = i % 2, i // 2 % 2
        image = (picture(0, i).astype(int) if flat else 80) + (picture(1, i).astype(int) if upright else 80)
        Image.fromarray((np.broadcast_to(image, (20, 24)) / 2).astype(np.uint8)).save(tmp_path / f"{i}.png")
        names = [name for name, there in (("flat", flat), ("upright", upright)) if there] or ["none"]
        rows.append(f"{i}.png,{'|'.join(names)},{('train', 'train', 'train', 'val', 'test')[i // 4 % 5]}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    folder = classify(str(tmp_path / "table.csv"), encoder=ENCODER, out=str(tmp_path / "run"), **QUICK)
    results = json.loads((folder / "results.json").read_text())
    assert results["multi_label"]
    assert results["cases"] == {"train": 36, "val": 12, "test": 12}
    assert results["confusion"] is None
    cases = read_cases(folder)
    answers = [
        (float(row[f"p_{name}"]) > 0.5) == (name in row["truth"].split("|"))
        for row in cases
        for name in results["classes"]
    ]
    assert results["test"]["acc"]["value"] == pytest.approx(np.mean(answers))
    assert results["test"]["auc"]["value"] > 0.8


def test_volumes_by_a_3d_encoder(tmp_path: Path) -> None:
    folder = classify(
        str(make_stacks(tmp_path / "stacks.npz")), encoder="random:tiny3d_for_tests", out=str(tmp_path / "run"), **QUICK
    )
    results = json.loads((folder / "results.json").read_text())
    assert results["cases"] == {"train": 12, "val": 12, "test": 12}
    assert results["split"].startswith("official")
    assert results["image_size"] == 12
    assert {row["case"].split("#")[1].split("[")[0] for row in read_cases(folder)} == {"test_images"}


def test_volumes_by_slice_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(make_stacks(tmp_path / "stacks.npz", 8))
    computed: list[int] = []
    encode = SliceTransfer.encode_slices

    def counted(self: SliceTransfer, volume: torch.Tensor) -> torch.Tensor:
        computed.append(len(volume))
        return encode(self, volume)

    monkeypatch.setattr(SliceTransfer, "encode_slices", counted)
    options = QUICK | {"max_steps": 30, "lr": 3e-3}
    plain = classify(source, encoder=STACKS, out=str(tmp_path / "plain"), **options)
    assert sum(computed) > 24
    computed.clear()
    cache = tmp_path / "cache"
    folder = classify(source, encoder=STACKS, out=str(tmp_path / "run"), feature_cache=str(cache), **options)
    assert sum(computed) == 24 == len(list(cache.iterdir()))  # each volume once, in 30 steps
    assert (folder / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()

    results = json.loads((folder / "results.json").read_text())
    assert results["test"]["auc"]["value"] > 0.9
    fresh, reference = open_encoder(STACKS)
    classifier = load_classifier(folder)
    assert weights_hash(classifier.encoder) == reference.weights
    names = trained_names(classifier.encoder)
    before, after = fresh.state_dict(), classifier.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) == (name not in names) for name in before)
    row = read_cases(folder)[3]
    volume = np.load(source)["test_images"][3]
    scaled = np.clip((volume - np.percentile(volume, 0.5)) / np.ptp(np.percentile(volume, (0.5, 99.5))), 0, 1)
    found = classifier.predict([scaled[None].astype(np.float32)])[0]
    assert found == pytest.approx([float(row["p_0"]), float(row["p_1"])], abs=1e-4)


def test_stacks_of_several_depths_meet_in_a_batch(tmp_path: Path) -> None:
    """Padding slices change nothing: a short volume gets the same answer alone as beside a long one."""
    rows = ["path,label,split"]
    for i in range(12):
        np.save(tmp_path / f"{i}.npy", picture(i % 2, i, (3 + i % 4, 12, 10 + i % 3)))
        rows.append(f"{i}.npy,{'ab'[i % 2]},{'train' if i < 8 else 'test'}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    folder = classify(
        str(tmp_path / "table.csv"), encoder=STACKS, out=str(tmp_path / "run"), **(QUICK | {"max_steps": 4})
    )
    head = load_head(folder)
    for row in read_cases(folder):
        found = head.predict(tmp_path / row["case"]).probabilities
        assert found["a"] == pytest.approx(float(row["p_a"]), abs=1e-4)


def test_the_command_line(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(run.parent / "set"), str(tmp_path / "cli")
    words = [
        "classify",
        source,
        "--encoder",
        ENCODER,
        "--out",
        out,
        "--max-steps",
        "2",
        "--num-workers",
        "0",
        "--quiet",
    ]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == out
    assert "guide channel: frangi" in captured.err
    assert "plain/broken.png" in captured.err
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_linear_head_is_scikit_learns_and_nothing_is_drawn(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from frepa.downstream.classification.data import open_data
    from frepa.downstream.classification.model import load_classifier

    source = make_folders(tmp_path / "set")
    runs = [
        classify(str(source), encoder=ENCODER, out=str(tmp_path / str(lr)), lr=lr, quiet=True, num_workers=0)
        for lr in (1e-3, 1.0)
    ]
    classifier = load_classifier(runs[0])
    results = json.loads((runs[0] / "results.json").read_text())
    (training,) = results["training"]
    assert (results["head"], training["steps"], training["best_step"]) == ("linear", 0, 0)
    assert (runs[0] / "cases.csv").read_text() == (runs[1] / "cases.csv").read_text()
    data = open_data(str(source), dims=2)
    rows, answers = data.rows("train"), data.rows("test")
    embeddings = []
    for row in range(len(data.records)):
        image = classifier.frame(to_unit(data.source.read(int(data.records[row]))))
        embeddings.append(classifier.encode([classifier.inputs(image)])[0][0].double().numpy())
    x = np.stack(embeddings)
    scaler = StandardScaler().fit(x[rows])
    model = LogisticRegression(C=1 / (training["penalty"] * len(rows)), tol=1e-10, max_iter=10_000)
    model.fit(scaler.transform(x[rows]), data.targets[rows].argmax(1))
    expected = model.predict_proba(scaler.transform(x[answers]))
    listed = {row["case"]: [float(row[f"p_{name}"]) for name in data.classes] for row in read_cases(runs[0])}
    names = [data.source.name(int(data.records[row])) for row in answers]
    np.testing.assert_allclose([listed[name] for name in names], expected, atol=2e-3)


def test_the_majority_answer_stands_beside_the_score(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    rows = read_cases(run)
    share = max(np.mean([row["truth"] == name for row in rows]) for name in results["classes"])
    assert 0 < results["baselines"]["majority"]["acc"] <= share + 1e-9
    assert results["baselines"]["majority"]["auc"] == 0.5
    assert results["constant"] is None
    assert "commonest training answer" in (run / "report.html").read_text()


def test_constant_answers_are_named() -> None:
    from frepa.downstream.classification.summary import constant_answer

    same = np.eye(2, dtype=bool)[[1, 1, 1]]
    assert "ill for every test case" in str(constant_answer(same, ["well", "ill"]))
    assert constant_answer(np.eye(2, dtype=bool), ["well", "ill"]) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "linear", "pooling": "attention"}, "--head mlp"),
        ({"head": "linear", "augment": True}, "Leave --augment out"),
        ({"head": "forest"}, "--head forest: not known"),
    ],
)
def test_heads_that_cannot_be_are_refused(tmp_path: Path, options: dict, words: str) -> None:
    source = make_folders(tmp_path / "set")
    with pytest.raises(InputError, match=words):
        classify(str(source), encoder=ENCODER, out=str(tmp_path / "o"), quiet=True, num_workers=0, **options)
